"""The log of changes: a row for each change, written in its transaction and numbered in the order of all commits.

A transaction locks the one row of the table `change_log` before it takes its numbers, and holds that lock until its
commit. So whoever sees a number sees all lower ones too, and reading the log from a number on misses nothing
(docs/decisions/0029-change-log.md).
"""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import takewhile
from time import monotonic
from typing import Any, NamedTuple

import orjson
from sqlalchemy import FromClause, bindparam, delete, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.driver_reader import Rows
from bookstore_grpc.dal.models import BookChange, ChangeLog, Query
from bookstore_grpc.dal.packets import packets
from bookstore_grpc.dal.records import BookRecord, Change, ChangeType
from bookstore_grpc.errors import InvalidResumeToken, ResumeTokenExpired
from bookstore_grpc.limits import BATCH_MAX, CHANGES_READ_MAX

#: Why a resume token is invalid that was valid once.
LOST = "is of changes that the database no longer has, as after a restore; start again without it"

#: PostgreSQL notifies the listeners on this channel when a transaction with changes has committed.
CHANNEL = "bookstore_changes"

_COLUMNS = ("number", "remaining", "type", "change_time", "book", "previous_book")
# SQLite's limit on parameters is 32,766 by default.
_ROWS_MAX_ON_SQLITE = 4_096
# The values of optional fields that a record of an older version lacks.
_DEFAULTS = [""] * len(BookRecord._fields)

_READ: Query = (
    select(*(getattr(BookChange, name) for name in _COLUMNS))
    .where(BookChange.number >= bindparam("from_number"))
    .order_by(BookChange.number)
    .limit(bindparam("limit"))
)
_PLACE_COLUMNS: Sequence[Any] = (BookChange.number, BookChange.change_time)
#: The number and the time of the newest change, both NULL if there is none. To be joined to the one row of `ChangeLog`.
NEWEST: FromClause = select(*_PLACE_COLUMNS).order_by(BookChange.number.desc()).limit(1).subquery("newest")
_HEAD: Query = select(ChangeLog.log_id, *NEWEST.c).join_from(ChangeLog, NEWEST, true(), isouter=True)
_EARLIEST: Query = select(*_PLACE_COLUMNS).order_by(BookChange.number).limit(1)
_OLDEST: Query = select(*_PLACE_COLUMNS).order_by(BookChange.number).limit(BATCH_MAX)
# Never the newest, also if what is expired was read from a server that has more. MariaDB takes no table that it deletes
# from, but a derived one.
_DELETE = delete(BookChange).where(
    BookChange.number <= bindparam("last_expired"), BookChange.number < select(NEWEST.c.number).scalar_subquery()
)

# The newest change is always kept, so the next number is the one after it.
_LOG_ON_SQLITE = f"""
INSERT INTO book_changes ({", ".join(_COLUMNS)})
SELECT (SELECT coalesce(max(number), 0) FROM book_changes) + column1, column2, column3, column4, column5, column6
FROM (VALUES {{}})
"""  # noqa: S608  constants
_ROW_ON_SQLITE = "(?, ?, ?, ?, ?, ?)"
# A function, because each of its statements sees what was committed before that statement. It notifies `CHANNEL`.
_LOG_ON_POSTGRESQL = "SELECT log_book_changes($1, $2, $3, $4, $5)"
# A block, which is one round trip.
_LOG_ON_MARIADB = (
    "BEGIN NOT ATOMIC DECLARE locked TEXT; DECLARE newest BIGINT; "  # noqa: S608  constants
    "SELECT log_id INTO locked FROM change_log FOR UPDATE; "
    "SELECT coalesce(max(number), 0) INTO newest FROM book_changes; "
    f"INSERT INTO book_changes ({', '.join(_COLUMNS)}) VALUES {{}}; END"
)


class Position(NamedTuple):
    """A change in the log, by its number, or with 0 the start of the log.

    `time` is that of the change. It tells whether the log still has this change under the number: a database that lost
    commits, in a failover or as it was restored, gives their numbers to others. It is 0 if it is not known.
    """

    number: int
    time: int

    @classmethod
    def of(cls, change: Change) -> "Position":
        """Return the position of a change."""
        return cls(change.number, change.time)


class _Row(NamedTuple):
    """A row of the log without its number."""

    remaining: int
    type: int
    change_time: int
    book: str
    previous_book: str | None


class Head(NamedTuple):
    """The id of the log, and the position of its last change."""

    log_id: str
    position: Position


def text_from_record(record: BookRecord) -> str:
    """Return a book as the log stores it: the values of its fields, in their order, as JSON."""
    return orjson.dumps([*record]).decode()


def record_from_text(text: str) -> BookRecord:
    """Return a book from the log, without fields that a newer version has added, and with those that an older lacks."""
    values = orjson.loads(text)
    return BookRecord._make([*values, *_DEFAULTS[len(values) :]][: len(BookRecord._fields)])


async def log_changes(connection: AsyncConnection, calls: Iterable[Sequence[Change]]) -> None:
    """Write the changes of each call to the log, as the last statement of a transaction: it takes a lock.

    The numbers in the changes are ignored.
    """
    rows = [
        _Row(
            remaining,
            int(change.type),
            change.time,
            text_from_record(change.record),
            change.previous and text_from_record(change.previous),
        )
        for changes in calls
        for remaining, change in zip(reversed(range(len(changes))), changes, strict=True)
    ]
    if rows:
        await _LOGGERS[connection.dialect.name](connection, rows)


