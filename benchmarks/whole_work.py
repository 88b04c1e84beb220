"""The consumer's whole work over a topic: consume, validate, store durably under the fence, tell Kafka."""

import json
import os
import sys
import time
from pathlib import Path

from zonerd import config, consumer, log

log.configure("warning", "json", sys.stderr)
loaded = config.load(Path(sys.argv[1]), {}, []).config
begin_cpu, begin = time.process_time(), time.monotonic()
stored = consumer.catch_up(loaded, None, log.logger("consumer", os.getpid()), 0)
print(json.dumps({"events": stored, "cpu_s": time.process_time() - begin_cpu, "wall_s": time.monotonic() - begin}))
