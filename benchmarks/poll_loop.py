"""The least that a Kafka consumer in Python does: poll(), json.loads, nothing checked and nothing stored."""

import json
import sys
import time

from confluent_kafka import Consumer, TopicPartition

bootstrap_servers, topic, partitions, events = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap_servers,
        "group.id": "poll_loop",
        "auto.offset.reset": "earliest",
        # the settings that make zonerd's own client fast, so that only the work differs
        "fetch.queue.backoff.ms": 10,
        "queued.min.messages": 20000,
        "queued.max.messages.kbytes": 65536,
    }
)
begin_cpu, begin = time.process_time(), time.monotonic()
consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
seen = 0
while seen < events:
    message = consumer.poll(1.0)
    if message is None or message.error():
        continue
    json.loads(message.value())
    seen += 1
print(json.dumps({"events": seen, "cpu_s": time.process_time() - begin_cpu, "wall_s": time.monotonic() - begin}))
consumer.close()
