-- The statements of rollups.db, by name. Each aggregate has an add_, a top_ and a cut_ of its own.

-- name: new_answers
insert into answers (id, created_ms, fold, generation, resend)
select ?, ?, 0, 1, 0 where not exists (select 1 from answers);

-- name: rename_answers
update answers
set id = :id, last_fold = null, last_nonce = null, pending_fold = null, pending_nonce = null, resend = 1;

-- name: follow_store
update cursors set store_id = :now where store_id = :was;

-- name: answers
select id, fold, generation, building, last_fold, last_nonce, pending_fold, pending_nonce, resend from answers;

-- name: take_fence
update answers set fold = :fold + 1 where fold = :fold;

-- name: newest_generation
select max(generation) from cursors;

-- name: begin_rebuild
update answers set building = ?;

-- name: swap
update answers set generation = building, building = null, resend = 1;

-- name: note_pending
update answers set pending_fold = ?, pending_nonce = ?;

-- name: confirm
update answers
set last_fold = :fold,
    last_nonce = :nonce,
    resend = case when :full then 0 else resend end,
    pending_fold = case when pending_nonce is not :nonce then pending_fold end,
    pending_nonce = case when pending_nonce is not :nonce then pending_nonce end;

-- name: demand_resend
update answers set resend = 1;

-- name: cursor
select fold, store_id, change_seq, change_nonce, corrections, events from cursors where generation = ?;

-- name: set_cursor
insert or replace into cursors (generation, fold, store_id, change_seq, change_nonce, corrections, events)
values (?, ?, ?, ?, ?, ?, ?);

-- name: places
select partition_id, cluster_id, topic, topic_id, partition, open, offset from places where generation = ?;

-- name: set_place
insert or replace into places
  (generation, partition_id, cluster_id, topic, topic_id, partition, open, offset)
values (?, ?, ?, ?, ?, ?, ?, ?);

-- name: left_over
select cursors.generation from cursors, answers
where cursors.generation <> answers.generation and cursors.generation is not answers.building limit 1;

-- name: cut_places
delete from places where generation = ?;

-- name: cut_cursor
delete from cursors where generation = ?;

-- name: add_total
insert into total (generation, activity, count) values (?, ?, ?)
on conflict (generation, activity) do update set count = count + excluded.count;

-- name: top_total
select activity, count from total where generation = ? order by count desc, activity limit ?;

-- name: activities
select count(*) from total where generation = (select generation from answers);

-- name: cut_total
delete from total where generation = :generation and activity in
  (select activity from total where generation = :generation limit :rows);
