"""docs/deploy.md against a Kafka with TLS, passwords and ACLs: what it prints is enough, and nothing of it too much."""

import os
import re
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka.admin import AclBinding

from services import verbs
from services.certificates import Authority
from services.fixtures import StartZonerd
from services.kafka_tools import make_tools
from services.missing import required
from services.pages import DOCS, blocks, configuration, replaced
from services.process import ZonerdProcess, wait_until
from services.secured_kafka import SecuredKafka, allow
from services.valkey import ValkeyServer
from zonerd import config
from zonerd.errors import ServiceUnavailable
from zonerd.kafka.cluster import Cluster

PASSWORD = "Right-Pa55"
WRONG = "Wrong-Pa55"
WITH_PASSWORD = "Kafka with TLS and a password"
EVENT = '{"user_id": 42, "activity": "sleep", "timestamp": 1700000000}\n'


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[SecuredKafka]:
    """One broker for the module, which knows the user zonerd."""
    with required():
        kafka = SecuredKafka(tmp_path_factory.mktemp("kafka"), authority)
    kafka.set_password("zonerd", PASSWORD)
    yield kafka
    kafka.close()


def printed_acls(topic: str, principal: str = "User:zonerd") -> list[AclBinding]:
    """Give the ACLs that the lines of the page make, for another topic, with a group of the same name."""
    text = "".join(blocks("deploy.md", "Kafka's ACLs", "sh")).replace("\\\n", "")
    acls = [
        allow(principal, operation, kind, topic)
        for line in text.splitlines()
        for kind in re.findall(r"--(topic|group) ", line)
        for operation in re.findall(r"--operation (\w+)", line)
    ]
    assert len(acls) == 4
    return acls


class Place(NamedTuple):
    """The page's configuration for one topic, and the broker that it is for."""

    kafka: SecuredKafka
    topic: str
    file: Path

    def run(self, *words: str, said: str = "") -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        return verbs.run(self.file, *words, said=said)

    def does(self, *words: str, said: str = "") -> str:
        """Run a verb that must end with 0, and give what it says."""
        return verbs.does(self.file, *words, said=said)

    def grant(self, acls: Iterable[AclBinding]) -> None:
        """Let these be all ACLs."""
        self.kafka.set_acls(acls)


def make_place(kafka: SecuredKafka, folder: Path, heading: str, words: dict[str, str]) -> Place:
    """Write the page's configuration for a topic of its own; the files that it names are looked for in `etc`."""
    topic = f"t-{uuid.uuid4().hex[:12]}"
    own = {"[kafka]\n": f'[kafka]\ntopic = "{topic}"\ngroup_id = "{topic}"\n', "/etc/zonerd/": f"{folder / 'etc'}/"}
    redis = "[redis]\nenabled = false\n"
    return Place(kafka, topic, configuration(folder / "zonerd.toml", heading, {**words, **own}, redis))


