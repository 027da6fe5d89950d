"""Reading the log of changes from a position on, and trimming it."""

import json

import pytest
from sqlalchemy import func, select

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.change_log import ChangeReader, Position, record_from_text
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.models import BookChange
from bookstore_grpc.dal.records import BookRecord, Change, ChangeType
from bookstore_grpc.errors import InvalidResumeToken, ResumeTokenExpired
from bookstore_grpc.limits import BATCH_MAX, CHANGES_READ_MAX
from tests.dal.change_logs import all_changes, empty_log, kinds, log_calls, log_creates, record
from tests.dal.conftest import execute, statements_of

_START = Position(0, 0)
_HOUR = 3_600_000_000


@pytest.fixture
async def reader(database: Database) -> ChangeReader:
    await empty_log(database)
    return ChangeReader(database)


def _creates(count: int, *, first_time: int = 1) -> list[Change]:
    return [Change(ChangeType.CREATED, record(), time=first_time + number) for number in range(count)]


async def test_an_empty_log_has_no_position_and_no_changes(reader: ChangeReader) -> None:
    head = await reader.head()
    assert head.position == _START
    assert len(head.log_id) == 32
    assert await reader.earliest() == _START
    assert await reader.earliest_time() is None
    assert await reader.read_after(_START) == []
    await reader.verify(_START)


async def test_the_head_is_the_last_change(database: Database, reader: ChangeReader) -> None:
    await log_creates(database, [10, 30, 20])
    assert (await reader.head()).position == Position(3, 20)


async def test_a_read_returns_what_follows_a_position_in_one_statement(
    database: Database, reader: ChangeReader
) -> None:
    await log_creates(database, [10, 20, 30])
    with statements_of(database) as statements:
        assert kinds(await reader.read_after(Position(1, 10))) == [(2, "CREATED"), (3, "CREATED")]
    assert len(statements) == 1
    assert await reader.read_after(Position(3, 30)) == []
    assert len(await reader.read_after(_START)) == 3


@pytest.mark.parametrize("sizes", [[BATCH_MAX], [1, BATCH_MAX], [BATCH_MAX - 1, 2, 5], [400] * 7, [BATCH_MAX] * 2])
async def test_reads_return_whole_calls(database: Database, reader: ChangeReader, sizes: list[int]) -> None:
    await log_calls(database, *(_creates(size, first_time=1) for size in sizes))
    position, numbers = _START, list[int]()
    while changes := await reader.read_after(position):
        assert changes[-1].remaining == 0
        assert len(changes) <= CHANGES_READ_MAX
        position = Position.of(changes[-1])
        numbers += [change.number for change in changes]
    assert numbers == list(range(1, sum(sizes) + 1))


async def test_a_read_from_within_a_call_returns_the_rest_of_it(database: Database, reader: ChangeReader) -> None:
    await log_calls(database, _creates(3), _creates(1))
    changes = await reader.read_after(Position(2, 2))
    assert [(change.number, change.remaining) for change in changes] == [(3, 0), (4, 0)]


async def test_a_position_whose_next_change_was_deleted_is_expired(database: Database, reader: ChangeReader) -> None:
    await log_creates(database, [1, 2, 3, 4, 5])
    assert await reader.trim(before=4) == 3
    for position in (_START, Position(1, 1), Position(2, 2)):
        with pytest.raises(ResumeTokenExpired):
            await reader.read_after(position)
        with pytest.raises(ResumeTokenExpired):
            await reader.verify(position)


async def test_the_position_that_is_exactly_trimmed_to_is_not_expired(database: Database, reader: ChangeReader) -> None:
    await log_creates(database, [1, 2, 3, 4, 5])
    await reader.trim(before=4)
    for position in (Position(3, 3), Position(3, 0), await reader.earliest()):
        await reader.verify(position)
        assert kinds(await reader.read_after(position)) == [(4, "CREATED"), (5, "CREATED")]
    assert await reader.earliest() == Position(3, 0)
    assert await reader.earliest_time() == 4


