"""What zonerd may say: every event of the log, with the sentence that the journal shows for it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class Event(NamedTuple):
    """What an event means, the fields that a reader looks for, and whether repeats of it are held back."""

    help: str
    fields: tuple[str, ...] = ()
    limited: bool = False


EVENTS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        # every process
        "started": Event("The process begins its work", ("data_dir", "topic", "source", "number", "of")),
        "ready": Event("Every check of readiness holds"),
        "not_ready": Event("A check of readiness fails", ("check", "reason")),
        "service_unavailable": Event("Kafka or Redis does not serve; it is tried again", ("check", "reason")),
        "service_available": Event("Kafka or Redis serves again", ("check",)),
        "paused": Event("The data directory cannot be written, so nothing moves on", ("check", "reason")),
        "resumed": Event("The data directory can be written again", ("check",)),
        "progress": Event("What was done since the start, each log.progress_s"),
        "stop_requested": Event("A stop was asked for; what is under way is finished first"),
        "stopped": Event("The process has ended as it was asked to", ("orphaned",)),
        "refused": Event("The process ends: the configuration, a file or a service refused it", ("reason",)),
        "crashed": Event(
            "The process ends by an error of its own; supervisord starts it again", ("reason", "exception")
        ),
        "kafka_client": Event("librdkafka says", ("reason",), limited=True),
        "journal_unavailable": Event("journald takes no lines; they stand in the process's log only", ("reason",)),
        "journal_available": Event("journald takes lines again", ("dropped",)),
        # the producer
        "idle": Event("Nothing is to be sent", ("reason",)),
        "delivery_failed": Event("Kafka does not take messages; they wait", ("reason", "queued"), limited=True),
        "line_rejected": Event(
            "A line of the source is no event", ("reason", "detail", "path", "offset", "bytes", "sent"), limited=True
        ),
        "source_rotated": Event("The followed file was rotated; reading goes on in the next one", ("how", "next")),
        # the consumer
        "partitions_assigned": Event("These partitions are read, from these offsets on", ("partitions", "next")),
        "partitions_added": Event("The topic has more partitions", ("partitions",)),
        "batch_stored": Event("Records of a partition were stored", ("partition", "events", "next")),
        "dead_letter_stored": Event(
            "A record is no event and was kept as a dead letter",
            ("reason", "partition", "offset", "detail"),
            limited=True,
        ),
        "gap_recorded": Event(
            "Kafka has no record at these offsets", ("reason", "partition", "first_offset", "last_offset")
        ),
        "fenced": Event("Another process had stored these records first; its word stands", ("partition", "expected")),
        "topic_recreated": Event(
            "The topic is another one than before; it is stored as a new log",
            ("partition", "cause", "taken_back", "next"),
        ),
        "anchor_expired": Event(
            "Kafka no longer has the record that proves the topic's identity", ("partition", "offset")
        ),
        "group_in_use": Event("Kafka's group is used by somebody else too", ("reason", "group"), limited=True),
        "commit_failed": Event(
            "Kafka did not note how far this group is; the history knows it", ("reason", "group"), limited=True
        ),
        "store_opened": Event("A database was opened", ("file", "store_id")),
        "store_failed": Event("A database could not be read or written", ("reason", "kind"), limited=True),
        "wal_large": Event(
            "The history's write-ahead log is larger than store.max_wal_bytes; a reader holds it",
            ("bytes", "max_bytes"),
        ),
        # the aggregator
        "folded": Event("Events were folded into the answers", ("fold", "events", "behind")),
        "published": Event("Redis shows the newest answers", ("fold", "events", "keys")),
        "full_push_started": Event("Everything is sent to Redis again", ("reason", "fold")),
        "full_push_finished": Event("Redis has everything again", ("fold", "events", "keys")),
        "rebuild_started": Event("The answers are made anew from the history", ("reason",)),
        "rebuild_finished": Event("The answers are whole again", ("fold", "events")),
        "activities_capped": Event(
            "More activities than aggregator.max_activities; the rest is published as one", ("max_activities",)
        ),
        "another_store": Event(
            "The answers belong to another history than this one", ("reason", "was", "now"), limited=True
        ),
        "overtaken": Event("Somebody else wrote to Redis meanwhile; it is looked at again", ("reason",), limited=True),
        "eviction_policy": Event("Redis may drop keys when its memory is full", ("reason",)),
        # the watchdog
        "process_state": Event(
            "supervisord sees a process in another state", ("name", "group", "state", "from_state", "process_pid")
        ),
        "process_restarted": Event("A process was started again", ("name", "reason", "detail", "process_pid")),
        "systemd_notify_failed": Event("systemd was not told how it goes", ("reason",), limited=True),
    }
)
"""Event → what it means; reference pages and the journal's sentences are made from it."""
