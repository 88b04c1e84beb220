"""Where events come from before the topic: nothing, a simulation, a file that is followed."""

from typing import NamedTuple, Protocol, Self

from zonerd import config
from zonerd.log import Log


class Place(NamedTuple):
    """Where a line stands: the how-manieth file since the start, and its first byte and the one behind it."""

    file: int
    offset: int
    end: int


class Line(NamedTuple):
    """One line without its line end, as the source has it; `value` is None where it is too long to be kept."""

    value: bytes | None
    place: Place


class Source(Protocol):
    """What the producer takes lines from.

    `waiting_for` says why nothing can be taken now ('': nothing is wrong); `pause_s` is how long to wait before the
    next `take` when the last one gave nothing.
    """

    waiting_for: str
    pause_s: float

    def take(self) -> list[Line]:
        """Give the next lines, some hundred kilobytes at most; none when there are none now."""

    def ack(self, place: Place) -> None:
        """Note that all up to this line need not be given again."""

    def path_of(self, place: Place) -> str | None:
        """Give the path under which the file of a line that is not settled was opened; None where there is none."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Keep the position."""


def open_source(settings: config.Config, max_line_bytes: int, log: Log) -> Source:
    """Give the source that the configuration names."""
    from zonerd.sources.followed import FollowedFile  # noqa: PLC0415 - they need the names above
    from zonerd.sources.simulation import NoSource, Simulation  # noqa: PLC0415

    producer = settings.producer
    if producer.source == "simulate":
        return Simulation(producer.simulate)
    if producer.source == "file":
        return FollowedFile(producer.path, settings.data_dir, max_line_bytes, log)
    return NoSource()
