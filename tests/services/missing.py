"""What becomes of a test whose service is not installed: skipped at a developer's, failed in CI."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Missing(Exception):
    """What a service is made of is not installed, or may not run here."""


@contextmanager
def required() -> Iterator[None]:
    """Skip the test where Missing is raised within; in CI nothing is skipped for want of a service."""
    try:
        yield
    except Missing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
