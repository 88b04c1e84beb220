"""A reader that was written for the prototype works unchanged."""

import subprocess
import sys

from answering import World

READER = """
import json, sqlite3, sys
import redis
store = redis.Redis.from_url(sys.argv[1])
for activity, count in json.loads(store.get("activity_summary")):
    print(activity, count)
database = sqlite3.connect(sys.argv[2])
for user_id, activity, timestamp in database.execute("select user_id, activity, timestamp from user_activity"):
    print(user_id, activity, timestamp)
"""


def test_a_reader_written_for_the_prototype_works_unchanged(world: World) -> None:
    world.append(["sleep", "meal", "sleep"])
    world.catch_up()
    command = [sys.executable, "-c", READER, world.valkey.url, str(world.folder / "events.db")]
    read = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert read.stdout.splitlines() == ["sleep 2", "meal 1", "0 sleep 0.0", "1 meal 1.0", "2 sleep 2.0"]
