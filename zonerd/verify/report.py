"""What a check found, as figures, as lines and as one JSON object."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from zonerd.errors import ANSWER_IS_NO, DONE, SERVICE_UNAVAILABLE
from zonerd.store.history import Partition
from zonerd.store.outcomes import Check

SCHEMA: Final = 1
MAX_NAMED: Final = 20
"""Differences that are named; the others are counted."""

Result = Literal["equal", "different", "unavailable", "disabled"]


class Difference(NamedTuple):
    """One thing that is not as promised, and where, as far as it has a place."""

    check: Check
    topic: str | None
    partition: int | None
    offset: int | None
    what: str

    def __str__(self) -> str:
        place = [] if self.partition is None else [f"{self.topic}/{self.partition}"]
        place += [] if self.offset is None else [f"offset {self.offset}"]
        return ": ".join([self.check, *([", ".join(place)] if place else []), self.what])


class Part(NamedTuple):
    """What became of one check: `said` is its line, `figures` its part of the JSON object."""

    check: Check
    result: Result
    said: str
    figures: Mapping[str, Any]
    differences: Sequence[Difference] = ()
    differing: int = 0


class Findings:
    """The differences that one check finds: all counted, the first few kept."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.differences: list[Difference] = []
        self.total = 0

    def differ(self, what: str, row: Partition | None = None, offset: int | None = None) -> None:
        """Note a difference; one in a closed partition says so."""
        self.total += 1
        if len(self.differences) < MAX_NAMED:
            topic, partition = (None, None) if row is None else (row.topic, row.partition)
            closed = "" if row is None or row.open else f" (in the closed row {row.id})"
            self.differences.append(Difference(self.check, topic, partition, offset, what + closed))

    def part(self, said: str, figures: Mapping[str, Any]) -> Part:
        """Give the outcome, with its line and figures."""
        result: Result = "different" if self.total else "equal"
        return Part(self.check, result, said, figures, tuple(self.differences), self.total)


class Report(NamedTuple):
    """All four checks; `as_of` tells for each open partition up to which offset the word holds."""

    quick: bool
    as_of: Mapping[str, int]
    parts: Sequence[Part]

    @property
    def exit_code(self) -> int:
        """1 as soon as anything differs, else 69 if something could not be checked, else 0."""
        results = {part.result for part in self.parts}
        if "different" in results:
            return ANSWER_IS_NO
        return SERVICE_UNAVAILABLE if "unavailable" in results else DONE

    @property
    def named(self) -> list[Difference]:
        """The first differences, a fair share of each check."""
        named: list[Difference] = []
        for at in range(MAX_NAMED):
            named += [part.differences[at] for part in self.parts if at < len(part.differences)]
        kept = named[:MAX_NAMED]
        return [difference for part in self.parts for difference in part.differences if difference in kept]

    def lines(self) -> Iterator[str]:
        """Give the report for people: a line a check, up to where it holds, then the differences."""
        for part in self.parts:
            differing = f"{part.differing:,} differ · " if part.differing else ""
            yield f"{part.check:<8} {part.result:<12} {differing}{part.said}"
        if self.as_of:
            yield "as of    " + ", ".join(f"{place} {offset:,}" for place, offset in self.as_of.items())
        differing_in_all = sum(part.differing for part in self.parts)
        yield from (str(difference) for difference in self.named)
        if differing_in_all > len(self.named):
            yield f"and {differing_in_all - len(self.named):,} more"

    def as_object(self) -> dict[str, Any]:
        """Give the report for programs; fields are only ever added.

        `schema` (1), `quick`, `exit_code`; `as_of`: `<topic>/<partition>` → the offset below which this holds;
        `checks`: `broker`, `history`, `answers` and `redis`, each with `result` (equal, different, unavailable or
        disabled), `differing` (how many differences), `said` (its line), and, unless it is unavailable or disabled,
        its figures:

        - broker: `cluster_id`, `topic`, `topic_id`; `events` and `dead_letters` compared; `in_gaps_by_hand`: records
          stepped over by hand; `committed_partitions`; `not_stored_yet`: offsets behind the noted ones;
          `not_checkable`: stored records that are `expired` or `compacted` at the broker, or of `other_incarnations`.
        - history: `offsets`, and the `events`, `dead_letters` and `gap_offsets` that they are; `partitions` (rows);
          `integrity` (ok, damaged, skipped, or given up) and how long it took, `integrity_s`.
        - answers: `fold`, `events`, `counts`, `offsets_behind`; `positions`: up to where each partition is folded.
        - redis: `fold`, `state`, `age_s`, `events`, `keys`, `positions`; the first two are null if it has no `as_of`.

        `differences`: the first MAX_NAMED, each with `check`, `topic`, `partition`, `offset` (null where it has no such
        place) and `what`.
        """
        return {
            "schema": SCHEMA,
            "quick": self.quick,
            "exit_code": self.exit_code,
            "as_of": dict(self.as_of),
            "checks": {
                part.check: {"result": part.result, "differing": part.differing, "said": part.said, **part.figures}
                for part in self.parts
            },
            "differences": [difference._asdict() for difference in self.named],
        }
