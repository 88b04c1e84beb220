-- The statements of events.db with which a history is checked, by name: each reads a bounded slice.

-- name: last_change
select coalesce(max(seq), 0) from changes;

-- name: offsets_of_events
select offset from events where partition_id = ? and offset >= ? and offset < ? order by offset limit ?;

-- name: offsets_of_dead_letters
select offset from dead_letters where partition_id = ? and offset >= ? and offset < ? order by offset limit ?;

-- name: count_events
select count(*), max(offset) from
  (select offset from events where partition_id = ? and offset >= ? and offset < ? order by offset limit ?);

-- name: count_dead_letters
select count(*), max(offset) from
  (select offset from dead_letters where partition_id = ? and offset >= ? and offset < ? order by offset limit ?);

-- name: next_event
select min(offset) from events where partition_id = ? and offset >= ?;

-- name: next_partition_with_events
select min(partition_id) from events where partition_id > ?;

-- name: next_partition_with_dead_letters
select min(partition_id) from dead_letters where partition_id > ?;

-- name: next_partition_with_gaps
select min(partition_id) from gaps where partition_id > ?;

-- name: events_outside
select offset from (select offset from events where partition_id = :id and offset < :first order by offset limit :limit)
union all
select offset from (select offset from events where partition_id = :id and offset >= :next order by offset limit :limit);

-- name: dead_letters_outside
select offset from
  (select offset from dead_letters where partition_id = :id and offset < :first order by offset limit :limit)
union all
select offset from
  (select offset from dead_letters where partition_id = :id and offset >= :next order by offset limit :limit);

-- name: gaps_outside
select first_offset from gaps
where partition_id = :id and (first_offset < :first or last_offset >= :next or last_offset < first_offset) limit :limit;

-- name: gaps_after
select first_offset, last_offset, reason from gaps
where partition_id = ? and first_offset >= ? and first_offset < ? order by first_offset limit ?;

-- name: gap_at
select first_offset, last_offset, reason from gaps
where partition_id = ? and first_offset <= ? order by first_offset desc limit 1;
