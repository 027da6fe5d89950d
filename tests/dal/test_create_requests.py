"""Request ids: a create that is sent again, at the same time, elsewhere or late, makes one book."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft
from bookstore_grpc.errors import RequestIdReused
from bookstore_grpc.limits import CREATE_REQUEST_RETENTION_HOURS
from tests.dal.conftest import count_rows

_HOUR = 3_600_000_000


def _draft(request_id: UUID | None = None, *, name: str = "Dune") -> BookDraft:
    return BookDraft(name, "Frank Herbert", 1965, request_id)


@settings(max_examples=40)
@given(request_id=st.uuids(allow_nil=True))
@example(request_id=UUID("df368030-98d4-dddc-368b-43ae829092bf"))
@example(request_id=UUID("00000000-0000-0000-0000-000000000001"))
@example(request_id=UUID("00000000-0000-0000-0000-000000000000"))
@example(request_id=UUID("ffffffff-ffff-ffff-ffff-ffffffffffff"))
async def test_any_uuid_makes_one_book(migrated_database: Database, request_id: UUID) -> None:
    books = BookDAL(migrated_database)
    first = await books.create_book(_draft(request_id))
    assert await books.create_book(_draft(request_id)) == first
    with pytest.raises(RequestIdReused, match=str(request_id)):
        await books.create_book(_draft(request_id, name="Emma"))


async def test_replay_returns_the_book_as_it_was_created(database: Database) -> None:
    books = BookDAL(database)
    draft = _draft(uuid4())
    first = await books.create_book(draft)
    await books.update_book(first.id, BookChanges(name="Emma"))
    assert await books.create_book(draft) == first
    await books.delete_book(first.id)
    assert await books.create_book(draft) == first
    assert await count_rows(database) == (0, 1)


@pytest.mark.parametrize(
    "other",
    [
        BookDraft("Dune ", "Frank Herbert", 1965),
        BookDraft("dune", "Frank Herbert", 1965),
        BookDraft("Dune", "Frank Herber", 1965),
        BookDraft("DuneF", "rank Herbert", 1965),
        BookDraft("Dune", "Frank Herbert", -1965),
    ],
)
async def test_request_id_of_another_book_is_rejected(database: Database, other: BookDraft) -> None:
    books = BookDAL(database)
    request_id = uuid4()
    await books.create_book(_draft(request_id))
    with pytest.raises(RequestIdReused):
        await books.create_book(other._replace(request_id=request_id))
    assert await count_rows(database) == (1, 1)


async def test_batch_may_hold_replays_repeats_and_books_without_an_id(database: Database) -> None:
    books = BookDAL(database)
    old, new = _draft(uuid4(), name="old"), _draft(uuid4(), name="new")
    replayed = await books.create_book(old)
    batch = [_draft(), new, old, _draft(), new, old]
    records = await books.create_books(batch)
    assert [record.name for record in records] == [draft.name for draft in batch]
    assert records[2] == records[5] == replayed
    assert records[1] == records[4]
    assert len({record.id for record in records}) == 4
    assert await count_rows(database) == (4, 2)
    assert await books.create_books([new, old]) == [records[1], replayed]


async def test_batch_of_one_id_for_two_books_is_rejected_as_a_whole(database: Database) -> None:
    request_id = uuid4()
    with pytest.raises(RequestIdReused):
        await BookDAL(database).create_books([_draft(), _draft(request_id), _draft(request_id, name="Emma")])
    assert await count_rows(database) == (0, 0)


async def test_batch_with_a_reused_id_leaves_nothing(database: Database) -> None:
    books = BookDAL(database)
    used = _draft(uuid4())
    await books.create_book(used)
    batch = [_draft(uuid4(), name=str(number)) for number in range(100)]
    with pytest.raises(RequestIdReused):
        await books.create_books([*batch, used._replace(name="Emma")])
    assert await count_rows(database) == (1, 1)
    assert len(await books.create_books(batch)) == 100


async def test_batch_that_fails_in_its_midst_leaves_nothing(database: Database) -> None:
    class Failure(Exception):
        pass

    def fail(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO create_requests"):
            raise Failure

    books = BookDAL(database)
    batch = [_draft(uuid4()) for _ in range(3)]
    event.listen(database._writer.sync_engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(Failure):
            await books.create_books(batch)
    finally:
        event.remove(database._writer.sync_engine, "before_cursor_execute", fail)
    assert await count_rows(database) == (0, 0)
    assert len(await books.create_books(batch)) == 3


async def test_racing_replays_make_one_book(database: Database, twin: Database) -> None:
    draft = _draft(uuid4())
    records = await asyncio.gather(*(BookDAL(place).create_book(draft) for place in [database, twin] * 10))
    assert len(set(records)) == 1
    assert await count_rows(database) == (1, 1)


async def test_race_of_two_books_for_one_id_has_one_winner(database: Database, twin: Database) -> None:
    request_id = uuid4()
    results = await asyncio.gather(
        *(
            BookDAL(place).create_book(_draft(request_id, name=str(number)))
            for number, place in enumerate([database, twin] * 3)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, RequestIdReused) for result in results) == 5
    assert await count_rows(database) == (1, 1)


async def test_batches_with_the_same_ids_in_opposite_order_make_each_book_once(
    database: Database, twin: Database
) -> None:
    here, there = BookDAL(database), BookDAL(twin)
    for _ in range(5):
        batch = [_draft(uuid4(), name=str(number)) for number in range(50)]
        forth, back = await asyncio.gather(here.create_books(batch), there.create_books(batch[::-1]))
        assert forth == back[::-1]
    assert await count_rows(database) == (250, 250)


async def test_overlapping_batches_make_each_book_once(database: Database, twin: Database) -> None:
    drafts = [_draft(uuid4(), name=str(number)) for number in range(40)]
    batches = [drafts[start : start + 20] for start in (0, 10, 20, 5, 15)]
    results = await asyncio.gather(
        *(BookDAL(place).create_books(batch) for place, batch in zip([database, twin] * 3, batches, strict=False))
    )
    for batch, records in zip(batches, results, strict=True):
        assert [record.name for record in records] == [draft.name for draft in batch]
    assert await count_rows(database) == (40, 40)


async def test_request_ids_of_a_day_are_kept_and_old_ones_forgotten(database: Database) -> None:
    now = 1_767_225_600_000_000
    books = BookDAL(database, clock=lambda: now)
    drafts = [_draft(uuid4(), name=name) for name in ("old", "limit", "day", "new")]
    start = now
    first = []
    for draft, age in zip(
        drafts,
        (CREATE_REQUEST_RETENTION_HOURS * _HOUR + 1, CREATE_REQUEST_RETENTION_HOURS * _HOUR, 24 * _HOUR, 0),
        strict=True,
    ):
        now = start - age
        first.append(await books.create_book(draft))
    now = start
    assert CREATE_REQUEST_RETENTION_HOURS >= 24
    assert await books.forget_old_create_requests() == 1
    assert await books.forget_old_create_requests() == 0
    assert await count_rows(database) == (4, 3)
    assert await books.create_books(drafts[1:]) == first[1:]
    again = await books.create_book(drafts[0])
    assert again.id != first[0].id
    assert await books.get_book(first[0].id) == first[0]
