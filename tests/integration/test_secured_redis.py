"""docs/deploy.md against a Redis with TLS and ACLs: what it prints is enough, and nothing of it too much."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from services.certificates import Authority
from services.fixtures import StartZonerd
from services.kafka import KafkaBroker
from services.missing import required
from services.pages import blocks, configuration, replaced
from services.process import wait_until
from services.secured_redis import SecuredRedis
from services.verbs import does, run
from zonerd import aggregator, config
from zonerd.cache import Cache
from zonerd.errors import ServiceUnavailable
from zonerd.events import Record, Standing, encode, sort_out
from zonerd.store.history import History

PASSWORD = "Right-Pa55"
WRONG = "Wrong-Pa55"
EVENT = '{"user_id": 42, "activity": "sleep", "timestamp": 1700000000}\n'
(PRINTED,) = blocks("deploy.md", "Redis' ACLs")
LINE = replaced(PRINTED, {"PASSWORD": PASSWORD})
WITHOUT_INFO = LINE.replace(" +info", "")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[SecuredRedis]:
    """One server for the module, which knows the user zonerd."""
    with required():
        server = SecuredRedis(tmp_path_factory.mktemp("redis"), authority, LINE)
    yield server
    server.close()


@pytest.fixture
def secured(running: SecuredRedis) -> SecuredRedis:
    """The server, empty, with the rights that the page gives."""
    running.client.flushall()
    running.client.acl_log_reset()
    running.set_user(LINE)
    return running


class Place(NamedTuple):
    """The page's configuration, with the session's broker."""

    file: Path
    redis: SecuredRedis

    @property
    def config(self) -> config.Config:
        return config.load(self.file, {}, []).config


@pytest.fixture
def place(secured: SecuredRedis, authority: Authority, kafka: KafkaBroker, topic: str, tmp_path: Path) -> Place:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "redis-password").write_text(PASSWORD + "\n")
    (etc / "redis-ca.pem").write_bytes(authority.ca.read_bytes())
    words = {"redis.example.com:6379": secured.address, "/etc/zonerd/": f"{etc}/"}
    broker = f'[kafka]\nbootstrap_servers = "{kafka.bootstrap}"\ntopic = "{topic}"\n'
    file = configuration(tmp_path / "zonerd.toml", "Redis with TLS and a password", words, broker)
    return Place(file, secured)


@pytest.fixture
def stored(place: Place) -> Place:
    """The same with five events in the history, without a broker."""
    place.config.data_dir.mkdir(0o700)
    with History.open_writer(place.config.data_dir) as history:
        history.meet("cluster", "topic", "id", {0: 0}, {0: 0})
        records = [Record(0, at, at, None, encode(1, "sleep", at, {})) for at in range(5)]
        slices = sort_out(records, {}, {0: Standing(0, 0)}, 1 << 20)
        assert history.append(slices, {0: history.partitions()[0].id}) == []
    return place


def publish_twice_and_read(place: Place, *overrides: str) -> None:
    """Do all that is done with Redis: publish, find it as it was left, read it."""
    settings = config.load(place.file, {}, overrides).config
    for _ in range(2):
        aggregator.catch_up(settings, PASSWORD, structlog.get_logger())
    with Cache(settings.redis, PASSWORD) as cache:
        published = cache.read()
    assert published is not None
    assert published.values["activity_summary"] == '[["sleep", 5]]'


def test_the_printed_configuration_and_acls_are_enough(place: Place, zonerd: StartZonerd) -> None:
    does(place.file, "send", said=EVENT)
    does(place.file, "consumer", "--until-caught-up")
    process = zonerd(place.file, "aggregator")
    process.wait_for("ready")
    wait_until(lambda: place.redis.client.hgetall("zonerd:total") == {"sleep": "1"})
    process.terminate()
    assert PASSWORD not in process.out.read_text() + process.err.read_text()
    assert does(place.file, "summary") == "sleep\t1\n"
    does(place.file, "verify")
    assert "ok    redis" in run(place.file, "doctor").stdout
    assert place.redis.denied() == []


@pytest.mark.parametrize("rule", [rule for rule in WITHOUT_INFO.split() if rule[0] in "~+"])
def test_nothing_is_granted_in_vain(stored: Place, rule: str) -> None:
    publish_twice_and_read(stored)
    stored.redis.set_user(LINE.replace(f" {rule}", ""))
    stored.redis.client.flushall()
    with pytest.raises(ServiceUnavailable, match=r"permission|NOPERM|EXEC without MULTI"):
        publish_twice_and_read(stored)


def test_without_info_all_is_published(stored: Place) -> None:
    stored.redis.set_user(WITHOUT_INFO)
    publish_twice_and_read(stored)


def test_another_database_needs_select(stored: Place) -> None:
    url = f"redis.url=rediss://zonerd@{stored.redis.address}/1"
    with pytest.raises(ServiceUnavailable, match="'select'"):
        publish_twice_and_read(stored, url)
    stored.redis.set_user(f"{LINE} +select")
    publish_twice_and_read(stored, url)


def test_who_only_reads_needs_what_the_page_says(stored: Place) -> None:
    publish_twice_and_read(stored)
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = re.search(r"Who only reads the answers needs `(.+?)` on the same keys; `zonerd summary` also `(.+?)`", text)
    assert found is not None
    reader = re.sub(r" \+.*", "", LINE.strip())
    stored.redis.set_user(f"{reader} {found[1]} {found[2]}")
    assert does(stored.file, "summary") == "sleep\t5\n"
    stored.redis.set_user(f"{reader} {found[1]}")
    assert run(stored.file, "summary").returncode == 69


def test_a_wrong_password_is_named_and_storing_and_counting_go_on(place: Place, zonerd: StartZonerd) -> None:
    place.redis.set_user(LINE.replace(PASSWORD, WRONG))
    zonerd(place.file, "consumer").wait_for("ready")
    process = zonerd(place.file, "-X", "log.progress_s=1", "aggregator")
    assert "invalid username-password pair" in process.wait_for("service_unavailable", check="redis")["reason"]
    does(place.file, "send", said=EVENT)
    process.wait_for("progress", folded=1)
    place.redis.set_user(LINE)
    process.wait_for("service_available", check="redis")
    wait_until(lambda: place.redis.client.get("activity_summary") == '[["sleep", 1]]')
    assert PASSWORD not in process.out.read_text() + process.err.read_text()


def test_an_untrusted_certificate_or_another_host_name_is_named(stored: Place, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").ca
    done = run(stored.file, "-X", f"redis.ssl_ca_file={other}", "aggregator", "--until-caught-up")
    assert done.returncode == 69
    assert "certificate verify failed" in done.stderr
    url = f"rediss://zonerd@{stored.redis.address.replace('localhost', '127.0.0.1')}/0"
    done = run(stored.file, "-X", f"redis.url={url}", "aggregator", "--until-caught-up")
    assert done.returncode == 69
    assert "certificate is not valid for '127.0.0.1'" in done.stderr
