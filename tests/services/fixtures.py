"""What the fixtures of tests/conftest.py give, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from services.process import ZonerdProcess

ConfigFile: TypeAlias = Callable[..., Path]
StartZonerd: TypeAlias = Callable[..., ZonerdProcess]
MakeTopic: TypeAlias = Callable[..., str]
