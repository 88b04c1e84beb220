"""The code blocks of a page in docs/, as the tests run them."""

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, heading: str, language: str = "") -> list[str]:
    """Give the code blocks below a heading, up to the next of its level or above; of one language if it is given."""
    text = (DOCS / page).read_text(encoding="utf-8")
    begin = re.search(rf"^(#+) {re.escape(heading)}\n", text, re.MULTILINE)
    assert begin is not None, f"{page} has no heading {heading!r}"
    section = re.split(rf"^#{{1,{len(begin[1])}}} ", text[begin.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if language in ("", kind)]


def replaced(text: str, words: Mapping[str, str]) -> str:
    """Give the text with other names in the place of the page's; each one must stand there."""
    for word, here in words.items():
        assert word in text, f"{word} is not in\n{text}"
        text = text.replace(word, here)
    return text


def configuration(path: Path, heading: str, words: Mapping[str, str], rest: str = "") -> Path:
    """Write the configuration of docs/deploy.md below this heading, with other names, to a file.

    Beside it stands what keeps a test to itself: data next to the file, any ports, JSON lines on stdout, and `rest`.
    """
    (printed,) = blocks("deploy.md", heading, "toml")
    own = """
[store]
data_dir = "data"
run_dir = "data/run"
min_free_bytes = 1
[log]
format = "json"
journal = "off"
[http.port]
watchdog = 0
producer = 0
aggregator = 0
consumer = 0
"""
    path.write_text(replaced(printed, words) + own + rest, encoding="utf-8")
    return path
