"""A real Redis that speaks TLS only, with users of its own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import redis

from services.certificates import Authority
from services.kafka import free_ports
from services.missing import Missing
from services.process import tail, wait_until

UNPACKED = Path(__file__).parents[2] / ".cache" / "redis"
START_DEADLINE_S = 20.0


class SecuredRedis:
    """A server called `localhost`, with this line in its ACL file; `client` is the test's own, who may do anything."""

    def __init__(self, folder: Path, authority: Authority, acl_line: str) -> None:
        (port,) = free_ports(1)
        self.address = f"localhost:{port}"
        self.log = folder / "redis.log"
        self.process = _launch(folder, self.log, port, authority, acl_line)
        self.client: redis.Redis = redis.Redis(
            host="localhost", port=port, password="own", ssl=True, ssl_ca_certs=str(authority.ca), decode_responses=True
        )  # fmt: skip
        wait_until(self._answers, START_DEADLINE_S, lambda: f"Redis answers\n{tail(self.log)}")

    def set_user(self, acl_line: str) -> None:
        """Let the user of this line of an ACL file be as it says, whatever was said of it before."""
        _, name, *rules = acl_line.split()
        self.client.execute_command("ACL", "SETUSER", name, "reset", *rules)  # type: ignore[no-untyped-call]

    def denied(self) -> list[str]:
        """Give what was asked for and refused."""
        return [str(entry["object"]) for entry in self.client.acl_log()]

    def close(self) -> None:
        """End it for good."""
        self.client.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"Redis ended with {self.process.returncode}\n{tail(self.log)}"
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


def _launch(folder: Path, log: Path, port: int, authority: Authority, acl_line: str) -> "subprocess.Popen[bytes]":
    certificate = authority.issue("redis", "localhost")
    acls = folder / "users.acl"
    acls.write_text(f"user default on >own ~* &* +@all\n{acl_line}\n", encoding="utf-8")
    options = {
        "port": "0", "tls-port": f"{port}", "bind": "127.0.0.1", "dir": str(folder), "save": "",
        "tls-cert-file": str(certificate.certificate), "tls-key-file": str(certificate.key),
        "tls-ca-cert-file": str(authority.ca), "tls-auth-clients": "no", "aclfile": str(acls),
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    binary, environment = _server()
    with log.open("ab") as out:
        return subprocess.Popen(
            [binary, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )


def _server() -> tuple[str, Mapping[str, str]]:
    """Give the program, and the environment that it needs."""
    if (UNPACKED / "redis-server").exists():
        return str(UNPACKED / "redis-server"), {**os.environ, "LD_LIBRARY_PATH": str(UNPACKED / "lib")}
    found = shutil.which("redis-server")
    if found is None:
        raise Missing("a Redis with TLS is missing: `make test` sets it up")
    return found, os.environ
