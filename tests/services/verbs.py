"""One-shot verbs of zonerd, run to their end."""

import subprocess
import sys
from pathlib import Path

VERB_WITHIN_S = 60.0


def run(config_file: Path, *words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run a verb with this configuration; `said` is its standard input."""
    command = [sys.executable, "-m", "zonerd", "-c", str(config_file), *words]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=VERB_WITHIN_S)


def does(config_file: Path, *words: str, said: str = "") -> str:
    """Run a verb that must end with 0, and give what it says."""
    done = run(config_file, *words, said=said)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
