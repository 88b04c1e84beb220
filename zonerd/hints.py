"""What a person at a terminal reads, and can type next."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def typed(argv0: str, cwd: Path) -> str:
    """Give how the program that runs as `argv0` can be typed from `cwd`: by its name, or by its shortest path."""
    if Path(argv0).name == "__main__.py":
        return f"{_shortest(Path(sys.executable), cwd)} -m zonerd"
    found = shutil.which(Path(argv0).name)
    if found is not None and Path(found).absolute() == Path(argv0).absolute():
        return Path(argv0).name
    return _shortest(Path(argv0), cwd)


def shell_line(program: str, arguments: Sequence[str]) -> str:
    """Give the line that runs a program, as `typed` gave it, with these arguments."""
    return " ".join([program, *map(shlex.quote, arguments)])


def shown(path: Path, cwd: Path) -> str:
    """Give a path as it is shortest to type from `cwd`; whole where that is the root, where nobody sits and types."""
    absolute = os.path.abspath(path)  # noqa: PTH100 - `resolve` would follow links
    if cwd == Path(cwd.root):
        return absolute
    relative = os.path.relpath(absolute, cwd)
    return relative if len(relative) < len(absolute) and not relative.startswith("../..") else absolute


def _shortest(path: Path, cwd: Path) -> str:
    name = shown(path, cwd)
    return shlex.quote(name if "/" in name else f"./{name}")
