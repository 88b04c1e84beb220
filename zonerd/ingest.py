"""Kafka → events.db, each record exactly once: one batch a step, from the store's own positions."""

import time
from typing import Final

from zonerd.config import Config
from zonerd.errors import ServiceUnavailable, StoreUnavailable
from zonerd.events import Gap, Slice, Standing, sort_out
from zonerd.incarnation import Topic
from zonerd.kafka.cluster import Cluster, Incarnation
from zonerd.kafka.reader import NOTHING_TAKEN, Reader, Taken
from zonerd.log import Limited, Log
from zonerd.meter import Meter
from zonerd.stalls import Stalls
from zonerd.store.files import free_bytes
from zonerd.store.history import History, Partition

CHECK_INTERVAL_S: Final = 5.0
"""How often the topic's id and partitions, and the progress of each partition, are looked at."""

STOP_BUDGET_S: Final = 2.0


class Consumer:
    """Reads its partitions from the store's positions and appends; holds nothing that a crash could lose.

    The order of effects in a pass: take records, sort them out, commit them to the store under the
    fence, and only then tell Kafka. Anything unexpected ends in `recognise` again, at the store's positions.
    """

    def __init__(  # noqa: PLR0913 - its edges
        self, config: Config, log: Log, history: History, cluster: Cluster, reader: Reader, topic: Topic, meter: Meter
    ) -> None:
        self._config = config
        self._log = log
        self._history = history
        self._cluster = cluster
        self._reader = reader
        self._topic = topic
        self._meter = meter
        self._limited = Limited()
        self._incarnation: Incarnation | None = None
        self._rows: dict[int, Partition] = {}
        self._next: dict[int, int] = {}
        self._confirmed: dict[int, int] = {}
        self._noted: dict[int, int] | None = None
        self._said: dict[int, int] | None = None
        self._connections_lost = 0
        self._stood: dict[int, int] = {}
        self._checked_at = 0.0
        self.stalls = Stalls(config.consumer.no_progress_s)
        self.stored = 0

    def step(self) -> None:
        """Take one batch and store it; raises ServiceUnavailable, StoreUnavailable or Replaced."""
        self._meter.look()
        self._refuse_full_disk()
        if self._incarnation is None:
            self._recognise()
        taken = self._reader.take(self._config.consumer.batch_events, self._config.consumer.batch_wait_s)
        self._meter.took(taken.records)
        self._meter.lap("wait")
        if self._reader.notes.connections_lost != self._connections_lost:
            self.forget()  # who answers now may be another broker: look at the anchors before anything is stored
            return
        slices = sort_out(taken.records, taken.ends, self._standings(), self._config.consumer.max_event_bytes)
        self._meter.lap("decode")
        self._store(slices, taken)
        self._answer(taken)
        self._meter.lap("store")
        self._reader.commit()
        self._meter.lap("commit")
        self._check()

    @property
    def store_id(self) -> str:
        """Which history it stores into."""
        return self._history.store_id

    def forget(self) -> None:
        """Drop what is known of the topic; the next step recognises it anew."""
        self._incarnation = None

    def ends(self) -> dict[int, int]:
        """Give where the log of each of our partitions ends now."""
        return {partition: self._cluster.watermarks(partition).high for partition in self._next}

    def progress(self) -> dict[str, object]:
        """Give how many events were stored since the start, and the lag in records as far as it is known."""
        lag = sum(self._meter.lag(partition) for partition in self._next)
        return {"stored": self.stored, "lag": lag, "next": dict(sorted(self._next.items()))}

    def caught_up(self, ends: dict[int, int]) -> bool:
        """Whether the store stands at or behind all of these offsets."""
        return all(self._next.get(partition, -1) >= end for partition, end in ends.items())

    def finish(self) -> None:
        """Tell Kafka how far the store is, for the last time."""
        self._reader.finish(STOP_BUDGET_S)

    def _recognise(self) -> None:
        self._history.check_writable()
        self._connections_lost = self._reader.notes.connections_lost
        self._incarnation, self._rows = self._topic.recognise()
        self._next = {partition: row.next_offset for partition, row in self._rows.items()}
        self._confirmed = {partition: row.confirmed_offset for partition, row in self._rows.items()}
        self._reader.assign({p: offset for p, offset in self._next.items() if not self.stalls.resting(p)})
        self._reader.note_stored(self._next)
        self._noted = None
        self._cluster.forget()
        self._meter.assigned(self._next, lambda partition: self._history.last_logged_ms(self._rows[partition].id))
        if self._said != self._next:  # not at each attempt while the store cannot be written
            self._said = dict(self._next)
            self._log.info("partitions_assigned", partitions=sorted(self._next), next=self._next)

    def _standings(self) -> dict[int, Standing]:
        return {p: Standing(offset, self._reader.low_watermark(p)) for p, offset in self._next.items()}

    def _store(self, slices: list[Slice], taken: Taken = NOTHING_TAKEN) -> None:
        if not slices:
            return
        self._refuse_expired(slices)
        ids = {partition: row.id for partition, row in self._rows.items()}
        fenced = self._history.append(slices, ids)
        self._meter.stored([piece for piece in slices if piece.partition not in fenced], taken)
        for piece in slices:
            if piece.partition in fenced:
                self._note_fenced(piece)
            else:
                self._note_stored(piece)
        self._reader.note_stored({p.partition: p.next_offset for p in slices if p.partition not in fenced})

    def _refuse_full_disk(self) -> None:
        try:
            free = free_bytes(self._config.store.data_dir)
        except OSError as error:
            raise StoreUnavailable(f"{self._config.store.data_dir}: {error.strerror}", "io") from None
        if free < self._config.store.min_free_bytes:
            raise StoreUnavailable("less is free on the disk than store.min_free_bytes", "full")

    def _refuse_expired(self, slices: list[Slice]) -> None:
        if self._config.consumer.on_expired_offsets == "record":
            return
        for piece in slices:
            expired = sum(gap.last_offset - gap.first_offset + 1 for gap in piece.gaps if gap.reason == "expired")
            if expired:
                cause = f"partition {piece.partition}: {expired} records expired before they were read"
                raise ServiceUnavailable("kafka", f"{cause}, and consumer.on_expired_offsets is stop")

    def _note_stored(self, piece: Slice) -> None:
        self._next[piece.partition] = piece.next_offset
        self.stored += len(piece.events)
        self.stalls.moved(piece.partition)
        self._log.debug("batch_stored", partition=piece.partition, events=len(piece.events), next=piece.next_offset)
        for record, letter in piece.dead_letters:
            place = {"partition": record.partition, "offset": record.offset, "detail": letter.detail}
            self._limited.warning(self._log, "dead_letter_stored", letter.reason, **place)
        for gap in piece.gaps:
            say = self._log.warning if gap.reason == "expired" else self._log.debug  # a marker ends each transaction
            say("gap_recorded", partition=piece.partition, **gap._asdict())

    def _note_fenced(self, piece: Slice) -> None:
        self._meter.fenced()
        self._log.warning("fenced", partition=piece.partition, expected=piece.expected_offset)
        self.forget()

    def _answer(self, taken: Taken) -> None:
        """Act on what went wrong where: retention, another topic, or a partition that cannot be read."""
        for partition in taken.out_of_range:
            self._step_over_expired(partition)
        for partition in taken.ends:
            self.stalls.moved(partition)
        for partition, cause in taken.troubled.items():
            if partition in self._next:
                self.stalls.failed(partition, cause)
        if taken.troubled:
            self.forget()
            raise ServiceUnavailable("kafka", "; ".join(sorted(set(taken.troubled.values()))))

    def _step_over_expired(self, partition: int) -> None:
        """Compare the store's position with the log's ends: below is retention, above is another topic."""
        self.forget()
        marks, next_offset = self._cluster.watermarks(partition), self._next[partition]
        if next_offset < marks.low:
            gap = Gap(next_offset, marks.low - 1, "expired")
            self._store([Slice(partition, next_offset, marks.low, gaps=[gap])])
        elif next_offset <= marks.high:
            cause = f"offset {next_offset} is called out of range, between {marks.low} and {marks.high}"
            raise ServiceUnavailable("kafka", f"partition {partition}: {cause}")

    def _check(self) -> None:
        """See every CHECK_INTERVAL_S whether it is still the same topic, has new partitions, and each one moves."""
        if self._incarnation is None:
            return
        if self._noted is not None:
            self._take_answer(self._incarnation, self._noted)
        elif time.monotonic() - self._checked_at >= CHECK_INTERVAL_S:
            self._checked_at = time.monotonic()
            self._noted = dict(self._next)
            self._cluster.ask(self._incarnation)
            self._meter.oldest(self._history.oldest_logged_ms())
            lagging = [partition for partition in self._next if self._meter.lag(partition)]
            if self.stalls.look(lagging, self._next) or any(map(self._meter.ends_below, self._standing_still())):
                self.forget()

    def _standing_still(self) -> list[int]:
        """Give the partitions of which nothing was stored since the last check."""
        before, self._stood = self._stood, dict(self._next)
        return [partition for partition, offset in self._next.items() if before.get(partition) == offset]

    def _take_answer(self, known: Incarnation, noted: dict[int, int]) -> None:
        """Confirm the positions that were noted before the question, if the answer is: still the same topic."""
        now = self._cluster.answer(known)
        if now is None:
            return
        self._noted = None
        if now != known:
            if {*now.partitions} > {*known.partitions} and now.topic_id == known.topic_id:
                self._log.info("partitions_added", partitions=sorted({*now.partitions} - {*known.partitions}))
            self.forget()
            return
        moved = {self._rows[p].id: at for p, at in noted.items() if at > self._confirmed[p]}
        if moved:
            self._history.confirm(moved)
            self._confirmed.update(noted)

    def report(self) -> None:
        """Log what the Kafka clients have told since the last call."""
        for error in self._reader.commit_errors:
            event = "group_in_use" if error.name() == "UNKNOWN_MEMBER_ID" else "commit_failed"
            self._meter.commit_failed(error.name())
            self._limited.warning(self._log, event, error.str(), group=self._config.kafka.group_id)
        self._reader.commit_errors.clear()
        self._cluster.listen()
        for notes in (self._reader.notes, self._cluster.notes):
            for line in notes.taken():
                self._limited.say(line.level, self._log, "kafka_client", line.text)
