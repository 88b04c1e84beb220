-- What people look at in events.db, by name; no statement reads more than a slice.

-- name: moments_before
select offset, logged_ms from events where partition_id = ? and offset < ? order by offset desc limit ?;

-- name: gap_offsets
select count(*), coalesce(sum(last_offset - first_offset + 1), 0), max(first_offset)
from (select first_offset, last_offset from gaps where partition_id = ? and first_offset >= ?
      order by first_offset limit ?);

-- name: briefs_from
select offset, reason, detail, length(payload), substr(payload, 1, ?4), logged_ms
from dead_letters where partition_id = ?1 and offset >= ?2 order by offset limit ?3;
