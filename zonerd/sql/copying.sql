-- What is asked of a copy, by name: each row that is given is a position at which nothing stands.

-- name: unreached_partitions
select topic || '/' || partition || ' up to ' || next_offset from partitions
where next_offset > first_offset
  and not exists (select 1 from events where partition_id = partitions.id and offset = next_offset - 1)
  and not exists (select 1 from dead_letters where partition_id = partitions.id and offset = next_offset - 1)
  and next_offset - 1 is not (select last_offset from gaps where partition_id = partitions.id
                              order by first_offset desc limit 1)
union all
select 'name' where not exists (select 1 from store);

-- name: unreached_cursors
select 'cursor of ' || events || ' events' from cursors
where events > 0 and not exists (select 1 from places where places.generation = cursors.generation)
union all
select 'name' where not exists (select 1 from answers);
