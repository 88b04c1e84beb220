"""The consumer's whole work over a topic: consume, validate, store durably under the fence, tell Kafka.

`whole_work.py CONFIGURATION [unmetered] [answering]`: without its metrics, or with its HTTP side open.
"""

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from zonerd import config, consumer, log
from zonerd.endpoint import Endpoint, Listening
from zonerd.health import Health
from zonerd.meter import Meter


def nothing(*_: object) -> int:
    return 0


log.configure("warning", "json", sys.stderr)
said = log.logger("consumer", os.getpid())
loaded = config.load(Path(sys.argv[1]), {}, []).config
if "unmetered" in sys.argv:
    methods = {name: nothing for name in vars(Meter) if not name.startswith("__")}
    consumer.Meter = type("Unmetered", (Meter,), methods)  # type: ignore[misc,assignment]
with ExitStack() as stack:
    if "answering" in sys.argv:
        stack.enter_context(Endpoint(Listening.of(loaded, "consumer"), Health(said, ())))
    begin_cpu, begin = time.process_time(), time.monotonic()
    stored = consumer.catch_up(loaded, None, said, 0)
    done = {"events": stored, "cpu_s": time.process_time() - begin_cpu, "wall_s": time.monotonic() - begin}
print(json.dumps(done))
