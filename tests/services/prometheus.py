"""A real Prometheus, on loopback, in a folder of its own; and promtool and amtool."""

import json
import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from services.kafka import free_ports
from services.missing import Missing
from services.process import tail, wait_until

BIN = Path(__file__).parents[2] / ".cache" / "prometheus" / "bin"
START_DEADLINE_S = 30.0


class Sample(NamedTuple):
    """One series of an answer."""

    labels: dict[str, str]
    value: float


class BadQuery(Exception):
    """Prometheus refused an expression."""


def program(name: str) -> str:
    """Give the path of prometheus, promtool or amtool; raises Missing."""
    found = shutil.which(name, path=str(BIN)) or shutil.which(name)
    if found is None:
        raise Missing(f"{name} is missing: `make test` sets it up")
    return found


def run(name: str, *words: str, text: str | None = None) -> tuple[int, str]:
    """Run promtool or amtool to its end, and give its exit code and all that it wrote."""
    done = subprocess.run(
        [program(name), *words], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    return done.returncode, done.stdout


class PrometheusServer:
    """A server that runs from construction on, with this configuration (YAML; paths count from its folder)."""

    def __init__(self, config: str) -> None:
        binary = program("prometheus")
        self.folder = Path(tempfile.mkdtemp(prefix="zonerd-prometheus-"))
        self.log = self.folder / "prometheus.log"
        (self.port,) = free_ports(1)
        config_file = self.folder / "prometheus.yml"
        config_file.write_text(config, encoding="utf-8")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={config_file}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        try:
            wait_until(self._ready, START_DEADLINE_S, lambda: f"Prometheus answers\n{tail(self.log)}")
        except BaseException:
            self.close()
            raise

    def query(self, expression: str) -> list[Sample]:
        """Give what an expression is now, without what is NaN; raises BadQuery."""
        found = self.get("query", query=expression)
        samples = found["result"] if found["resultType"] == "vector" else [{"metric": {}, "value": found["result"]}]
        values = [Sample(sample["metric"], float(sample["value"][1])) for sample in samples]
        return [sample for sample in values if not math.isnan(sample.value)]

    def get(self, what: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
        """Give the data that /api/v1/WHAT answers; raises BadQuery."""
        try:
            place = f"api/v1/{what}?{urlencode(parameters)}"
            with urlopen(f"http://127.0.0.1:{self.port}/{place}", timeout=30) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                raise BadQuery(f"{parameters}: {error.read().decode()}") from None

    def close(self) -> None:
        """End it for good; its folder goes too."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ready(self) -> bool:
        assert self.process.poll() is None, f"Prometheus ended with {self.process.returncode}\n{tail(self.log)}"
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False
