-- The statements of events.db, by name.

-- name: new_store
insert into store (id, created_ms) select ?, ? where not exists (select 1 from store);

-- name: store_id
select id from store;

-- name: rename_store
update store set id = :id;

-- name: note_change
insert into changes (kind, partition_id, first_offset, next_offset, at_ms, nonce)
values (:kind, :partition_id, :first_offset, :next_offset, :at_ms, randomblob(16));

-- name: changes_after
select seq, kind, partition_id, first_offset, next_offset, nonce from changes where seq > ? order by seq;

-- name: nonce_of_change
select nonce from changes where seq = ?;

-- name: partitions_of
select id, cluster_id, topic, topic_id, partition, first_offset, next_offset, confirmed_offset,
       anchor_offset, anchor_sha256, closed_ms
from partitions where topic = ? order by id;

-- name: all_partitions
select id, cluster_id, topic, topic_id, partition, first_offset, next_offset, confirmed_offset,
       anchor_offset, anchor_sha256, closed_ms
from partitions order by id;

-- name: topic_is_known
select exists (select 1 from partitions where topic = ?);

-- name: open_partition
insert or ignore into partitions
  (cluster_id, topic, topic_id, partition, first_offset, next_offset, confirmed_offset)
values (:cluster_id, :topic, :topic_id, :partition, :offset, :offset, :offset);

-- name: close_partition
update partitions set closed_ms = :now_ms where id = :id and closed_ms is null and next_offset = :next_offset;

-- name: reopen_partition
update partitions set closed_ms = null where id = :id;

-- name: give_topic_id
update partitions set topic_id = :topic_id where id = :id and topic_id = '' and closed_ms is null;

-- name: confirm
update partitions set confirmed_offset = :offset
where id = :id and closed_ms is null and next_offset >= :offset and confirmed_offset < :offset;

-- name: take_fence
update partitions
set next_offset = :next_offset,
    anchor_offset = coalesce(:anchor_offset, anchor_offset),
    anchor_sha256 = coalesce(:anchor_sha256, anchor_sha256)
where id = :id and next_offset = :expected and closed_ms is null;

-- name: add_dead_letter
insert into dead_letters (partition_id, offset, reason, detail, key, payload, logged_ms) values (?, ?, ?, ?, ?, ?, ?);

-- name: add_gap
insert into gaps (partition_id, first_offset, last_offset, reason) values (?, ?, ?, ?);

-- name: events_from
select offset, user_id, activity, timestamp_ms, logged_ms, properties
from events where partition_id = ? and offset >= ? order by offset limit ?;

-- name: facts_from
select offset, user_id, activity, timestamp_ms, logged_ms
from events where partition_id = ? and offset >= ? order by offset limit ?;

-- name: last_logged
select logged_ms from (
  select * from (select offset, logged_ms from events where partition_id = ?1 order by offset desc limit 1)
  union all
  select * from (select offset, logged_ms from dead_letters where partition_id = ?1 order by offset desc limit 1)
) order by offset desc limit 1;

-- name: oldest_logged
select min((
  select logged_ms from (select offset, logged_ms from events where partition_id = p.id order by offset limit 1000)
  where logged_ms >= 0 order by offset limit 1
)) from partitions p;

-- name: taken_back
select count(*) from changes where seq <= ? and kind = 'take_back';

-- name: check_total
select activity, count(*) from events where partition_id = ? and offset >= ? and offset < ? group by activity;

-- name: dead_letters_from
select offset, reason, detail, key, payload, logged_ms
from dead_letters where partition_id = ? and offset >= ? order by offset limit ?;

-- name: gaps_from
select first_offset, last_offset, reason
from gaps where partition_id = ? and last_offset >= ? order by first_offset limit ?;

-- name: cut_events
delete from events where partition_id = ? and offset >= ?;

-- name: cut_dead_letters
delete from dead_letters where partition_id = ? and offset >= ?;

-- name: cut_gaps
delete from gaps where partition_id = ? and first_offset >= ?;

-- name: shorten_gap
update gaps set last_offset = :offset - 1
where partition_id = :id and first_offset < :offset and last_offset >= :offset;

-- name: set_back
update partitions
set next_offset = :offset,
    confirmed_offset = min(confirmed_offset, :offset),
    anchor_offset = case when anchor_offset < :offset then anchor_offset end,
    anchor_sha256 = case when anchor_offset < :offset then anchor_sha256 end
where id = :id;