async def _log_on_sqlite(connection: AsyncConnection, rows: Sequence[_Row]) -> None:
    for start in range(0, len(rows), _ROWS_MAX_ON_SQLITE):
        some = rows[start : start + _ROWS_MAX_ON_SQLITE]
        values = tuple(value for offset, row in enumerate(some, 1) for value in (offset, *row))
        statement = _LOG_ON_SQLITE.format(", ".join([_ROW_ON_SQLITE] * len(some)))
        await connection.exec_driver_sql(statement, values)


async def _log_on_postgresql(connection: AsyncConnection, rows: Sequence[_Row]) -> None:
    await connection.exec_driver_sql(_LOG_ON_POSTGRESQL, tuple(map(list, zip(*rows, strict=True))))


async def _log_on_mariadb(connection: AsyncConnection, rows: Sequence[_Row]) -> None:
    for packet in packets(connection, rows, values=tuple):
        values: list[str] = []
        parts: list[str] = []
        for offset, (remaining, type_, time, book, previous) in enumerate(packet, 1):
            # The driver takes microseconds for each value that it inserts, so only texts are left to it.
            parts.append(f"(newest+{offset},{remaining},{type_},{time},%s,{'%s' if previous else 'NULL'})")
            values += [book, previous] if previous else [book]
        await connection.exec_driver_sql(_LOG_ON_MARIADB.format(",".join(parts)), tuple(values))


_LOGGERS = {"sqlite": _log_on_sqlite, "postgresql": _log_on_postgresql, "mariadb": _log_on_mariadb}


class ChangeReader:
    """Reads and trims the log of a database. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def head(self) -> Head:
        """Return the id of the log and its last position."""
        ((log_id, number, time),) = await self._database.read(_HEAD)
        return Head(log_id, Position(number or 0, time or 0))

    async def earliest(self) -> Position:
        """Return the position before the earliest change that is kept."""
        rows = await self._database.read(_EARLIEST)
        return Position(rows[0][0] - 1 if rows else 0, 0)

    async def earliest_time(self) -> int | None:
        """Return when the earliest change that is kept was made, in microseconds since 1970, or None without one."""
        rows = await self._database.read(_EARLIEST)
        return rows[0][1] if rows else None

    async def read_after(self, position: Position) -> Sequence[Change]:
        """Return the next changes after a position: those of whole calls, at least of one if there is one.

        Raises `ResumeTokenExpired` if some are no longer kept, and `InvalidResumeToken` if the log does not have the
        change at the position any more.
        """
        rows = await self._rows_from(position, limit=CHANGES_READ_MAX)
        following = [row for row in rows if row[0] != position.number]
        if len(following) >= CHANGES_READ_MAX - 1:
            # On SQLite this read was inline, and so may be many further ones by a caller who finds few wanted changes.
            await asyncio.sleep(0)
        return [_change(row) for row in _rows_of_whole_calls(following)]

    async def verify(self, position: Position) -> bool:
        """Raise what `read_after` would, or return whether more changes of the call at the position follow."""
        rows = await self._rows_from(position, limit=1)
        return any(row[0] == position.number and row[1] for row in rows)

    async def trim(self, *, before: int) -> int:
        """Delete changes made before a time in microseconds since 1970, and return how many; 0 when none are left.

        At most `BATCH_MAX`, because on SQLite all other writes wait in the meantime. The newest change is kept.
        """
        rows = await self._database.read(_OLDEST)
        expired = list(takewhile(lambda row: row[1] < before, rows[:-1]))
        if not expired:
            return 0
        last_expired = expired[-1][0]

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(_DELETE, {"last_expired": last_expired})).rowcount

        return await self._database.write(work)

    async def _rows_from(self, position: Position, *, limit: int) -> Rows:
        """Return the change at a position, which is always kept if it is the newest one, and those that follow."""
        parameters = {"from_number": position.number, "limit": limit}
        rows = await self._database.read(_READ, parameters)
        try:
            _verify(position, rows)
        except InvalidResumeToken:
            if self._database.is_embedded:
                raise
            # The connection may be to a former primary, which lacks what was committed since.
            began = monotonic()
            rows = await self._database.read_from_primary(_READ, parameters)
            _verify(position, rows)
            self._database.leave_former_primary(opened_before=began)
        return rows


def _verify(position: Position, rows: Rows) -> None:
    """Raise unless rows begin with the change at a position, or with the one after it."""
    if not rows:
        if position.number:
            raise InvalidResumeToken(LOST)
        return
    number, _remaining, _type, time, *_ = rows[0]
    if number == position.number and position.time and time != position.time:
        raise InvalidResumeToken(LOST)
    if number > position.number + 1:
        raise ResumeTokenExpired


def _rows_of_whole_calls(rows: Rows) -> Rows:
    """Return the rows up to the last end of a call, or all if there is none."""
    if len(rows) < CHANGES_READ_MAX - 1:
        return rows
    ends = (index for index in reversed(range(len(rows))) if not rows[index][1])
    return rows[: next(ends, len(rows) - 1) + 1]


def _change(row: Sequence[Any]) -> Change:
    number, remaining, type_, time, book, previous = row
    return Change(
        ChangeType(type_),
        record_from_text(book),
        previous and record_from_text(previous),
        time=time,
        number=number,
        remaining=remaining,
    )
