-- events.db, version 1: the history. Every offset in [first_offset, next_offset) of a partition is in exactly
-- one of events, dead_letters and gaps; all of it and next_offset change in one transaction.

create table store (                    -- one row: who this history is
  id text not null,
  created_ms integer not null
) strict;

create table partitions (
  id integer primary key,
  cluster_id text not null,
  topic text not null,
  topic_id text not null default '',    -- '' where the broker has no topic ids
  partition integer not null,
  first_offset integer not null,        -- pruning moves it up
  next_offset integer not null,         -- the first offset that is not in this store: the fence
  confirmed_offset integer not null,    -- the topic was seen to be the same one when next_offset was this
  anchor_offset integer,                -- the last record seen,
  anchor_sha256 blob,                   -- and what it was
  closed_ms integer                     -- set: another incarnation took its place
) strict;
create unique index open_partition on partitions (cluster_id, topic, topic_id, partition) where closed_ms is null;

create table events (
  partition_id integer not null,
  offset integer not null,
  user_id any not null,
  activity text not null,
  timestamp_ms integer not null,
  logged_ms integer not null,           -- the record's Kafka timestamp
  properties text,                      -- JSON of all other fields; null when none
  primary key (partition_id, offset)
) strict, without rowid;

create table dead_letters (
  partition_id integer not null,
  offset integer not null,
  reason text not null,
  detail text not null,
  key blob,
  payload blob,                         -- null: a tombstone
  logged_ms integer not null,
  primary key (partition_id, offset)
) strict, without rowid;

create table gaps (
  partition_id integer not null,
  first_offset integer not null,
  last_offset integer not null,         -- included
  reason text not null,
  primary key (partition_id, first_offset)
) strict, without rowid;

create table changes (                  -- what appending does not tell: the aggregator reads it
  seq integer primary key autoincrement,
  kind text not null,                   -- open (a writer started), take_back
  partition_id integer,
  first_offset integer,
  next_offset integer,
  at_ms integer not null,
  nonce blob not null
) strict;

create view user_activity as            -- the table that people query
  select user_id, activity, timestamp_ms / 1000.0 as timestamp from events;
