"""The configuration: what is refused and how it is said, whose value wins, and the files that show it."""

import json
import random
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from zonerd import cli
from zonerd.config import REFUSED_PROPERTIES, SECRETS, Config, flatten, load, read_secret, warnings
from zonerd.errors import REFUSED, ConfigurationRefused

CLONE = Path(__file__).parents[2]
REFERENCE = files("zonerd").joinpath("reference.toml").read_text(encoding="utf-8")

BAD = [
    # a file; the key that the one line must name; what must not be in it
    ('[store]\ndata_dri = "hunter2"', "store.data_dri", "hunter2"),
    ("[store]\ndata_dir = 7777", "store.data_dir", "7777"),
    ('[store]\nmin_free_bytes = "hunter2"', "store.min_free_bytes", "hunter2"),
    ("[store]\nmin_free_bytes = -7777", "store.min_free_bytes", "7777"),
    ('[shop]\nkey = "hunter2"', "shop", "hunter2"),
    ('store = "hunter2"', "store", "hunter2"),
    ('[kafka]\nbootstrap_servers = " "', "kafka.bootstrap_servers", '" "'),
    ('[kafka]\nbootstrap_servers = ["hunter2"]', "kafka.bootstrap_servers", "hunter2"),
    ('[kafka]\ntopic = "hunter 2"', "kafka.topic", "hunter"),
    ('[kafka]\ntopic = ".."', "kafka.topic", '".."'),
    ('[kafka]\ntopic = ""', "kafka.topic", '""'),
    ('[kafka]\ngroup_id = ""', "kafka.group_id", '""'),
    ("[kafka]\ntopic_partitions = 0", "kafka.topic_partitions", " 0"),
    ("[kafka]\ntopic_partitions = 10.5", "kafka.topic_partitions", "10.5"),
    ("[kafka]\ntopic_replication_factor = 7777", "kafka.topic_replication_factor", "7777"),
    ('[kafka]\ncreate_topic = "hunter2"', "kafka.create_topic", "hunter2"),
    ('[kafka.properties]\n"group.id" = "hunter2"', "kafka.properties.group.id", "hunter2"),
    ('[kafka.properties]\n"sasl.password" = "hunter2"', "kafka.properties.sasl.password", "hunter2"),
    ('[kafka.properties]\nsasl.password = "hunter2"', "kafka.properties.sasl.password", "hunter2"),
    ('[kafka.properties]\n"test.mock.num.brokers" = 7777', "kafka.properties.test.mock.num.brokers", "7777"),
    ('[kafka.properties]\n"enable.idempotence" = false', "kafka.properties.enable.idempotence", "false"),
    ('[kafka.properties]\nx = ["hunter2"]', "kafka.properties", "hunter2"),
    ('[kafka]\nproperties = "hunter2"', "kafka.properties", "hunter2"),
    ('[producer]\nsource = "hunter2"', "producer.source", "hunter2"),
    ('[producer]\nsource = "file"', "producer.path", "x" * 99),
    ("[producer]\nsimulate = { rate_per_s = -7777.0 }", "producer.simulate", "7777"),
    ("[producer]\nsimulate = { users = 0 }", "producer.simulate", " = 0"),
    ("[producer]\nsimulate = { activities = [] }", "producer.simulate", "[]"),
    ('[producer]\nsimulate = { hunter2 = "hunter2" }', "producer.simulate", "hunter2"),
    ("[producer]\nsimulate = 7777", "producer.simulate", "7777"),
    ("[consumer]\nprocesses = 7777", "consumer.processes", "7777"),
    ("[consumer]\nprocesses = 0", "consumer.processes", " 0"),
    ('[consumer]\nstart_from = "hunter2"', "consumer.start_from", "hunter2"),
    ('[consumer]\non_expired_offsets = "hunter2"', "consumer.on_expired_offsets", "hunter2"),
    ('[consumer]\non_topic_recreated = "hunter2"', "consumer.on_topic_recreated", "hunter2"),
    ("[consumer]\nbatch_events = 0", "consumer.batch_events", " 0"),
    ("[consumer]\nbatch_wait_s = 7777", "consumer.batch_wait_s", "7777"),
    ("[consumer]\nbatch_bytes = 777", "consumer.batch_bytes", "777"),
    ("[consumer]\nmax_event_bytes = 777", "consumer.max_event_bytes", "777"),
    ("[consumer]\nno_progress_s = nan", "consumer.no_progress_s", "nan"),
    ("[aggregator]\ninterval_s = 0", "aggregator.interval_s", " 0,"),
    ("[aggregator]\ninterval_s = nan", "aggregator.interval_s", "nan"),
    ("[aggregator]\nmax_activities = -7777", "aggregator.max_activities", "7777"),
    ('[redis]\nurl = "http://hunter2"', "redis.url", "hunter2"),
    ('[redis]\nurl = "redis://:hunter2@localhost"', "redis.url", "hunter2"),
    ('[redis]\nurl = "redis://hunter2.example"', "redis.url", "hunter2"),
    ('[redis]\nurl = "redis://localhost:hunter2"', "redis.url", "hunter2"),
    ('[redis]\nurl = "redis://[hunter2"', "redis.url", "hunter2"),
    ('[redis]\nsummary_key = "s"\nprefix = "hunter2"', "redis.prefix", "hunter2"),
    ('[redis]\nsummary_key = ""', "redis.summary_key", '""'),
    ('[redis]\nsummary_key = "zonerd:hunter2"', "redis.summary_key", "hunter2"),
    ('[redis]\nprefix = "hunter2:"', "redis.summary_key", "hunter2"),
    ("[redis]\ntimeout_s = 7777", "redis.timeout_s", "7777"),
    ('[redis]\nenabled = "hunter2"', "redis.enabled", "hunter2"),
    ("[store]\nmax_wal_bytes = 7777", "store.max_wal_bytes", "7777"),
    ('[http]\nhost = "hunter2/"', "http.host", "hunter2"),
    ("[http]\nport = 7777", "http.port", "7777"),
    ("[http]\nport = { consumer = 77777 }", "http.port", "77777"),
    ("[http]\nport = { hunter2 = 1 }", "http.port", "hunter2"),
    ("[http]\nport = { watchdog = 19301 }", "http.port", "19301"),
    ("[consumer]\nprocesses = 9\n[http]\nport = { consumer = 19293 }", "http.port", "19293"),
    ("[watchdog]\nstall_s = 0", "watchdog.stall_s", " 0,"),
    ("[watchdog]\nretry_fatal_s = 7777", "watchdog.retry_fatal_s", "7777"),
    ('[log]\njournal = "hunter2"', "log.journal", "hunter2"),
    ('[log]\nlevel = "hunter2"', "log.level", "hunter2"),
    ('[log]\nformat = "hunter2"', "log.format", "hunter2"),
    ("[log]\nprogress_s = 0", "log.progress_s", " 0"),
    ('[log]\nlevel = "hunter2', "not TOML", "hunter2"),
    ('[log]\nlevel = "info"\nlevel = "hunter2"\n', "at line 3", "hunter2"),
]


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "zonerd.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _problems(path: Path | None, environment: Mapping[str, str] | None = None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigurationRefused) as refused:
        load(path, environment or {}, overrides)
    assert refused.value.exit_code == REFUSED
    return refused.value.problems


