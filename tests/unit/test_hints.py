"""The lines that a person can type next."""

import shutil
from pathlib import Path

import pytest

from zonerd import hints


def test_a_program_below_the_working_directory_is_typed_relative_to_it():
    assert hints.typed("/home/u/zonerd/.venv/bin/zonerd", Path("/home/u/zonerd")) == ".venv/bin/zonerd"
    assert hints.typed("/home/u/zonerd", Path("/home/u")) == "./zonerd"


def test_a_program_far_from_the_working_directory_is_typed_whole():
    assert hints.typed("/opt/zonerd/bin/zonerd", Path("/home/u/x")) == "/opt/zonerd/bin/zonerd"


def test_a_daemon_whose_directory_is_the_root_names_whole_paths():
    assert hints.typed("/opt/zonerd/bin/zonerd", Path("/")) == "/opt/zonerd/bin/zonerd"
    assert hints.shown(Path("etc/zonerd/zonerd.toml").absolute(), Path("/")).startswith("/")


def test_a_program_found_through_path_is_typed_by_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/local/bin/{name}")
    assert hints.typed("/usr/local/bin/zonerd", Path("/home/u")) == "zonerd"


def test_a_module_is_typed_through_its_python(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.executable", "/home/u/z/.venv/bin/python")
    assert hints.typed("/home/u/z/zonerd/__main__.py", Path("/home/u/z")) == ".venv/bin/python -m zonerd"


def test_a_path_with_a_space_is_quoted():
    assert hints.shell_line("zonerd", ["-c", "my demo/zonerd.toml"]) == "zonerd -c 'my demo/zonerd.toml'"
    assert hints.typed("/home/u/my z/zonerd", Path("/home/u")) == "'my z/zonerd'"
