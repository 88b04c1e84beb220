"""Values made fit for a line: no character that a terminal obeys, no secret, no end that is too far away."""

import math
from collections.abc import Mapping
from typing import Final

from zonerd import config
from zonerd.escaping import visible

MAX_CHARACTERS: Final = 1024
"""A longer text in a log line is cut here; what it cuts stands in the history, not in the log."""

MIN_SECRET_CHARACTERS: Final = 6
"""A shorter one would be found in ordinary words, and what is missing in them would give it away."""


def fit(value: object) -> object:
    """Give a value as a line shows it: text escaped and cut, in lists and tables too; anything else is text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(fit(str(name))): fit(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [fit(one) for one in value]
    text = _without_secrets(str(value))
    shown = visible(text[: MAX_CHARACTERS + 1])
    return shown if len(shown) <= MAX_CHARACTERS else shown[:MAX_CHARACTERS] + "…"


def fit_lines(text: str) -> str:
    """Give a text of many lines, such as a traceback, whole: escaped but for its line breaks."""
    return "\n".join(map(visible, _without_secrets(text).split("\n")))


def _without_secrets(text: str) -> str:
    for secret in config.secrets_read:
        if len(secret) >= MIN_SECRET_CHARACTERS:
            text = text.replace(secret, "***")
    return text
