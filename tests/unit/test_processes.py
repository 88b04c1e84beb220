"""The supervised processes: their names, and where each one answers."""

from zonerd.config import Config, Consumer, Http, Ports


def test_one_consumer_bears_the_plain_name() -> None:
    assert Config().processes == ("watchdog", "aggregator", "consumer", "producer")


def test_each_consumer_of_several_has_a_number_and_a_port_of_its_own() -> None:
    config = Config(consumer=Consumer(processes=3))
    assert config.processes == ("watchdog", "aggregator", "consumer-0", "consumer-1", "consumer-2", "producer")
    assert [config.port_of(process) for process in config.processes] == [19300, 19302, 19310, 19311, 19312, 19301]


def test_port_0_stays_0_for_every_consumer() -> None:
    config = Config(consumer=Consumer(processes=2), http=Http(port=Ports(consumer=0)))
    assert [config.port_of(f"consumer-{number}") for number in (0, 1)] == [0, 0]