async def test_a_number_beyond_the_end_is_lost(database: Database, reader: ChangeReader) -> None:
    await log_creates(database, [1, 2, 3])
    for position in (Position(4, 4), Position(4, 0), Position(2**63 - 1, 1)):
        with pytest.raises(InvalidResumeToken, match="no longer has"):
            await reader.read_after(position)
        with pytest.raises(InvalidResumeToken, match="no longer has"):
            await reader.verify(position)


async def test_a_position_of_an_empty_log_is_lost(reader: ChangeReader) -> None:
    with pytest.raises(InvalidResumeToken, match="no longer has"):
        await reader.verify(Position(1, 1))


async def test_a_number_that_another_change_has_by_now_is_lost(database: Database, reader: ChangeReader) -> None:
    """As after a restore, which lost the second change, and then another commit."""
    await log_creates(database, [1, 2])
    await execute(database, "DELETE FROM book_changes WHERE number = 2")
    await log_creates(database, [3, 4])
    with pytest.raises(InvalidResumeToken, match="no longer has"):
        await reader.read_after(Position(2, 2))
    assert kinds(await reader.read_after(Position(1, 1))) == [(2, "CREATED"), (3, "CREATED")]
    assert kinds(await reader.read_after(Position(2, 0))) == [(3, "CREATED")]  # whose time is not known


async def test_trimming_deletes_what_is_older_in_the_order_of_numbers(database: Database, reader: ChangeReader) -> None:
    """The clocks of servers differ: a change that follows one that is kept is kept too."""
    await log_creates(database, [1, 2, 9, 3, 9])
    assert await reader.trim(before=2) == 1
    assert await reader.trim(before=2) == 0
    assert await reader.trim(before=9) == 1
    assert [change[0] for change in kinds(await reader.read_after(await reader.earliest()))] == [3, 4, 5]
    assert await reader.trim(before=9) == 0


async def test_the_newest_change_is_always_kept(database: Database, reader: ChangeReader) -> None:
    await log_creates(database, [1, 2, 3])
    assert await reader.trim(before=2**62) == 2
    assert await reader.trim(before=2**62) == 0
    head = await reader.head()
    assert head.position == Position(3, 3)
    await reader.verify(head.position)


async def test_an_empty_log_is_not_trimmed(database: Database, reader: ChangeReader) -> None:
    with statements_of(database) as statements:
        assert await reader.trim(before=2**62) == 0
    assert len(statements) == 1  # without a transaction that writes


async def test_trimming_deletes_in_portions(database: Database, reader: ChangeReader) -> None:
    await log_calls(database, _creates(BATCH_MAX), _creates(BATCH_MAX), _creates(1))
    counts = [await reader.trim(before=2**62) for _ in range(4)]
    assert sum(counts) == 2 * BATCH_MAX
    assert max(counts) <= BATCH_MAX
    assert counts[-1] == 0
    assert (await database.read(select(func.count(BookChange.number))))[0][0] == 1


async def test_old_changes_are_those_before_the_time_that_they_are_kept(
    database: Database, reader: ChangeReader
) -> None:
    now = 100 * _HOUR
    await log_creates(database, [27 * _HOUR, 28 * _HOUR - 1, 28 * _HOUR, now])
    books = BookDAL(database, clock=lambda: now)
    assert await books.forget_old_changes(kept_seconds=72 * 3_600) == 2
    assert await books.changes.earliest_time() == 28 * _HOUR


async def test_a_book_of_the_log_is_read_as_it_was_stored(database: Database, reader: ChangeReader) -> None:
    stored = BookRecord(2**62, "Émile \U0001f600 \"'\\", "a\u2028b", -5_000, 2**60, 2**61)
    other = stored._replace(name="'; --", update_time=1)
    await log_calls(database, [Change(ChangeType.UPDATED, other, stored, time=2**61)])
    assert await all_changes(database) == [Change(ChangeType.UPDATED, other, stored, time=2**61, number=1)]


def test_a_book_of_a_newer_version_is_read_without_its_further_fields() -> None:
    values = [*record(7), "", "added later"]
    assert record_from_text(json.dumps(values)) == record(7)


def test_the_fields_that_a_book_of_an_older_version_lacks_are_empty() -> None:
    """Fields that are added to a version are optional texts at the end of a record."""
    assert tuple(record_from_text(json.dumps(record(7)[:-1]))) == (*record(7)[:-1], "")
