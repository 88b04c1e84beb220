"""A certificate authority of a test's own, made with openssl."""

import subprocess
from pathlib import Path
from typing import Final, NamedTuple

_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Certificate(NamedTuple):
    """Files in PEM: the certificate, its key, and both in one."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """Signs certificates for two days; `ca` is its own, whom a client must trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN=authority {folder.name}", "-keyout", self._key,
            "-out", self.ca,
        )  # fmt: skip

    def issue(self, name: str, host: str = "") -> Certificate:
        """Make a key, and sign a certificate for it: of this common name, for this host if one is given."""
        made = Certificate(*(self._folder / f"{name}.{ending}" for ending in ("pem", "key", "both.pem")))
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{host}\n" if host else "", encoding="utf-8")
        _openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", "2",
            "-extfile", extensions, "-out", made.certificate,
        )  # fmt: skip
        made.both.write_bytes(made.key.read_bytes() + made.certificate.read_bytes())
        return made


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
