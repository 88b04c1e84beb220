"""What is installed from the wheel or the source package, far from the clone, is all there and runs."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from services.docker import clone


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, built as `make dist` builds them, from a clone."""
    source = tmp_path_factory.mktemp("source")
    clone(source)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "dist"


def wanted(dist: Path, *folders: str) -> set[str]:
    """Give the files of the clone below these folders."""
    source = dist.parent
    found = (path for folder in folders for path in (source / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(source)) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_carries_the_package_its_sql_and_all_that_a_host_needs(dist: Path):
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    carried = {re.sub(r"^zonerd-[^/]*\.data/data/share/zonerd/", "", name) for name in names}
    assert wanted(dist, "zonerd", "etc", "systemd") <= carried, wanted(dist, "zonerd", "etc", "systemd") - carried


def test_the_source_package_carries_the_clone(dist: Path):
    (package,) = dist.glob("*.tar.gz")
    with tarfile.open(package) as archive:
        carried = {name.partition("/")[2] for name in archive.getnames()}
    folders = wanted(dist, "zonerd", "etc", "systemd", "docs", "tests", "benchmarks")
    missing = (folders | {"Makefile", "Dockerfile", "docker-compose.yml", ".env.example", "setup.cfg"}) - carried
    assert not missing


def test_the_demo_runs_from_the_wheel_in_an_empty_environment(dist: Path, tmp_path: Path):
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    bin_ = tmp_path / "venv" / "bin"
    subprocess.run(
        [bin_ / "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[demo]"], check=True, timeout=200
    )
    done = subprocess.run(
        [bin_ / "zonerd", "demo", "--dir", str(tmp_path / "demo"), "--for", "10"],
        cwd=tmp_path, env={"PATH": f"{bin_}:{os.defpath}", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9][0-9]* events", done.stdout), done.stdout


def test_who_makes_a_package_installs_below_a_folder_that_no_file_names(dist: Path, tmp_path: Path):
    (wheel,) = dist.glob("*.whl")
    root = tmp_path / "root"
    words = [f"DESTDIR={root}", "PREFIX=/usr", f"PACKAGE={wheel}", f"PYTHON={sys.executable}"]
    done = subprocess.run(["make", "install", *words], cwd=dist.parent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    scripts = root / "opt" / "zonerd" / "bin"
    assert (scripts / "zonerd").read_text(encoding="utf-8").startswith("#!/opt/zonerd/bin/python")
    assert (scripts / "python").is_symlink()
    assert (root / "usr" / "bin" / "zonerd").readlink() == Path("/opt/zonerd/bin/zonerd")
    named = [
        path for path in (root / "opt" / "zonerd").rglob("*") if path.suffix in ("", ".cfg") and _names(path, root)
    ]
    assert not named
    assert 'data_dir = "/var/lib/zonerd"' in (root / "etc" / "zonerd" / "zonerd.toml").read_text(encoding="utf-8")


def _names(path: Path, folder: Path) -> bool:
    """Say whether a file of text, below the folder, names the folder."""
    if not path.is_file() or path.is_symlink():
        return False
    return os.fsencode(folder) in path.read_bytes()
