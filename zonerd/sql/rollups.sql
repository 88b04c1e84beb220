-- rollups.db, version 1: the answers. A set of answers is a generation; a rebuild fills a second one beside the
-- one that readers see. The counts of a generation and its cursor change in one transaction.

create table answers (                  -- one row
  id text not null,                     -- who these answers are: another file, another id
  created_ms integer not null,
  fold integer not null,                -- grows with every move of a cursor, never restarts: the fence
  generation integer not null,          -- the set that readers see
  building integer,                     -- the set that a rebuild fills; null: none
  last_fold integer,                    -- the last publish that Redis confirmed,
  last_nonce text,
  pending_fold integer,                 -- and the one that was sent since, or is about to be
  pending_nonce text,
  resend integer not null               -- 1: the next publish sends everything
) strict;

create table cursors (                  -- one row a generation: what of the history it holds
  generation integer primary key,
  fold integer not null,                -- the fold that last moved it
  store_id text not null,
  change_seq integer not null,          -- the last change seen
  change_nonce blob,
  corrections integer not null,         -- how many of the changes took events back
  events integer not null               -- how many are counted
) strict;

create table places (                   -- how far each partition row of events.db is folded
  generation integer not null,
  partition_id integer not null,
  cluster_id text not null,
  topic text not null,
  topic_id text not null,
  partition integer not null,
  open integer not null,
  offset integer not null,              -- the first that is not counted
  primary key (generation, partition_id)
) strict, without rowid;

create table total (                    -- events by activity
  generation integer not null,
  activity text not null,
  count integer not null,
  primary key (generation, activity)
) strict, without rowid;
create index total_by_count on total (generation, count desc, activity);
