"""The configuration: every key, its default, and what it may be."""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args
from urllib.parse import parse_qs, urlsplit

import msgspec

from zonerd.errors import ConfigurationRefused

MAX_SOCKET_PATH_BYTES: Final = 80
"""A socket's path is bound with a pid behind it first, and macOS takes 104 bytes."""

MAX_CONSUMERS: Final = 256

Format = Literal["auto", "console", "json"]
Level = Literal["debug", "info", "warning", "error"]

secrets_read: Final[set[str]] = set()
"""What `read_secret` has given in this process: no log line may show it."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the file."""


class Store(_Section, frozen=True):
    """Where the history and the answers are kept."""

    data_dir: str = ""
    run_dir: str = ""
    log_dir: str = ""
    min_free_bytes: int = 268_435_456
    max_wal_bytes: int = 1_073_741_824


class Kafka(_Section, frozen=True):
    """The broker and the topic."""

    bootstrap_servers: str = "localhost:9092"
    topic: str = "user_activity"
    group_id: str = "zoner_group"
    sasl_password_file: str = ""
    create_topic: bool = True
    topic_partitions: int = 4
    topic_replication_factor: int = -1
    properties: dict[str, str] = {}


class Simulate(_Section, frozen=True):
    """What the source `simulate` makes up."""

    rate_per_s: float = 10.0
    users: int = 100
    seed: int = 0
    activities: tuple[str, ...] = ("sleep", "meal", "light_exposure")


class Producer(_Section, frozen=True):
    """Where the supervised producer's events come from."""

    source: Literal["none", "simulate", "file"] = "none"
    path: str = ""
    simulate: Simulate = Simulate()


class Consumer(_Section, frozen=True):
    """How the topic is read."""

    processes: int = 1
    start_from: Literal["earliest", "latest"] = "earliest"
    on_expired_offsets: Literal["record", "stop"] = "record"
    on_topic_recreated: Literal["stop", "follow"] = "stop"
    batch_events: int = 2000
    batch_wait_s: float = 0.05
    batch_bytes: int = 16_777_216
    max_event_bytes: int = 1_048_576
    no_progress_s: float = 60.0


class Aggregator(_Section, frozen=True):
    """How answers are folded and published."""

    interval_s: float = 0.5
    max_activities: int = 1000


class Redis(_Section, frozen=True):
    """Where answers are published."""

    enabled: bool = True
    url: str = "redis://localhost:6379/0"
    password_file: str = ""
    ssl_ca_file: str = ""
    allow_plaintext: bool = False
    prefix: str = "zonerd:"
    summary_key: str = "activity_summary"
    timeout_s: float = 5.0


class Ports(_Section, frozen=True):
    """Where each process listens; 0 is any, consumer N listens N higher than `consumer`."""

    watchdog: int = 19300
    producer: int = 19301
    aggregator: int = 19302
    consumer: int = 19310


class Http(_Section, frozen=True):
    """Where /metrics, /healthz and /readyz are answered."""

    host: str = "127.0.0.1"
    port: Ports = Ports()


class Watchdog(_Section, frozen=True):
    """When a process is started again."""

    stall_s: float = 60.0
    retry_fatal_s: float = 60.0


class Log(_Section, frozen=True):
    """What is said while it works."""

    level: Level = "info"
    format: Format = "auto"
    journal: Literal["auto", "on", "off"] = "auto"
    progress_s: float = 60.0


class Config(msgspec.Struct, frozen=True):
    """The whole configuration, one section for each service or process; paths are absolute."""

    store: Store = Store()
    kafka: Kafka = Kafka()
    producer: Producer = Producer()
    consumer: Consumer = Consumer()
    aggregator: Aggregator = Aggregator()
    redis: Redis = Redis()
    http: Http = Http()
    watchdog: Watchdog = Watchdog()
    log: Log = Log()

    @property
    def data_dir(self) -> Path:
        """The folder of the two databases."""
        return Path(self.store.data_dir)

    @property
    def run_dir(self) -> Path:
        """The folder of the socket and of what lives only while zonerd runs."""
        return Path(self.store.run_dir)

    @property
    def log_dir(self) -> Path:
        """The folder of the supervised processes' log files."""
        return Path(self.store.log_dir)

    @property
    def processes(self) -> tuple[str, ...]:
        """The supervised processes in starting order, by their names in supervisord, logs and ports.json."""
        numbers = range(self.consumer.processes)
        return ("watchdog", "aggregator", *(self.consumer_name(number) for number in numbers), "producer")

    def consumer_name(self, number: int) -> str:
        """Give the name of consumer `number`: `consumer` where it is the only one."""
        return "consumer" if self.consumer.processes == 1 else f"consumer-{number}"

    def port_of(self, process: str) -> int:
        """Give the port of one of `processes`; 0: any, which ports.json tells."""
        role, _, number = process.partition("-")
        port: int = getattr(self.http.port, role)
        return port + int(number or 0) if port else 0


