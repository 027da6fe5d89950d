import asyncio
import uuid

import grpc
from bookstore.v1 import books_pb2

from bookstore_grpc.dal.database import Database
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for
from tests.rpc.calls import Stub, book, books_of, create, delete, get, rejection, update
from tests.rpc.conftest import HandClock


def new_id() -> str:
    return str(uuid.uuid4())


async def create_batch(stub: Stub, *requests: tuple[books_pb2.Book, str]) -> list[books_pb2.Book]:
    batch = books_pb2.BatchCreateBooksRequest(
        requests=[books_pb2.CreateBookRequest(book=each, request_id=request_id) for each, request_id in requests]
    )
    return list((await stub.BatchCreateBooks(batch)).books)


async def test_a_replay_returns_the_book_of_the_first_call(clocked_stub: Stub, clock: HandClock) -> None:
    request_id = new_id()
    made = await create(clocked_stub, request_id=request_id)
    clock.now += 1_000_000
    assert await create(clocked_stub, request_id=request_id) == made
    assert await books_of(clocked_stub) == [made]


async def test_other_ids_and_none_create_other_books(stub: Stub) -> None:
    made = [await create(stub, request_id=request_id) for request_id in (new_id(), new_id(), "", "")]
    assert len({each.id for each in made}) == 4


async def test_a_replay_after_an_update_returns_the_book_as_it_was_created(stub: Stub) -> None:
    request_id = new_id()
    made = await create(stub, request_id=request_id)
    updated = await update(stub, made.id, name="Dune Messiah", release_year=1969)
    assert await create(stub, request_id=request_id) == made
    assert await books_of(stub) == [updated]


async def test_a_replay_after_the_delete_returns_the_book_as_it_was_created_and_creates_none(stub: Stub) -> None:
    request_id = new_id()
    made = await create(stub, request_id=request_id)
    await delete(stub, made.id)
    assert await create(stub, request_id=request_id) == made
    assert await books_of(stub) == []
    assert (await rejection(get(stub, made.id))).reason == "BOOK_NOT_FOUND"


async def test_the_id_with_another_book_is_rejected(stub: Stub) -> None:
    request_id = new_id()
    made = await create(stub, request_id=request_id)
    for other in (book("Dune 2"), book(author="F. Herbert"), book(release_year=1966), book("dune"), book("Du", "ne")):
        rejected = await rejection(stub.CreateBook(books_pb2.CreateBookRequest(book=other, request_id=request_id)))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert request_id in rejected.message
    assert await books_of(stub) == [made]


async def test_the_same_book_in_another_spelling_is_a_replay(stub: Stub) -> None:
    request_id = new_id()
    made = await create(stub, "Émile", request_id=request_id)
    assert await create(stub, " E\u0301mile\n", id=5, etag="x", request_id=request_id.upper()) == made


async def test_calls_that_race_create_one_book(stub: Stub) -> None:
    request_id = new_id()
    responses = await asyncio.gather(*(create(stub, request_id=request_id) for _ in range(16)))
    assert responses == [responses[0]] * 16
    assert await books_of(stub) == [responses[0]]


async def test_calls_that_race_across_servers_create_one_book(
    stub: Stub, database: Database, database_url: str
) -> None:
    async with (
        running_server(settings_for(database_url)) as other_server,
        grpc.aio.insecure_channel(other_server.addresses[0]) as channel,
    ):
        stubs = [stub, Stub(channel)]
        for _ in range(5):
            request_id = new_id()
            calls = (create(each, request_id=request_id) for each in stubs * 3)
            responses = await asyncio.gather(*calls)
            assert responses == [responses[0]] * 6
    assert len(await books_of(stub)) == 5


async def test_different_books_that_race_with_one_id_leave_one(stub: Stub) -> None:
    request_id = new_id()
    calls = (create(stub, f"Dune {number}", request_id=request_id) for number in range(8))
    responses = await asyncio.gather(*calls, return_exceptions=True)
    made = [response for response in responses if isinstance(response, books_pb2.Book)]
    errors = [response for response in responses if isinstance(response, grpc.aio.AioRpcError)]
    assert [error.code() for error in errors] == [grpc.StatusCode.ALREADY_EXISTS] * 7
    assert await books_of(stub) == made


async def test_inside_a_batch_each_request_has_its_own_id(stub: Stub) -> None:
    one, two = new_id(), new_id()
    first = await create(stub, "One", request_id=one)
    responses = await create_batch(
        stub, (book("Two"), two), (book("Three"), ""), (book("One"), one), (book("Three"), "")
    )
    assert [each.name for each in responses] == ["Two", "Three", "One", "Three"]
    assert responses[2] == first
    assert len({each.id for each in responses}) == 4
    assert await create(stub, "Two", request_id=two) == responses[0]
    assert len(await books_of(stub)) == 4


async def test_a_batch_can_be_replayed(stub: Stub) -> None:
    batch = [(book(str(number)), new_id()) for number in range(200)]
    responses = await create_batch(stub, *batch)
    assert await create_batch(stub, *batch) == responses
    assert await create_batch(stub, *reversed(batch)) == responses[::-1]
    assert await books_of(stub) == responses


async def test_twice_in_one_batch_is_one_book_returned_twice(stub: Stub) -> None:
    request_id = new_id()
    responses = await create_batch(stub, (book(), request_id), (book("Other"), ""), (book(), request_id.upper()))
    assert responses[0] == responses[2]
    assert await books_of(stub) == responses[:2]


async def test_twice_in_one_batch_with_different_books_stores_nothing(stub: Stub) -> None:
    request_id = new_id()
    call = create_batch(stub, (book("Other"), ""), (book(), request_id), (book("Dune 2"), request_id))
    rejected = await rejection(call)
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert await books_of(stub) == []
    assert (await create(stub, "A third", request_id=request_id)).name == "A third"


async def test_an_id_reused_inside_a_batch_stores_nothing_of_it(stub: Stub) -> None:
    request_id, fresh = new_id(), new_id()
    made = await create(stub, request_id=request_id)
    rejected = await rejection(create_batch(stub, (book("Other"), fresh), (book("Dune 2"), request_id)))
    assert rejected.reason == "REQUEST_ID_REUSED"
    assert await books_of(stub) == [made]
    # The batch left nothing, so its other id is still free.
    assert (await create(stub, "Unrelated", request_id=fresh)).name == "Unrelated"


async def test_batches_that_race_with_the_same_ids_in_other_orders_create_each_book_once(stub: Stub) -> None:
    batch = [(book(str(number)), new_id()) for number in range(20)]
    responses = await asyncio.gather(
        *(create_batch(stub, *(batch[shift:] + batch[:shift])) for shift in range(0, 20, 4))
    )
    for shift, response in zip(range(0, 20, 4), responses, strict=True):
        assert response == responses[0][shift:] + responses[0][:shift]
    assert len(await books_of(stub)) == 20


async def test_a_request_id_that_is_not_a_uuid_or_is_the_nil_uuid_is_rejected(stub: Stub) -> None:
    for request_id in ("1", "00000000-0000-0000-0000-000000000000"):
        rejected = await rejection(create(stub, request_id=request_id))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert list(rejected.violations) == ["request_id"]
    assert await books_of(stub) == []


async def test_a_create_that_was_rejected_leaves_its_id_free(stub: Stub) -> None:
    request_id = new_id()
    await rejection(create(stub, release_year=10_000, request_id=request_id))
    assert (await create(stub, "Another", request_id=request_id)).name == "Another"
