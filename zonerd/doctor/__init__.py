"""Whatever can be wrong around zonerd, tried one by one; nothing is made and nothing changed."""

import platform
import resource
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from zonerd import __version__
from zonerd.config import Config, warnings
from zonerd.doctor import places, running, services
from zonerd.doctor.finding import Finding, fail, ok, warn
from zonerd.errors import ConfigurationRefused, ZonerdError
from zonerd.kafka import connection
from zonerd.store import database

MIN_FILES: Final = 1024
"""supervisord wants so many descriptors, and ends without them."""


def examine(config: Config, config_file: Path | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Try everything; each finding comes as soon as it is known, the slowest after some 5 s."""
    yield versions()
    yield from _configuration(config, config_file)
    yield _descriptors()
    for part in _parts(config, config_file, environment):
        try:
            yield from part()
        except ZonerdError as error:
            yield fail("doctor", str(error))


def refused(error: ConfigurationRefused) -> Iterator[Finding]:
    """Give what can be said where there is no configuration to go by: its errors, a line each."""
    yield versions()
    for problem in error.problems:
        yield fail("configuration", problem)


def versions() -> Finding:
    """Give what runs here."""
    known = {
        "zonerd": __version__,
        "python": platform.python_version(),
        "sqlite": database.library_version(),
        "librdkafka": connection.library_version(),
        "redis-py": _installed("redis"),
        "supervisor": _installed("supervisor"),
    }
    return ok("versions", ", ".join(f"{name} {number}" for name, number in known.items()))


def _parts(
    config: Config, config_file: Path | None, environment: Mapping[str, str]
) -> tuple[Callable[[], Iterator[Finding]], ...]:
    return (
        lambda: places.examine(config),
        lambda: services.examine(config, environment),
        lambda: running.examine(config, config_file),
    )


def _configuration(config: Config, config_file: Path | None) -> Iterator[Finding]:
    yield ok("configuration", str(config_file or "the defaults"))
    for warning in warnings(config):
        yield warn("configuration", warning)


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_FILES:
        return fail(
            "descriptors", f"at most {hard} open files; supervisord wants {MIN_FILES} (LimitNOFILE, ulimit -Hn)"
        )
    return ok("descriptors", f"{soft} open files, at most {hard if hard != resource.RLIM_INFINITY else 'any number'}")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not a package)"