class Layer(NamedTuple):
    """One source of values: where it comes from, and `section.key` → value."""

    origin: str
    values: Mapping[str, object]


class Loaded(NamedTuple):
    """A configuration, and for each `section.key` that is not a default, where its value comes from."""

    config: Config
    origins: Mapping[str, str]
    path: Path | None


SECRETS: Final = frozenset(
    {
        "sasl.oauthbearer.client.secret", "sasl.oauthbearer.config", "sasl.password", "ssl.key.password", "ssl.key.pem",
        "ssl.keystore.password", "ssl_key",
    }
)  # fmt: skip
"""Kafka properties that come from a file only, never from the configuration."""

REFUSED_PROPERTIES: Final = frozenset(
    {
        "acks", "auto.commit.enable", "auto.commit.interval.ms", "auto.offset.reset", "bootstrap.servers",
        "check.crcs", "consume_cb", "enable.auto.commit", "enable.auto.offset.store", "enable.idempotence",
        "enable.partition.eof", "group.id", "group.instance.id", "group.protocol", "isolation.level",
        "log.connection.close", "log_level", "max.in.flight", "max.in.flight.requests.per.connection",
        "metadata.broker.list", "on_commit", "on_delivery", "request.required.acks", "statistics.interval.ms",
        "stats_cb", "error_cb", "logger", "throttle_cb", "transactional.id",
    }
)  # fmt: skip
"""Kafka properties on which zonerd's promises rest; they have the values that the promises need."""


def load(path: Path | None, environment: Mapping[str, str], overrides: Sequence[str]) -> Loaded:
    """Merge defaults < file < environment < overrides (`section.key=value`).

    Raises ConfigurationRefused with one line an error; a line names the key, never the value.
    """
    layers = []
    if path is not None:
        layers.append(_file_layer(path))
    layers.append(_environment_layer(environment))
    layers.append(_override_layer(overrides))
    problems: list[str] = []
    config = _convert(layers, problems)
    config = _with_paths(config, path, environment)
    problems.extend(_complaints(config))
    if problems:
        raise ConfigurationRefused(problems)
    origins = {key: layer.origin for layer in layers for key in layer.values}
    return Loaded(config, origins, path)


def flatten(config: Config) -> dict[str, object]:
    """Give `section.key` → value, in the order of the reference file; tables of a section stay whole."""
    return {
        f"{section}.{key}": value
        for section, values in msgspec.to_builtins(config).items()
        for key, value in values.items()
    }


def read_secret(file: str, credential: str, environment: Mapping[str, str]) -> str | None:
    """Read a secret from its file, else from systemd's credential of this name; None where neither is.

    Raises ConfigurationRefused when the file cannot be read.
    """
    directory = environment.get("CREDENTIALS_DIRECTORY")
    path = Path(file) if file else Path(directory, credential) if directory else None
    if path is None or (not file and not path.exists()):
        return None
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except OSError as error:
        problem = error.strerror or type(error).__name__
    else:
        secrets_read.add(secret)
        return secret
    key = _SECRET_FILES[credential] if file else f"the credential {credential}"
    raise ConfigurationRefused([f"{key}: the file cannot be read: {problem}"])


_SECRET_FILES: Final = {"kafka_sasl_password": "kafka.sasl_password_file", "redis_password": "redis.password_file"}


