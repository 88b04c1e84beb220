"""A crowd at a process's HTTP port: `scrapers.py RUN_DIR PROCESS SCRAPERS PAUSE_S SLOW`, until it is ended.

Each scraper asks for /metrics, reads the answer and asks again PAUSE_S later; each slow one sends a byte of its
request now and then. On SIGTERM it prints how many answers were read.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from zonerd import ports

REQUEST = b"GET /metrics HTTP/1.0\r\n\r\n"

run_dir, process, pause_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[4])
answers = 0


async def scrape(port: int) -> None:
    global answers  # noqa: PLW0603 - one number for the whole script
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    answer = await reader.read()
    answers += bool(answer)
    writer.close()
    await asyncio.sleep(pause_s)


async def dawdle(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(len(REQUEST) - 1):
        writer.write(REQUEST[number : number + 1])
        await writer.drain()
        await asyncio.sleep(0.2)


async def again_and_again(ask: Callable[[int], Awaitable[None]]) -> None:
    while True:
        port = ports.noted(run_dir).get(process)
        try:
            await ask(port or 0)
        except OSError:
            await asyncio.sleep(0.5)


async def crowd() -> None:
    asks = [scrape] * int(sys.argv[3]) + [dawdle] * int(sys.argv[5])
    tasks = [asyncio.create_task(again_and_again(ask)) for ask in asks]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: [task.cancel() for task in tasks])
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)


asyncio.run(crowd())
print(answers)