def _run(*words: str) -> Result:
    return CliRunner().invoke(cli.zonerd, words)


@pytest.mark.parametrize(("text", "key", "value"), BAD, ids=[f"{number}-{case[1]}" for number, case in enumerate(BAD)])
def test_a_bad_configuration_gives_one_line_that_names_the_key_and_not_the_value(
    tmp_path: Path, text: str, key: str, value: str
) -> None:
    (problem,) = _problems(_write(tmp_path, text))
    assert key in problem
    assert value not in problem.replace(str(tmp_path), "")
    assert "\n" not in problem


def test_there_are_more_than_forty_of_them() -> None:
    assert len({text for text, _, _ in BAD}) >= 40


def test_each_error_of_a_file_gets_its_line(tmp_path: Path) -> None:
    path = _write(tmp_path, '[log]\nlevel = "x"\n[kafka]\ntopic = " "\n[shop]\na = 1\n[consumer]\nprocesses = "many"')
    problems = _problems(path)
    assert len(problems) == 4
    for key in ("log.level", "kafka.topic", "shop", "consumer.processes"):
        assert sum(key in problem for problem in problems) == 1


@pytest.mark.parametrize(
    ("content", "word"), [(b"\xff", "UTF-8"), (b"a", "TOML"), (b"a = " + b"[" * 100_000, "nested"), (b"\x00", "TOML")]
)
def test_a_file_that_is_no_toml_is_refused_in_one_line(tmp_path: Path, content: bytes, word: str) -> None:
    (problem,) = _problems(_write(tmp_path, content))
    assert word in problem


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path / "absent.toml")
    assert "absent.toml" in problem