def _file_layer(path: Path) -> Layer:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationRefused([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigurationRefused([f"{path}: not UTF-8"]) from None
    except RecursionError:
        raise ConfigurationRefused([f"{path}: nested too deeply"]) from None
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ConfigurationRefused([f"{path}: not TOML: {_without_values(error)}"]) from None
    values: dict[str, object] = {}
    for section, table in tables.items():
        if isinstance(table, dict):
            values.update({f"{section}.{key}": value for key, value in table.items()})
        else:
            values[section] = table
    return Layer(str(path), values)


def _without_values(error: Exception) -> str:
    place = re.search(r"\(at .*\)$", str(error))
    return place.group(0) if place else "unreadable"


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    values: dict[str, object] = {}
    for name, value in environment.items():
        section, separator, key = name.removeprefix("ZONERD_").lower().partition("__")
        if name.startswith("ZONERD_") and separator:
            values[f"{section}.{_key_in_environment(section, key)}"] = value
    return Layer("the environment", values)


def _key_in_environment(section: str, key: str) -> str:
    """Give the key that a variable names; of a Kafka property `_` is every dot: no name of a variable may have one."""
    name, separator, inner = key.partition("__")
    if (section, name) == ("kafka", "properties"):
        inner = inner.replace("_", ".")
    return f"{name}.{inner}" if separator else name


def _override_layer(overrides: Sequence[str]) -> Layer:
    values: dict[str, object] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or "." not in key:
            raise ConfigurationRefused([f"-X {key}: section.key=value is wanted"])
        values[key.strip()] = value
    return Layer("the command line", values)


def _convert(layers: Sequence[Layer], problems: list[str]) -> Config:
    sections: dict[str, dict[str, object]] = {name: {} for name in Config.__struct_fields__}
    for layer in layers:
        for name, value in layer.values.items():
            section, _, key = name.partition(".")
            if section not in sections:
                problems.append(f"{layer.origin}: {section}: unknown section")
            else:
                _convert_key(sections[section], section, key, value, layer.origin, problems)
    types = {field.name: field.type for field in msgspec.structs.fields(Config)}
    return Config(**{name: types[name](**values) for name, values in sections.items()})


def _convert_key(  # noqa: PLR0913 - one key, where it goes, and whom to blame
    into: dict[str, object], section: str, key: str, value: object, origin: str, problems: list[str]
) -> None:
    kinds = {field.name: field.type for field in msgspec.structs.fields(_SECTIONS[section])}
    name, _, inner = key.partition(".")
    if name not in kinds:
        problems.append(f"{origin}: {section}.{key}: unknown key")
        return
    if inner:  # kafka.properties.x=y, http.port.consumer=0: one value of a table
        value = {**msgspec.to_builtins(into.get(name, {})), inner: value}
    elif isinstance(value, str) and kinds[name] in (Simulate, Ports, dict[str, str]):
        value = _parse_table(value)
    if isinstance(value, dict) and kinds[name] == dict[str, str]:
        value = dict(_properties(value))
    try:
        into[name] = msgspec.convert(value, kinds[name], strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        problems.append(f"{origin}: {section}.{key}: {_wanted(error, kinds[name])}")


def _properties(table: Mapping[str, object], within: str = "") -> Iterator[tuple[str, object]]:
    """Give the properties of a table by name: `security.protocol = "ssl"` is a table in a table, if unquoted."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _properties(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", _as_property(value)


def _as_property(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _parse_table(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _wanted(error: Exception, wanted: object) -> str:
    """Keep of msgspec's message what was wanted: an invalid value itself would be printed otherwise."""
    text = str(error)
    if text.startswith("Object contains unknown field"):
        return "has an unknown key"
    kind = re.match(r"Expected `([^`]*)`", text)
    if kind:
        return f"must be {_KINDS.get(kind.group(1), kind.group(1))}"
    if "enum value" in text and get_args(wanted):
        return f"must be one of {', '.join(get_args(wanted))}"
    return "has a value it may not have"


_KINDS: Final = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false"}
_SECTIONS: Final = {field.name: field.type for field in msgspec.structs.fields(Config)}


def _with_paths(config: Config, path: Path | None, environment: Mapping[str, str]) -> Config:
    folder = path.resolve().parent if path is not None else Path.cwd()

    def absolute(name: str) -> str:
        return os.path.normpath(folder / Path(name).expanduser()) if name else ""

    state = Path(environment.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "zonerd"
    data_dir = absolute(config.store.data_dir) or _first(environment, "STATE_DIRECTORY") or str(state)
    run_dir = absolute(config.store.run_dir) or _first(environment, "RUNTIME_DIRECTORY") or _default_run_dir(data_dir)
    log_dir = absolute(config.store.log_dir) or _first(environment, "LOGS_DIRECTORY") or f"{data_dir}/log"
    replace = msgspec.structs.replace
    return replace(
        config,
        store=replace(config.store, data_dir=data_dir, run_dir=run_dir, log_dir=log_dir),
        kafka=replace(config.kafka, sasl_password_file=absolute(config.kafka.sasl_password_file)),
        producer=replace(config.producer, path=absolute(config.producer.path)),
        redis=replace(
            config.redis,
            password_file=absolute(config.redis.password_file),
            ssl_ca_file=absolute(config.redis.ssl_ca_file),
        ),
    )


def _first(environment: Mapping[str, str], name: str) -> str:
    """Give the first of the directories that systemd gives a unit; '' where there is none."""
    return environment.get(name, "").partition(":")[0]


def _default_run_dir(data_dir: str) -> str:
    run_dir = os.path.join(data_dir, "run")  # noqa: PTH118 - text in, text out
    if len(os.fsencode(run_dir)) <= MAX_SOCKET_PATH_BYTES:
        return run_dir
    import hashlib  # noqa: PLC0415 - seldom needed

    return f"/tmp/zonerd-{os.getuid()}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]}"  # noqa: S108


Check = tuple[str, Callable[[Config], bool], str]

CHECKS: Final[tuple[Check, ...]] = (
    ("store.min_free_bytes", lambda c: c.store.min_free_bytes >= 0, "must be at least 0"),
    ("store.max_wal_bytes", lambda c: c.store.max_wal_bytes >= 16_777_216, "must be at least 16777216"),
    ("kafka.bootstrap_servers", lambda c: bool(c.kafka.bootstrap_servers.strip()), "must name a broker"),
    (
        "kafka.topic",
        lambda c: re.fullmatch(r"[A-Za-z0-9._-]{1,249}", c.kafka.topic) is not None and c.kafka.topic.strip(".") != "",
        "must be 1 to 249 of A-Z a-z 0-9 . _ -",
    ),
    ("kafka.group_id", lambda c: bool(c.kafka.group_id), "must not be empty"),
    ("kafka.topic_partitions", lambda c: 1 <= c.kafka.topic_partitions <= 10_000, "must be 1 to 10000"),
    (
        "kafka.topic_replication_factor",
        lambda c: c.kafka.topic_replication_factor == -1 or 1 <= c.kafka.topic_replication_factor <= 100,
        "must be -1 (the broker's default) or 1 to 100",
    ),
    ("producer.path", lambda c: c.producer.source != "file" or bool(c.producer.path), "is needed by source = file"),
    ("producer.simulate", lambda c: 0 < c.producer.simulate.rate_per_s <= 1e6, "rate_per_s must be above 0, to 1e6"),
    ("producer.simulate", lambda c: 1 <= c.producer.simulate.users <= 2**31, "users must be 1 to 2^31"),
    ("producer.simulate", lambda c: bool(c.producer.simulate.activities), "activities must name one at least"),
    ("consumer.processes", lambda c: 1 <= c.consumer.processes <= MAX_CONSUMERS, "must be 1 to 256"),
    ("consumer.batch_events", lambda c: 1 <= c.consumer.batch_events <= 100_000, "must be 1 to 100000"),
    ("consumer.batch_wait_s", lambda c: 0 < c.consumer.batch_wait_s <= 10, "must be above 0, to 10"),
    ("consumer.batch_bytes", lambda c: c.consumer.batch_bytes >= 1024, "must be at least 1024"),
    (
        "consumer.max_event_bytes",
        lambda c: 1024 <= c.consumer.max_event_bytes <= 64 * 1024 * 1024,
        "must be 1024 to 67108864",
    ),
    ("consumer.no_progress_s", lambda c: c.consumer.no_progress_s >= 1, "must be at least 1"),
    ("aggregator.interval_s", lambda c: 0.01 <= c.aggregator.interval_s <= 3600, "must be 0.01 to 3600"),
    ("aggregator.max_activities", lambda c: 1 <= c.aggregator.max_activities <= 100_000, "must be 1 to 100000"),
    (
        "redis.prefix",
        lambda c: re.fullmatch(r"[A-Za-z0-9_.:-]{0,63}:", c.redis.prefix) is not None,
        "must be 1 to 64 of A-Z a-z 0-9 _ . : - and end in :",
    ),
    ("redis.summary_key", lambda c: bool(c.redis.summary_key), "must not be empty"),
    (
        "redis.summary_key",
        lambda c: c.redis.prefix == "zonerd:" or c.redis.summary_key != "activity_summary",
        "must be another one where redis.prefix is another one",
    ),
    (
        "redis.summary_key",
        lambda c: not c.redis.summary_key.startswith(c.redis.prefix),
        "must not begin with redis.prefix",
    ),
    ("redis.timeout_s", lambda c: 0.1 <= c.redis.timeout_s <= 5, "must be 0.1 to 5"),
    (
        "http.host",
        lambda c: re.fullmatch(r"[A-Za-z0-9_.:%-]+", c.http.host) is not None,
        "must be a host or an address",
    ),
    ("http.port", lambda c: all(0 <= port <= 65535 for port in _ports(c)), "must be 0 (any) to 65535"),
    ("http.port", lambda c: _all_differ(_ports(c)), "must be another one for each process"),
    ("watchdog.stall_s", lambda c: 1 <= c.watchdog.stall_s <= 86_400, "must be 1 to 86400"),
    (
        "watchdog.retry_fatal_s",
        lambda c: 0 <= c.watchdog.retry_fatal_s <= 600,
        "must be 0 (never) to 600",
    ),
    ("log.progress_s", lambda c: c.log.progress_s >= 1, "must be at least 1"),
)
"""What a value must be beyond its type: the key, whether it holds, and the rule in words."""


def _ports(config: Config) -> list[int]:
    """Give the port of each process, consumers one by one."""
    if not 1 <= config.consumer.processes <= MAX_CONSUMERS:
        return []
    return [config.port_of(process) for process in config.processes]


def _all_differ(ports: Sequence[int]) -> bool:
    chosen = [port for port in ports if port]
    return len(chosen) == len(set(chosen))


def _complaints(config: Config) -> Iterator[str]:
    for key, holds, rule in CHECKS:
        if not holds(config):
            yield f"{key}: {rule}"
    for name in sorted(config.kafka.properties):
        if name in SECRETS:
            yield f"kafka.properties.{name}: a secret belongs in a file (kafka.sasl_password_file)"
        elif name in REFUSED_PROPERTIES or name.startswith("test."):
            yield f"kafka.properties.{name}: zonerd's promises need a value of its own here"
    yield from _redis_complaints(config.redis)


def _redis_complaints(redis: Redis) -> Iterator[str]:
    try:
        url = urlsplit(redis.url)
        scheme, host, password, _ = url.scheme, url.hostname, url.password, url.port
        options = parse_qs(url.query, keep_blank_values=True)
    except ValueError:
        yield "redis.url: not a URL"
        return
    if scheme not in ("redis", "rediss", "unix"):
        yield "redis.url: must begin with redis://, rediss:// or unix://"
    if password is not None or "password" in options:
        yield "redis.url: a password belongs in a file (redis.password_file)"
    if options.keys() - {"db", "password"}:
        yield "redis.url: takes no option but db"
    numbers = [*options.get("db", ()), url.path.strip("/") if scheme != "unix" else ""]
    if any(re.fullmatch("[0-9]*", number) is None for number in numbers):
        yield "redis.url: a database is a number"
    if scheme == "unix" and not url.path:
        yield "redis.url: unix:// must name a socket"
    if scheme == "redis" and not _is_loopback(host or "localhost") and not redis.allow_plaintext:
        yield "redis.url: beyond this machine rediss:// is wanted, or redis.allow_plaintext = true"


def warnings(config: Config) -> Iterator[str]:
    """Give, a line each, what is allowed and yet not safe."""
    protocol = config.kafka.properties.get("security.protocol", "plaintext").lower()
    places = [place.strip().rpartition("://")[2] for place in config.kafka.bootstrap_servers.split(",")]
    hosts = [re.sub(r":[0-9]*$", "", place).strip("[]") for place in places]
    if protocol not in ("ssl", "sasl_ssl") and not all(map(_is_loopback, hosts)):
        yield "kafka.bootstrap_servers: beyond this machine without TLS; set kafka.properties.security.protocol"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
