"""What zonerd counts: every metric, with its help sentence, in one place."""

from prometheus_client import Counter, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

PRODUCER_DELIVERED = Counter("zonerd_producer_events_delivered_total", "Messages that the broker acknowledged.")
PRODUCER_ERRORS = Counter(
    "zonerd_producer_errors_total", "Messages that the broker did not take, by reason.", ["reason"]
)
PRODUCER_INVALID = Counter(
    "zonerd_producer_lines_invalid_total", "Lines of the source that are no event, by reason.", ["reason"]
)
CONSUMER_RECORDS = Counter("zonerd_consumer_records_total", "Records that Kafka delivered.", ["topic", "partition"])
CONSUMER_STORED = Counter(
    "zonerd_consumer_events_stored_total", "Events that were committed to the history.", ["topic", "partition"]
)
CONSUMER_DEAD_LETTERS = Counter(
    "zonerd_consumer_dead_letters_total", "Records that were kept as dead letters, by reason.", ["topic", "reason"]
)
CONSUMER_GAPS = Counter(
    "zonerd_consumer_gap_offsets_total",
    "Offsets at which Kafka has no record, by reason.",
    ["topic", "partition", "reason"],
)
CONSUMER_FENCED = Counter(
    "zonerd_consumer_fenced_total", "Slices dropped because another process had stored them first."
)
CONSUMER_COMMIT_ERRORS = Counter(
    "zonerd_consumer_commit_errors_total", "Offsets that Kafka did not take, by reason.", ["reason"]
)
AGGREGATOR_FOLDED = Counter("zonerd_aggregator_events_folded_total", "Events that were folded into the answers.")
AGGREGATOR_PUBLISHES = Counter(
    "zonerd_aggregator_publishes_total", "Attempts to bring Redis up to date, by result.", ["result"]
)
AGGREGATOR_FULL_PUSHES = Counter(
    "zonerd_aggregator_full_pushes_total", "Times that everything was sent to Redis again, by reason.", ["reason"]
)