def test_three_thousand_damaged_configurations_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(20_260_101)
    reference, path = REFERENCE.encode(), tmp_path / "zonerd.toml"
    lines = [line for line in REFERENCE.splitlines() if line and not line.startswith("#")]
    for number in range(3_000):
        if number % 20 == 0:
            at = rng.randrange(len(reference))
            content = reference[:at] + bytes([rng.randrange(256)]) + reference[at + 1 :]
        else:
            key = rng.choice(lines).partition(" = ")[0]
            value = rng.choice(["true", "-1", "1e400", "nan", '"x"', "[]", "{}", "1979-05-27", "9" * 5000, '"\\u0000"'])
            content = f"[{rng.choice(['store', 'kafka', 'redis', 'log', 'consumer'])}]\n{key} = {value}".encode()
        path.write_bytes(content)
        try:
            load(path, {}, [])
        except ConfigurationRefused as refused:
            assert all("\n" not in problem for problem in refused.problems), content  # noqa: PT017 - or it is read


def test_later_layers_win_and_each_value_knows_where_it_comes_from(tmp_path: Path) -> None:
    path = _write(tmp_path, '[kafka]\ntopic = "file"\ngroup_id = "file"\nbootstrap_servers = "file:1"')
    environment = {"ZONERD_KAFKA__GROUP_ID": "environment", "ZONERD_KAFKA__BOOTSTRAP_SERVERS": "environment:1"}
    loaded = load(path, environment, ["kafka.bootstrap_servers=line:1"])
    kafka = loaded.config.kafka
    assert (kafka.topic, kafka.group_id, kafka.bootstrap_servers) == ("file", "environment", "line:1")
    assert loaded.origins == {
        "kafka.topic": str(path),
        "kafka.group_id": "the environment",
        "kafka.bootstrap_servers": "the command line",
    }


def test_text_of_the_environment_and_of_the_command_line_becomes_what_the_key_wants() -> None:
    environment = {
        "ZONERD_CONSUMER__PROCESSES": "3",
        "ZONERD_REDIS__ENABLED": "false",
        "HOME": "x",
        "ZONERD_CONFIG": "x",
    }
    config = load(None, environment, ["consumer.batch_wait_s=0.5", "log.level=debug"]).config
    assert (config.consumer.processes, config.redis.enabled) == (3, False)
    assert (config.consumer.batch_wait_s, config.log.level) == (0.5, "debug")


def test_one_value_of_a_table_can_be_set_alone() -> None:
    overrides = ["kafka.properties.linger.ms=5", "producer.simulate.users=7", "kafka.properties.client.id=a=b"]
    config = load(None, {}, overrides).config
    assert config.kafka.properties == {"linger.ms": "5", "client.id": "a=b"}
    assert config.producer.simulate.users == 7


def test_one_value_of_a_table_can_be_set_alone_in_the_environment() -> None:
    environment = {
        "ZONERD_KAFKA__PROPERTIES__SECURITY_PROTOCOL": "SASL_SSL",
        "ZONERD_PRODUCER__SIMULATE__RATE_PER_S": "7",
        "ZONERD_HTTP__PORT__CONSUMER": "0",
    }
    config = load(None, environment, []).config
    assert config.kafka.properties == {"security.protocol": "SASL_SSL"}
    assert (config.producer.simulate.rate_per_s, config.http.port.consumer) == (7.0, 0)


def test_a_secret_among_the_properties_of_the_environment_is_refused_and_not_shown() -> None:
    (problem,) = _problems(None, {"ZONERD_KAFKA__PROPERTIES__SASL_PASSWORD": "Env-Pa55"})
    assert problem.startswith("kafka.properties.sasl.password: ")
    assert "Env-Pa55" not in problem


def test_a_property_may_be_written_as_a_number_or_a_boolean(tmp_path: Path) -> None:
    path = _write(tmp_path, '[kafka.properties]\n"linger.ms" = 5\n"socket.keepalive.enable" = true')
    assert load(path, {}, []).config.kafka.properties == {"linger.ms": "5", "socket.keepalive.enable": "true"}


def test_a_kafka_property_may_be_written_without_quotes(tmp_path: Path) -> None:
    path = _write(tmp_path, '[kafka.properties]\nsecurity.protocol = "SASL_SSL"\nssl.ca.location = "/ca.pem"')
    wanted = {"security.protocol": "SASL_SSL", "ssl.ca.location": "/ca.pem"}
    assert load(path, {}, []).config.kafka.properties == wanted
    inline = {"ZONERD_KAFKA__PROPERTIES": '{security.protocol = "SASL_SSL", "ssl.ca.location" = "/ca.pem"}'}
    assert load(None, inline, []).config.kafka.properties == wanted


