"""A real Docker engine with Compose, in a folder of its own, and the images that docker-compose.yml names."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from services.kafka import free_ports
from services.missing import Missing
from services.process import tail, wait_until

CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".cache"
RECIPES = Path(__file__).parent / "images"
START_DEADLINE_S = 60.0
COMMAND_WITHIN_S = 300.0

STAND_INS: Final[Mapping[str, tuple[str, Path | None]]] = {
    "python": ("python:3.13-slim-trixie", None),
    "valkey": ("valkey/valkey:8.1", None),
    "prometheus": ("prom/prometheus:v3.5.0", None),
    "kafka": ("apache/kafka:4.4.0", CACHE / "kafka" / "libs"),
    "kafka-zookeeper": ("confluentinc/cp-kafka:7.9.0", CACHE / "kafka-3.9.1" / "libs"),
    "zookeeper": ("confluentinc/cp-zookeeper:7.9.0", CACHE / "kafka-3.9.1" / "libs"),
}
"""Each stand-in: the image that it stands in for, and the jars that go into it."""


class DockerEngine:
    """A dockerd of our own, without any image at first; ended with its containers, its files gone, by `close`."""

    def __init__(self) -> None:
        daemon, self._client = shutil.which("dockerd"), shutil.which("docker")
        plugin = shutil.which("docker-compose", path=str(CACHE / "compose" / "bin"))
        if not (daemon and self._client and plugin and os.geteuid() == 0):
            raise Missing("a Docker engine needs root, dockerd, docker and Compose: `make acceptance` sets them up")
        self.folder = Path(tempfile.mkdtemp(prefix="zonerd-docker-"))
        self.log = self.folder / "dockerd.log"
        plugins = self.folder / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(plugin)
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.folder / 'docker.sock'}",
            "DOCKER_CONFIG": str(self.folder / "config"),
            "DOCKER_BUILDKIT": "0",  # BuildKit would want a plugin of its own
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    daemon,
                    f"--host={self.environment['DOCKER_HOST']}",
                    f"--data-root={self.folder / 'data'}",
                    f"--exec-root={self.folder / 'exec'}",
                    f"--pidfile={self.folder / 'docker.pid'}",
                    "--storage-driver=overlay2",
                    "--log-level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, START_DEADLINE_S, lambda: f"dockerd answers\n{tail(self.log)}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def docker(self, *words: str, exit_code: int | None = 0, within_s: float = COMMAND_WITHIN_S) -> str:
        """Run `docker words…` and give what it said; None takes any exit code."""
        return self.run([str(self._client), *words], exit_code=exit_code, within_s=within_s)

    def run(
        self, command: Sequence[str], folder: Path = CHECKOUT, *, exit_code: int | None = 0, within_s: float
    ) -> str:
        """Run a command that finds this engine, and give all that it said, stdout before stderr."""
        done = subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=within_s
        )
        said = done.stdout + done.stderr
        assert exit_code in (None, done.returncode), f"{' '.join(command)}: exit code {done.returncode}\n{said}"
        return said

    def inspect(self, name: str) -> dict[str, Any]:
        """Give what docker knows of a container or an image."""
        found: dict[str, Any] = json.loads(self.docker("inspect", name))[0]
        return found

    def import_stand_ins(self) -> None:
        """Build every image that docker-compose.yml names, but zonerd's own and Grafana's."""
        certificates = "/etc/ssl/certs/ca-certificates.crt"
        for name, change in (("python", f"ENV PIP_CERT={certificates}"), ("services", "ENV LANG=C.UTF-8")):
            self.docker("import", "--change", change, str(CACHE / "images" / f"{name}.tar"), f"zonerd-tests/{name}")
        for name, (image, jars) in STAND_INS.items():
            context = self.folder / "build" / name
            shutil.copytree(RECIPES / name, context)
            if jars is not None:
                shutil.copytree(jars, context / "libs", copy_function=os.link)
            self.docker("build", "--quiet", "--tag", image, str(context))

    def close(self) -> None:
        """Remove the containers, end the daemon, and remove all that it kept."""
        if self.process.poll() is None:
            containers = self.docker("ps", "--all", "--quiet", exit_code=None).split()
            if containers:
                self.docker("rm", "--force", "--volumes", *containers, exit_code=None)
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"dockerd ended with {self.process.returncode}\n{tail(self.log)}"
        return "Server Version" in self.docker("info", exit_code=None)


class Project:
    """The checkout's docker-compose.yml on an engine, over a clone of its own, with ports that nobody else has.

    `env` is what its .env says beside the ports; `up` may be asked for again and again.
    """

    def __init__(self, engine: DockerEngine, folder: Path, env: Mapping[str, str]) -> None:
        self.engine = engine
        self.folder = folder
        clone(folder)
        names = ("KAFKA_PORT", "REDIS_PORT", "PROMETHEUS_PORT", "KAFKA_ZOOKEEPER_PORT")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        lines = [f"{name}={value}" for name, value in {**self.ports, **env}.items()]
        (folder / ".env").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def compose(self, *words: str, exit_code: int | None = 0) -> str:
        """Run `docker compose words…` as the README's reader would, and give what it said."""
        command = ["docker", "compose", "--progress=quiet", *words]
        return self.engine.run(command, self.folder, exit_code=exit_code, within_s=COMMAND_WITHIN_S)

    def up(self, *services: str) -> None:
        """Start these services, and those that they need, and wait until they are healthy."""
        said = self.compose("up", "--detach", "--wait", *services, exit_code=None)
        logs = "" if "unhealthy" not in said else self.compose("logs", "--tail=40", *services)
        assert "unhealthy" not in said, f"{said}\n{logs}"

    def inside(self, service: str, *words: str, exit_code: int | None = 0) -> str:
        """Run a command in the container of a service."""
        return self.compose("exec", "--no-TTY", service, *words, exit_code=exit_code)

    def container(self, service: str) -> dict[str, Any]:
        """Give what docker knows of the container of a service, running or not."""
        return self.engine.inspect(self.compose("ps", "--all", "--quiet", service).strip())


def clone(folder: Path) -> None:
    """Copy what git knows of the checkout, and what it would take, to an empty folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT, capture_output=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.decode().split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (CHECKOUT / name).exists():
            shutil.copy2(CHECKOUT / name, target)
