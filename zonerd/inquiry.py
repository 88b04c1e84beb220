"""A process of ours, asked over HTTP as an outsider asks it; light, for it runs every 30 seconds as a health check."""

import http.client
from typing import Final, NamedTuple, TypeVar

import msgspec

from zonerd import ports
from zonerd.config import Config
from zonerd.errors import ServiceUnavailable

MAX_BYTES: Final = 64 * 1024 * 1024
"""More than a thousand partitions need; what answers more is none of ours."""

_LOCAL: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read here, not bound


class Check(msgspec.Struct, frozen=True):
    """One check of /readyz, and why it fails."""

    ok: bool
    reason: str | None = None


class Readiness(msgspec.Struct, frozen=True):
    """What /readyz answers."""

    process: str
    pid: int
    ready: bool
    checks: dict[str, Check]

    @property
    def reasons(self) -> dict[str, str]:
        """Why each failing check fails."""
        return {name: check.reason or "fails" for name, check in self.checks.items() if not check.ok}


class Liveness(msgspec.Struct, frozen=True):
    """What /healthz answers."""

    process: str
    pid: int
    ok: bool
    last_pass_age_s: float


Report = TypeVar("Report", Readiness, Liveness)


class Address(NamedTuple):
    """Where one process answers."""

    process: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def address_of(config: Config, process: str) -> Address:
    """Give where a process answers: as it has told in ports.json, else as configured. Raises ServiceUnavailable."""
    told = ports.noted(config.run_dir)
    port = told.get(process, config.port_of(process))
    if port is None:
        raise ServiceUnavailable(process, f"its port {config.port_of(process)} is taken by another program")
    if not isinstance(port, int) or not 0 < port <= 65535:  # noqa: PLR2004 - the ports that there are
        raise ServiceUnavailable(process, f"no answer: it has not told its port in {config.run_dir / ports.NAME}")
    return Address(process, reached_at(config.http.host), port)


def reached_at(host: str) -> str:
    """Give the address at which this machine itself reaches what listens at `host`."""
    return _LOCAL.get(host, host)


def ask(address: Address, path: str, within_s: float) -> bytes:
    """Give what is answered to a GET of this path, whatever its status. Raises ServiceUnavailable.

    Each step is waited for at most `within_s`: a stopped process accepts and says nothing.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=within_s)
    try:
        connection.request("GET", path)
        body = connection.getresponse().read(MAX_BYTES)
    except TimeoutError:
        raise ServiceUnavailable(address.process, f"no answer at {address} in {within_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "not HTTP"
        raise ServiceUnavailable(address.process, f"no answer at {address} ({reason.lower()})") from None
    finally:
        connection.close()
    return body


def report(address: Address, path: str, kind: type[Report], within_s: float) -> Report:
    """Give the report that this process answers at this path. Raises ServiceUnavailable, also where another answers."""
    try:
        said = msgspec.json.decode(ask(address, path, within_s), type=kind)
    except (msgspec.DecodeError, RecursionError):
        raise ServiceUnavailable(address.process, f"at {address} answers a program that is not zonerd") from None
    if said.process != address.process:
        raise ServiceUnavailable(address.process, f"at {address} answers zonerd's {said.process}, pid {said.pid}")
    return said