@pytest.mark.parametrize("override", ["kafka.topic", "topic=x", "", "=x"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    (problem,) = _problems(None, {}, override)
    assert "section.key=value" in problem


@pytest.mark.parametrize("name", sorted(REFUSED_PROPERTIES | SECRETS))
def test_a_property_that_the_promises_need_is_refused_from_every_layer(name: str) -> None:
    assert [name in problem for problem in _problems(None, {}, f"kafka.properties.{name}=hunter2")] == [True]


def test_a_number_past_what_a_machine_holds_is_refused_by_name() -> None:
    (problem,) = _problems(None, {}, "log.progress_s=1e999")
    assert "log.progress_s" in problem


def test_a_relative_path_counts_from_the_folder_of_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, '[store]\ndata_dir = "../data"\n[redis]\npassword_file = "secret"')
    config = load(path, {}, []).config
    assert config.data_dir == tmp_path.parent / "data"
    assert config.run_dir == config.data_dir / "run" or str(config.run_dir).startswith("/tmp/zonerd-")
    assert config.redis.password_file == str(tmp_path / "secret")


def test_the_directories_of_systemd_and_of_the_user_are_the_defaults(tmp_path: Path) -> None:
    systemd = load(
        None, {"STATE_DIRECTORY": "/s:/copies", "RUNTIME_DIRECTORY": "/r", "LOGS_DIRECTORY": "/l"}, []
    ).config
    assert (systemd.data_dir, systemd.run_dir, systemd.log_dir) == (Path("/s"), Path("/r"), Path("/l"))
    user = load(None, {"XDG_STATE_HOME": str(tmp_path)}, []).config
    assert (user.data_dir, user.log_dir) == (tmp_path / "zonerd", tmp_path / "zonerd" / "log")


def test_a_run_directory_too_long_for_a_socket_gets_a_short_name() -> None:
    run_dir = load(None, {}, [f"store.data_dir=/{'x' * 120}"]).config.run_dir
    assert len(str(run_dir)) < 60
    assert run_dir != load(None, {}, [f"store.data_dir=/{'x' * 121}"]).config.run_dir


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:7/1", "redis://[::1]", "redis://localhost", "rediss://far.example", "unix:///run/x.sock"]
)
def test_a_url_that_stays_on_the_machine_or_is_encrypted_is_good(url: str) -> None:
    assert load(None, {}, [f"redis.url={url}"]).config.redis.url == url


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost/0?password=hunter2",
        "redis://:hunter2@localhost/0",
        "redis://localhost/hunter2",
        "unix:///run/x.sock?db=hunter2",
        "rediss://far.example/0?ssl_cert_reqs=none",
        "redis://localhost/0?decode_responses=hunter2",
        "unix://",
    ],
)
def test_a_url_with_a_secret_an_option_or_half_a_place_is_refused_without_its_value(url: str) -> None:
    (problem,) = _problems(None, {}, f"redis.url={url}")
    assert problem.startswith("redis.url: ")
    assert "hunter2" not in problem


def test_a_word_that_is_none_of_a_few_is_answered_with_the_few() -> None:
    (problem,) = _problems(None, {}, "log.level=loud")
    assert problem.endswith("log.level: must be one of debug, info, warning, error")


def test_plain_text_beyond_the_machine_needs_a_word() -> None:
    assert load(None, {}, ["redis.url=redis://far.example", "redis.allow_plaintext=true"]).config.redis.allow_plaintext


@pytest.mark.parametrize(
    ("servers", "protocol", "warned"),
    [
        ("localhost:9092, 127.0.0.1:9093,[::1]:9094", "plaintext", 0),
        ("localhost:9092,far.example:9092", "plaintext", 1),
        ("far.example", "SASL_PLAINTEXT", 1),
        ("far.example:9092", "SASL_SSL", 0),
    ],
)
def test_a_broker_beyond_the_machine_without_tls_is_warned_of(servers: str, protocol: str, warned: int) -> None:
    overrides = [f"kafka.bootstrap_servers={servers}", f"kafka.properties.security.protocol={protocol}"]
    assert len(list(warnings(load(None, {}, overrides).config))) == warned