@pytest.fixture
def place(secured: SecuredKafka, authority: Authority, tmp_path: Path) -> Place:
    """The example with a password, with the rights that the page gives."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "kafka-password").write_text(PASSWORD + "\n")
    (etc / "kafka-ca.pem").write_bytes(authority.ca.read_bytes())
    place = make_place(secured, tmp_path, WITH_PASSWORD, {"kafka.example.com:9093": secured.sasl_ssl})
    place.grant(printed_acls(place.topic))
    return place


def without(acls: Iterable[AclBinding], *missing: AclBinding) -> list[AclBinding]:
    """Give these ACLs but for some, which must be among them."""
    left = [acl for acl in acls if acl not in missing]
    assert len(left) + len(missing) == 4
    return left


def stored(place: Place) -> int:
    """Count what is stored: 0 while there is nothing."""
    done = place.run("sql", "select count(*) from events", "--json")
    return int(re.findall(r"\d+", done.stdout)[-1]) if done.returncode == 0 else 0


# What is printed is enough


def test_the_printed_configuration_and_acls_carry_the_whole_pipeline(
    place: Place, zonerd: StartZonerd, valkey: ValkeyServer
) -> None:
    redis = ("-X", "redis.enabled=true", "-X", f"redis.url={valkey.url}")
    assert place.does("topic", "create") == f"topic {place.topic} made\n"
    processes = [
        zonerd(place.file, "-X", "producer.source=simulate", "-X", "producer.simulate.rate_per_s=200", "producer"),
        zonerd(place.file, "consumer"),
        zonerd(place.file, *redis, "aggregator"),
    ]
    for process in processes:
        process.wait_for("ready")
    place.does("send", said=EVENT)
    wait_until(lambda: int(valkey.client.hget("zonerd:as_of", "events") or 0) > 100)
    for process in processes:
        process.terminate()
        assert PASSWORD not in process.out.read_text() + process.err.read_text()
        assert process.lines("commit_failed") == []
    assert place.topic in place.does("topic", "show")
    assert "-" not in place.does("offsets").split("\t")
    place.does(*redis, "verify")


def test_where_the_topic_is_there_three_acls_are_enough(place: Place) -> None:
    place.kafka.create_topic(place.topic, 2)
    place.grant(without(printed_acls(place.topic), allow("User:zonerd", "Create", "topic", place.topic)))
    never = ("-X", "kafka.create_topic=false")
    place.does(*never, "send", said=EVENT)
    assert place.does(*never, "consumer", "--until-caught-up") == "1 events stored\n"
    assert place.topic in place.does(*never, "topic", "show")
    place.does(*never, "offsets")
    assert "broker   equal        1 events" in place.run(*never, "verify").stdout


def test_write_alone_is_enough_to_send(place: Place) -> None:
    place.kafka.create_topic(place.topic, 2)
    place.grant([allow("User:zonerd", "Write", "topic", place.topic)])
    assert place.does("send", said=EVENT).startswith("sent 1,")


def test_the_lines_of_the_page_make_these_acls(place: Place, tmp_path: Path) -> None:
    place.grant([])
    tools = make_tools(tmp_path / "bin")
    (tmp_path / "admin.properties").touch()
    words = {"kafka.example.com:9093": place.kafka.bootstrap, "user_activity": place.topic, "zoner_group": place.topic}
    lines = replaced("".join(blocks("deploy.md", "Kafka's ACLs", "sh")), words)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.kafka.acls() == set(printed_acls(place.topic))


def test_a_client_certificate_is_enough(secured: SecuredKafka, authority: Authority, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    certificate = authority.issue("zonerd")
    for name, file in {"kafka-ca.pem": authority.ca, "kafka.pem": certificate[0], "kafka.key": certificate[1]}.items():
        (etc / name).write_bytes(file.read_bytes())
    words = {"kafka.example.com:9094": secured.ssl}
    place = make_place(secured, tmp_path, "Kafka with a client certificate", words)
    place.grant(printed_acls(place.topic, "User:CN=zonerd"))
    place.does("send", said=EVENT)
    assert place.does("consumer", "--until-caught-up") == "1 events stored\n"


# Nothing of it is too much


@pytest.mark.parametrize(
    ("missing", "verb", "reason"),
    [
        (("Read", "topic"), ("consumer", "--until-caught-up"), "Topic authorization failed"),
        (("Write", "topic"), ("send",), "no ACL lets this user write to "),
        (("Read", "group"), ("offsets",), "Group authorization failed"),
        (("Create", "topic"), ("topic", "create"), "no ACL lets this user see it; and none lets this user make it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_acl_that_is_missing_is_named(
    place: Place, missing: tuple[str, str], verb: tuple[str, ...], reason: str
) -> None:
    if missing[0] != "Create":
        place.does("send", said=EVENT)
    place.grant(without(printed_acls(place.topic), allow("User:zonerd", *missing, place.topic)))
    done = place.run(*verb, said=EVENT)
    assert done.returncode == 69
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_right_to_the_group_reading_goes_on(place: Place, zonerd: StartZonerd) -> None:
    place.does("send", said=EVENT)
    place.grant(without(printed_acls(place.topic), allow("User:zonerd", "Read", "group", place.topic)))
    consumer = zonerd(place.file, "consumer")
    consumer.wait_for("ready")
    wait_until(lambda: stored(place) == 1)
    assert "Group authorization failed" in consumer.wait_for("commit_failed")["reason"]
    assert consumer.lines("service_unavailable") == []


def test_a_producer_that_may_not_write_waits_until_it_may(place: Place, zonerd: StartZonerd) -> None:
    acls = printed_acls(place.topic)
    place.does("topic", "create")
    place.grant(without(acls, allow("User:zonerd", "Write", "topic", place.topic)))
    producer = zonerd(place.file, "-X", "producer.source=simulate", "-X", "log.progress_s=1", "producer")
    waiting = producer.wait_for("service_unavailable")
    assert f"no ACL lets this user write to {place.topic}" in waiting["reason"]
    producer.wait_for("progress", count=3)  # it tried again
    assert producer.lines("service_available") == []
    place.grant(acls)
    producer.wait_for("service_available")
    wait_until(lambda: producer.lines("progress")[-1]["delivered"] > 0)


def test_a_compacted_topic_is_told_from_another_with_one_acl_more(place: Place) -> None:
    place.kafka.create_topic(place.topic, 1, {"cleanup.policy": "compact"})
    section = config.load(place.file, {}, []).config.kafka
    with Cluster(section, PASSWORD) as cluster:
        with pytest.raises(ServiceUnavailable, match="authorization failed"):
            cluster.is_compacted()
        one_more = allow("User:zonerd", "DescribeConfigs", "topic", place.topic)
        place.grant([*printed_acls(place.topic), one_more])
        assert cluster.is_compacted()


# Who is not let in


def test_who_is_not_let_in_waits_and_is_told_what_the_page_says(
    place: Place, zonerd: StartZonerd, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_text(WRONG)
    other = Authority(tmp_path / "other").ca
    name, _, port = place.kafka.sasl_ssl.partition(":")
    mistakes = {
        "invalid credentials": f"kafka.sasl_password_file={tmp_path / 'wrong'}",
        "Unsupported SASL mechanism": "kafka.properties.sasl.mechanism=PLAIN",
        "of no authority": f"kafka.properties.ssl.ca.location={other}",
        "for another host name": f"kafka.bootstrap_servers=127.0.0.1:{port}",
        "closes the connection": f"kafka.bootstrap_servers={place.kafka.bootstrap.replace('127.0.0.1', name)}",
        "is kafka.properties.security.protocol": "kafka.properties.security.protocol=PLAINTEXT",
    }
    waiting = {
        words: zonerd(place.file, "-X", mistake, "-X", f"store.data_dir={tmp_path / str(number)}", "consumer")
        for number, (words, mistake) in enumerate(mistakes.items())
    }
    for words, process in waiting.items():
        reason = process.wait_for("service_unavailable", check="kafka")["reason"]
        assert words in reason
        assert any(says(row, reason) for row in reasons_of_the_page()), reason
        process.wait_for("kafka_client")
        process.kill()
        assert no_password_in(process)


def reasons_of_the_page() -> list[str]:
    """Give what the page says that a process says."""
    text = (DOCS / "deploy.md").read_text(encoding="utf-8").partition("| `kafka` is not ready |")[2]
    return re.findall(r"^\| `(.+?)` \|", text.partition("\n\n")[0], re.MULTILINE)


def says(shown: str, reason: str) -> bool:
    """Say whether this is what is shown, `…` being anything."""
    return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), reason) is not None


def no_password_in(process: ZonerdProcess) -> bool:
    """Say whether others can see no password of a process."""
    shown = process.out.read_text() + process.err.read_text()
    return PASSWORD not in shown and WRONG not in shown
