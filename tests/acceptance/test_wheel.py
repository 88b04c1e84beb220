"""What is installed from a wheel is what stands in the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CLONE = Path(__file__).parents[2]


def test_the_wheel_carries_every_file_of_the_package(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(CLONE / name, tmp_path)
    shutil.copytree(CLONE / "zonerd", tmp_path / "zonerd", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(tmp_path)) for path in (tmp_path / "zonerd").rglob("*") if path.is_file()}
    assert wanted <= carried, wanted - carried
