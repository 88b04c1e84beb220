"""What runs: supervisord, its processes, the ports they have, and whether they are what is installed now."""

import errno
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from zonerd import __version__, inquiry, ports
from zonerd.config import Config
from zonerd.doctor.finding import Finding, fail, ok, warn
from zonerd.errors import ServiceUnavailable
from zonerd.inquiry import Address, Liveness
from zonerd.kafka import connection
from zonerd.store import database
from zonerd.supervise import socket_of
from zonerd.supervise.remote import Process, Remote

ANSWER_WITHIN_S: Final = 2.0
BUILD_INFO: Final = "zonerd_build_info"


def examine(config: Config, config_file: Path | None) -> Iterator[Finding]:
    """Ask supervisord, then each process, and try the ports of those that do not run."""
    processes: dict[str, Process] = {}
    began = time.perf_counter()
    place = socket_of(config)
    try:
        with Remote(place, ANSWER_WITHIN_S) as supervisord:
            processes = {process.name: process for process in supervisord.processes()}
        yield ok("supervisord", f"{place} answered in {(time.perf_counter() - began) * 1000:.0f} ms")
    except ServiceUnavailable as error:
        yield warn("supervisord", f"{error.reason}; nothing is supervised: zonerd up, or systemctl start zonerd")
    for name in config.processes:
        process = processes.get(name)
        if processes:
            yield _state(name, process)
        yield from _process(config, config_file, name, process)


def _state(name: str, process: Process | None) -> Finding:
    if process is None:
        return fail(name, "is none of supervisord's programs, which are those of its start: it must start anew")
    if process.state == "RUNNING":
        return ok(name, f"RUNNING, pid {process.pid}")
    return fail(name, f"{process.state}; {process.spawn_error or 'see: zonerd status'}")


def _process(config: Config, config_file: Path | None, name: str, process: Process | None) -> Iterator[Finding]:
    if process is None or not process.pid:
        yield _port_of_one_that_does_not_run(config, name)
        return
    if config_file is not None and config_file.stat().st_mtime > process.started_s + 1:
        when = datetime.fromtimestamp(config_file.stat().st_mtime, UTC).isoformat(timespec="seconds")
        yield warn(name, f"{config_file} was changed at {when}, after its start; try: zonerd ctl restart {name}")
    try:
        address = inquiry.address_of(config, name)
        began = time.perf_counter()
        said = inquiry.report(address, "/healthz", Liveness, ANSWER_WITHIN_S)
        took = f"{(time.perf_counter() - began) * 1000:.0f} ms"
        if said.pid != process.pid:
            yield fail(name, f"at {address} answers pid {said.pid}, which supervisord does not know")
            return
        yield ok(name, f"{address} answered in {took}")
        yield from _build(name, _labels(address))
    except ServiceUnavailable as error:
        yield fail(name, error.reason)


def _port_of_one_that_does_not_run(config: Config, name: str) -> Finding:
    port, host = config.port_of(name), config.http.host
    if not port:
        return ok(name, "any port")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return fail(name, f"its port {port} is taken by {_who(config, name, port)}")
        return fail(name, f"{host} port {port}: {error.strerror}")
    return ok(name, f"{host} port {port} is free")


def _who(config: Config, name: str, port: int) -> str:
    """Say who answers at a port that is taken."""
    address = Address(name, inquiry.reached_at(config.http.host), port)
    known = ports.noted(config.run_dir).get(name) == port
    try:
        said = inquiry.report(address, "/healthz", Liveness, ANSWER_WITHIN_S)
    except ServiceUnavailable:
        return f"another program; try: ss -ltnp 'sport = :{port}'"
    whose = "this directory's, left without supervisord or started by hand" if known else "another zonerd's"
    return f"a {said.process} of zonerd's, pid {said.pid}: {whose}"


def _labels(address: Address) -> Mapping[str, str]:
    try:
        text = inquiry.ask(address, "/metrics", ANSWER_WITHIN_S).decode()
        for family in text_string_to_metric_families(text):
            if family.name == BUILD_INFO:
                return next((sample.labels for sample in family.samples), {})
    except ValueError:
        pass
    return {}


def _build(name: str, runs: Mapping[str, str]) -> Iterator[Finding]:
    installed = {
        "version": __version__,
        "python": platform.python_version(),
        "sqlite": database.library_version(),
        "librdkafka": connection.library_version(),
    }
    other = [
        f"{library} {runs[library]} (installed: {number})"
        for library, number in installed.items()
        if runs.get(library) and runs[library] != number
    ]
    if other:
        said = ", ".join(other).replace("version", "zonerd", 1)
        yield warn(name, f"runs with {said}; try: zonerd ctl restart {name}")
