"""How any client of ours connects, and what its callbacks tell."""

import logging
import re
from collections import deque
from contextlib import suppress
from typing import Any, Final, NamedTuple

import confluent_kafka
import msgspec
from confluent_kafka import KafkaError, KafkaException

from zonerd import config
from zonerd.errors import ConfigurationRefused, ServiceUnavailable

REQUEST_TIMEOUT_S: Final = 5.0
"""How long one question to the broker may take, below what a stop may take."""

_KEPT_LINES: Final = 20
_DIGITS: Final = re.compile(r"[0-9]+")
_CAUSES: Final = (
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - how librdkafka names its own errors
    KafkaError._SSL,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError._TRANSPORT,  # noqa: SLF001
)
"""Why a connection is not made, what says most of it first: what follows from it comes too."""
_OTHER_PROTOCOL: Final = (
    "the broker closes the connection at once; is kafka.properties.security.protocol that of this port?"
)
_IN_OUR_WORDS: Final = {
    "certificate verify failed": (
        "the broker's certificate is of no authority in ssl.ca.location, or for another host name than this"
    ),
    "SSL connection closed by peer": _OTHER_PROTOCOL,
}
FORBIDDEN: Final = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
"""What a broker says where an ACL is missing."""


class Line(NamedTuple):
    """One of librdkafka's own log lines."""

    level: config.Level
    text: str


class _Broker(msgspec.Struct):
    """What the statistics tell of the connections to a broker since this client knows it."""

    source: str = ""
    connects: int = 0
    disconnects: int = 0

    @property
    def is_node(self) -> bool:
        """True for a broker that records come from, and not for the group's coordinator or an address to ask."""
        return self.source == "learned"


class _Statistics(msgspec.Struct):
    """What is looked at of librdkafka's statistics."""

    brokers: dict[str, _Broker] = {}


_STATISTICS: Final = msgspec.json.Decoder(_Statistics)


class Notes(logging.Handler):
    """What a client's callbacks told, for its owner's loop to read: a callback never raises and never writes.

    `connections_lost` only grows, perhaps by more than one at a loss; `lines` are librdkafka's own log lines, the
    oldest dropped first. `cause` says why no connection is made; whoever sees that one is made clears it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connections_lost = 0
        self._connections: dict[str, tuple[int, int]] = {}
        self.cause = ""
        self._cause_rank = 0
        self.lines: deque[Line] = deque(maxlen=_KEPT_LINES)

    def on_error(self, error: KafkaError) -> None:
        """Note why a connection is not made, in words that stay the same while that does."""
        if error.code() in _CAUSES:
            self._note_cause(_cause(error), _CAUSES.index(error.code()))

    def on_statistics(self, text: str) -> None:
        """Note a connection that was lost without a line, as where librdkafka begins anew with all brokers."""
        with suppress(msgspec.MsgspecError):
            brokers = _STATISTICS.decode(text).brokers.items()
            known = {name: (one.connects, one.disconnects) for name, one in brokers if one.connects and one.is_node}
            before, self._connections = self._connections, known
            self.connections_lost += any(known.get(name) != seen for name, seen in before.items())

    def emit(self, line: logging.LogRecord) -> None:
        """Note one of librdkafka's log lines, unless it says again what the last one did."""
        text = line.getMessage()
        if text.startswith("FAIL ") and " in state UP" in text:
            self.connections_lost += 1  # the error callback hears only of connections that could not be made
        if text.startswith("FAIL ") and " in state APIVERSION_QUERY" in text:
            self._note_cause(_OTHER_PROTOCOL, len(_CAUSES))  # this the error callback does not hear of
        if text.startswith("CONFWARN ") and "will be ignored by this" in text:
            return  # kafka.properties is one list for producers and consumers
        if not self.lines or _DIGITS.sub("", self.lines[-1].text) != _DIGITS.sub("", text):
            self.lines.append(Line(_level(line.levelno), text))

    def _note_cause(self, cause: str, rank: int) -> None:
        if not self.cause or rank < self._cause_rank:
            self.cause, self._cause_rank = cause, rank

    def taken(self) -> list[Line]:
        """Give the lines that were noted since the last call; those that come meanwhile are for the next one."""
        return [self.lines.popleft() for _ in range(len(self.lines))]


def library_version() -> str:
    """Give the version of librdkafka that is used."""
    return str(confluent_kafka.libversion()[0])


def properties(kafka: config.Kafka, sasl_password: str | None, notes: Notes) -> dict[str, Any]:
    """Give the librdkafka properties that all our clients share; the user's own come first."""
    shared: dict[str, Any] = {
        **kafka.properties,
        "bootstrap.servers": kafka.bootstrap_servers,
        "error_cb": notes.on_error,
        "logger": _logger(notes),
        "log_level": 6,
        "log.connection.close": True,  # a lost connection is known by its line only
    }
    shared.setdefault("client.id", "zonerd")
    shared.setdefault("socket.keepalive.enable", "true")
    shared.setdefault("reconnect.backoff.max.ms", "1000")
    if sasl_password is not None:
        shared["sasl.password"] = sasl_password
    return shared


def build(client: type[Any], values: dict[str, Any]) -> Any:  # noqa: ANN401 - whichever client it is
    """Make a client; raises ConfigurationRefused when librdkafka does not know or take a property."""
    try:
        return client(values)
    except KafkaException as error:
        raise ConfigurationRefused([f"kafka.properties: {_scrubbed(error, values)}"]) from None
    except (TypeError, ValueError) as error:
        raise ConfigurationRefused([f"kafka.properties: {_scrubbed(error, values)}"]) from None


def unavailable(error: KafkaException | KafkaError) -> ServiceUnavailable:
    """Give the error of ours for one of librdkafka's."""
    inner = error.args[0] if isinstance(error, KafkaException) else error
    return ServiceUnavailable("kafka", inner.str() if isinstance(inner, KafkaError) else str(inner))


def _cause(error: KafkaError) -> str:
    """Give what librdkafka says without its own place and times; of certificates it does not say what is to be done."""
    text = re.sub(r" \(after \d+ms in state \w+[^)]*\)$", "", error.str())
    text = re.sub(r"^\S+/(bootstrap|\d+): ", "", text)
    return next((ours for theirs, ours in _IN_OUR_WORDS.items() if theirs in text), text)


def _scrubbed(error: Exception, values: dict[str, Any]) -> str:
    text = error.args[0].str() if error.args and isinstance(error.args[0], KafkaError) else str(error)
    for value in values.values():
        if isinstance(value, str) and len(value) > 1:
            text = text.replace(f'"{value}"', "(value)")
    return text


def _level(number: int) -> config.Level:
    if number >= logging.WARNING:
        return "error" if number >= logging.ERROR else "warning"
    return "info" if number >= logging.INFO else "debug"


def _logger(notes: Notes) -> logging.Logger:
    logger = logging.Logger("librdkafka")  # noqa: LOG001 - one a client, outside the tree of loggers
    logger.addHandler(notes)
    return logger
