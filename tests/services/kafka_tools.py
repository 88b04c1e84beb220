"""Kafka's own command line tools, under the names that its distribution gives them."""

import shutil
from pathlib import Path
from typing import Final

from services.kafka import LIBS
from services.missing import Missing

_CLASSES: Final = {
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
    "kafka-console-producer.sh": "org.apache.kafka.tools.ConsoleProducer",
}


def make_tools(folder: Path) -> Path:
    """Put the tools into a folder, for a PATH, and give it."""
    java = shutil.which("java")
    if java is None or not any(LIBS.glob("kafka-tools-4*.jar")):
        raise Missing("Kafka's tools or Java are missing: `make test` sets them up")
    folder.mkdir(parents=True, exist_ok=True)
    for name, main in _CLASSES.items():
        tool = folder / name
        words = f"'{java}' -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp '{LIBS}/*' {main}"
        tool.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        tool.chmod(0o700)
    return folder