def test_a_secret_comes_from_its_file_else_from_the_credential_else_is_none(tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("of systemd\n", encoding="utf-8")
    (tmp_path / "file").write_text("of the file\r\n", encoding="utf-8")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_secret(str(tmp_path / "file"), "redis_password", environment) == "of the file"
    assert read_secret("", "redis_password", environment) == "of systemd"
    assert read_secret("", "kafka_sasl_password", environment) is None
    assert read_secret("", "redis_password", {}) is None


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_secret_that_cannot_be_read_is_refused_without_its_bytes(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationRefused, match=r"^redis.password_file: the file cannot be read: [\w -]+$"):
        read_secret(str(path), "redis_password", {})


def test_a_check_reads_the_secrets_and_asks_the_clients_about_their_properties(tmp_path: Path) -> None:
    for override, named in (
        ("kafka.sasl_password_file=/nowhere", "kafka.sasl_password_file"),
        ("redis.password_file=/nowhere", "redis.password_file"),
        ("kafka.properties.no.such.property=hunter2", "no.such.property"),
    ):
        bad = _run("-X", f"store.data_dir={tmp_path}", "-X", override, "config", "check")
        assert isinstance(bad.exception, ConfigurationRefused), override
        assert named in str(bad.exception)
        assert "hunter2" not in str(bad.exception)


def test_the_reference_file_says_every_key_with_its_default(tmp_path: Path) -> None:
    path = _write(tmp_path, REFERENCE)
    assert flatten(load(path, {}, []).config).keys() == flatten(Config()).keys()
    origins = load(path, {}, []).origins
    assert origins.keys() == flatten(Config()).keys()
    assert flatten(_as_written(REFERENCE)) == flatten(Config())


def test_the_clones_file_equals_the_reference_but_for_its_data_directory() -> None:
    ours = (CLONE / "etc" / "zonerd.toml").read_text(encoding="utf-8").splitlines()
    differing = [(one, other) for one, other in zip(ours, REFERENCE.splitlines(), strict=True) if one != other]
    assert [one.split(" = ")[0] for pair in differing for one in pair] == ["data_dir", "data_dir"]
    assert load(CLONE / "etc" / "zonerd.toml", {}, []).config.data_dir == CLONE / "var" / "zonerd"


def _as_written(text: str) -> Config:
    tables = tomllib.loads(text)
    types = {name: type(getattr(Config(), name)) for name in Config.__struct_fields__}
    return Config(**{name: msgspec.convert(tables.get(name, {}), kind) for name, kind in types.items()})


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
@example("kafka", "topic", "a\nb")
def test_whatever_the_environment_holds_is_read_or_refused(section: str, key: str, value: str) -> None:
    try:
        load(None, {f"ZONERD_{section}__{key}": value}, [])
    except ConfigurationRefused as refused:
        assert refused.problems  # noqa: PT017 - either is right


def test_check_says_good_or_one_line_an_error(tmp_path: Path) -> None:
    good = _run("-c", str(_write(tmp_path, '[kafka]\ntopic = "x"')), "config", "check")
    assert (good.exit_code, good.stdout) == (0, f"{tmp_path}/zonerd.toml: good\n")
    bad = _run("-c", str(_write(tmp_path, '[kafka]\ntopic = " "\n[log]\nlevel = "x"')), "config", "check")
    assert isinstance(bad.exception, ConfigurationRefused)
    assert len(bad.exception.problems) == 2


def test_show_gives_every_key_and_where_its_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = json.loads(_run("-X", "kafka.topic=x", "config", "show", "--origin", "--json").stdout)
    assert shown["schema"] == 1
    assert shown["values"].keys() == shown["origins"].keys() == flatten(Config()).keys()
    assert (shown["values"]["kafka.topic"], shown["origins"]["kafka.topic"]) == ("x", "the command line")
    assert shown["origins"]["log.level"] == "default"


def test_show_prints_a_line_a_key() -> None:
    result = _run("-X", "kafka.topic=x", "config", "show", "--origin")
    assert 'kafka.topic = "x"  # the command line' in result.stdout.splitlines()
    assert [line.split(" = ")[0] for line in result.stdout.splitlines()] == list(flatten(Config()))


def test_init_prints_or_writes_the_reference_and_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    assert _run("config", "init").stdout == REFERENCE
    path = tmp_path / "new.toml"
    assert _run("config", "init", str(path)).exit_code == 0
    assert path.read_text(encoding="utf-8") == REFERENCE
    path.write_text("mine", encoding="utf-8")
    again = _run("config", "init", str(path))
    assert again.exception is not None
    assert "exists already" in str(again.exception)
    assert path.read_text(encoding="utf-8") == "mine"
