"""A person's own select over events.db: it can change nothing, and it ends in time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import apsw

from zonerd.errors import ANSWER_IS_NO, USAGE, StoreUnavailable, ZonerdError
from zonerd.store.database import EVENTS, ROLLUPS, open_reader, translated

MAX_VALUE_BYTES: Final = 64 * 1024 * 1024
MAX_MEMORY_BYTES: Final = 512 * 1024 * 1024

Row = tuple[Any, ...]

_READING: Final = frozenset({apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_RECURSIVE})
_PRAGMAS: Final = frozenset(
    {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "database_list"}
)
_INTERRUPT_AGAIN_S: Final = 0.1


class NoQuestion(ZonerdError):
    """The statement is not one that can be asked: not SQL, more than one, or more than a read."""

    exit_code = USAGE


class NoAnswer(ZonerdError):
    """The statement was asked and not answered: in the time, the memory or the form that there is."""

    exit_code = ANSWER_IS_NO


class Question:
    """One statement over a history, named `main`, and the answers, named `rollups`, if there are any."""

    def __init__(self, data_dir: Path) -> None:
        self._connection = open_reader(data_dir, EVENTS)
        self.columns: list[str] = []
        try:
            self._attach_rollups(data_dir)
        except BaseException:
            self._connection.close()
            raise
        self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        self._connection.authorizer = _only_reading
        self._connection.exec_trace = self._begin

    def ask(self, statement: str, take: Callable[[Sequence[str], Row], None], timeout_s: float) -> list[str]:
        """Hand each row with the columns' names to `take`, close the history, and give those names.

        Raises NoQuestion and NoAnswer. `take` must not wait for anybody: until the end the WAL is held.
        """
        apsw.hard_heap_limit(MAX_MEMORY_BYTES)
        with ThreadPoolExecutor(1) as asker:  # the thread that waits can hear a Ctrl-C
            asked = asker.submit(self._fetch, statement, take)
            try:
                asked.result(timeout_s)
            except TimeoutError:
                raise NoAnswer(f"no answer in {timeout_s:g} s; --timeout gives it longer") from None
            finally:
                while not asked.done():
                    self._connection.interrupt()
                    wait([asked], _INTERRUPT_AGAIN_S)
                self._connection.close()
        if not self.columns:
            raise NoQuestion("there is no statement in it")
        return self.columns

    def _fetch(self, statement: str, take: Callable[[Sequence[str], Row], None]) -> None:
        with translated(self._connection.filename):
            try:
                for row in self._connection.execute(statement):
                    take(self.columns, row)
            except apsw.AuthError:
                raise NoQuestion("only reading is allowed here: one select") from None
            except (apsw.SQLError, apsw.BindingsError, apsw.MismatchError, apsw.TooBigError) as error:
                raise NoQuestion(str(error)) from None
            except apsw.NoMemError:
                raise NoAnswer(f"that takes more than {MAX_MEMORY_BYTES >> 20} MiB of memory") from None
            except UnicodeDecodeError:
                raise NoAnswer("some text is not UTF-8; select hex(…) of it, or the blob itself") from None

    def _begin(self, cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
        """Note the columns, which are known only now where no row comes; a second statement is refused."""
        if self.columns:
            raise NoQuestion("one statement at a time")
        self.columns = [str(column[0]) for column in cursor.get_description()]
        return True

    def _attach_rollups(self, data_dir: Path) -> None:
        try:
            open_reader(data_dir, ROLLUPS).close()
        except StoreUnavailable:
            return
        with translated(data_dir / ROLLUPS.name):
            self._connection.execute("attach ? as rollups", (str(data_dir / ROLLUPS.name),))


def _only_reading(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action == apsw.SQLITE_FUNCTION:
        return apsw.SQLITE_DENY if second == "load_extension" else apsw.SQLITE_OK
    if action == apsw.SQLITE_PRAGMA:
        return apsw.SQLITE_OK if first in _PRAGMAS else apsw.SQLITE_DENY
    return apsw.SQLITE_OK if action in _READING else apsw.SQLITE_DENY
