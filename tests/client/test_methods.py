"""What each method of the client sends to the service, and returns."""

import uuid

import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import BookNotFound, EtagMismatch
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for


def book(number: int) -> books_pb2.Book:
    return books_pb2.Book(name=f"Book {number}", author="Anon", release_year=number)


async def test_a_created_book_is_returned_completely_and_can_be_read(client: BookstoreClient) -> None:
    created = await client.create_book(name=" Le Père Goriot ", author="Honoré de Balzac", release_year=1835)

    assert (created.name, created.author, created.release_year) == (
        "Le Père Goriot",
        "Honoré de Balzac",
        1835,
    )
    assert created.id > 0
    assert created.etag
    assert created.create_time == created.update_time
    assert await client.get_book(created.id) == created


async def test_year_0_is_sent_as_a_value(client: BookstoreClient) -> None:
    created = await client.create_book(name="N", author="A", release_year=0)

    assert created.HasField("release_year")
    assert (await client.update_book(created.id, release_year=1)).release_year == 1
    assert (await client.update_book(created.id, release_year=0)).release_year == 0


async def test_two_creates_without_a_request_id_make_two_books(client: BookstoreClient) -> None:
    first = await client.create_book(name="N", author="A", release_year=1)
    second = await client.create_book(name="N", author="A", release_year=1)

    assert first.id != second.id


async def test_two_creates_with_one_request_id_make_one_book(client: BookstoreClient) -> None:
    request_id = str(uuid.uuid4())
    first = await client.create_book(name="N", author="A", release_year=1, request_id=request_id)
    second = await client.create_book(name="N", author="A", release_year=1, request_id=request_id)

    assert first == second


async def test_a_batch_is_stored_and_returned_in_order(client: BookstoreClient) -> None:
    created = await client.create_books([book(number) for number in range(1_000)])

    assert [each.release_year for each in created] == list(range(1_000))
    assert await client.get_books([each.id for each in created]) == list(created)


async def test_a_batch_sent_twice_with_its_request_ids_is_stored_once(client: BookstoreClient) -> None:
    request_ids = [str(uuid.uuid4()) for _ in range(3)]
    first = await client.create_books([book(1), book(2), book(3)], request_ids=request_ids)
    second = await client.create_books([book(1), book(2), book(3)], request_ids=request_ids)

    assert list(first) == list(second)
    assert len([each async for each in client.list_books()]) == 3


async def test_books_and_request_ids_must_be_as_many(client: BookstoreClient) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        await client.create_books([book(1), book(2)], request_ids=[str(uuid.uuid4())])


async def test_more_ids_than_a_batch_takes_are_read_in_several_and_in_order(client: BookstoreClient) -> None:
    created = await client.create_books([book(number) for number in range(5)])
    ids = [created[number % 5].id for number in range(2_003)]

    assert [each.id for each in await client.get_books(ids)] == ids
    assert await client.get_books([]) == []


async def test_an_update_changes_the_given_fields_and_keeps_the_rest(client: BookstoreClient) -> None:
    created = await client.create_book(name="N", author="A", release_year=1)

    assert (await client.update_book(created.id, name="New")).name == "New"
    assert (await client.update_book(created.id, author="Other")).author == "Other"
    changed = await client.update_book(created.id, release_year=-44)

    assert (changed.name, changed.author, changed.release_year) == ("New", "Other", -44)
    assert changed.etag != created.etag
    assert await client.get_book(created.id) == changed


async def test_an_update_of_nothing_changes_nothing(client: BookstoreClient) -> None:
    created = await client.create_book(name="N", author="A", release_year=1)

    assert await client.update_book(created.id) == created


async def test_the_current_etag_lets_an_update_and_a_delete_through(client: BookstoreClient) -> None:
    created = await client.create_book(name="N", author="A", release_year=1)
    changed = await client.update_book(created.id, name="New", etag=created.etag)
    await client.delete_book(created.id, etag=changed.etag)

    with pytest.raises(BookNotFound):
        await client.get_book(created.id)


async def test_books_are_updated_and_deleted_in_one_call(client: BookstoreClient) -> None:
    created = await client.create_books([book(number) for number in range(3)])
    requests = [
        books_pb2.UpdateBookRequest(book=books_pb2.Book(id=each.id, name="New", etag=each.etag)) for each in created
    ]

    updated = await client.update_books(requests)
    assert [(each.id, each.name) for each in updated] == [(each.id, "New") for each in created]
    with pytest.raises(EtagMismatch) as mismatch:
        await client.delete_books([each.id for each in created], etags=[each.etag for each in created])
    assert mismatch.value.ids == tuple(each.id for each in created)
    assert (mismatch.value.book_id, mismatch.value.omitted_count) == (created[0].id, 0)
    await client.delete_books([each.id for each in updated[1:]], etags=[each.etag for each in updated[1:]])
    await client.delete_books([updated[0].id])

    with pytest.raises(BookNotFound) as missing:
        await client.delete_books([each.id for each in created])
    assert missing.value.ids == mismatch.value.ids


async def test_books_and_etags_must_be_as_many(client: BookstoreClient) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        await client.delete_books([1, 2], etags=["x"])


async def test_a_purge_counts_and_with_force_deletes(client: BookstoreClient) -> None:
    created = await client.create_books([book(number) for number in range(5)])

    found = await client.purge_books("release_year > 2")
    assert (found.purge_count, list(found.purge_sample)) == (2, list(created[3:]))
    assert (await client.purge_books("release_year > 2", force=True)).purge_count == 2
    page = await client.list_page(page_size=1, include_total=True)
    assert (page.total_size, page.total_size_exceeded) == (3, False)


@pytest.mark.parametrize("service", ["", "bookstore.v1.BookService"])
async def test_health_says_serving(client: BookstoreClient, service: str) -> None:
    assert await client.health(service) == "SERVING"


async def test_a_unix_socket_serves_as_well_as_a_port(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("s")
    settings = settings_for(f"sqlite+aiosqlite:///{folder}/b.db", listen=(f"unix:{folder}/s",))
    async with running_server(settings), BookstoreClient(f"unix:{folder}/s") as client:
        assert (await client.create_book(name="N", author="A", release_year=1)).id == 1


class TestPaging:
    async def test_a_page_holds_what_was_asked_for_and_leads_to_the_next(self, client: BookstoreClient) -> None:
        await client.create_books([book(number) for number in range(5)])

        first = await client.list_page(page_size=3)
        second = await client.list_page(page_size=3, page_token=first.next_page_token)

        assert [each.release_year for each in first.books] == [0, 1, 2]
        assert [each.release_year for each in second.books] == [3, 4]
        assert not second.next_page_token

    @pytest.mark.parametrize("page_size", [1, 2, 7, 1_000])
    async def test_a_walk_yields_every_book_once_and_in_order(self, client: BookstoreClient, page_size: int) -> None:
        await client.create_books([book(number) for number in range(7)])

        walked = client.list_books(order_by="release_year desc", page_size=page_size)

        assert [each.release_year async for each in walked] == [6, 5, 4, 3, 2, 1, 0]

    async def test_a_walk_yields_only_what_matches(self, client: BookstoreClient) -> None:
        await client.create_books([book(number) for number in range(20)])

        walked = client.list_books(filter="release_year >= 5 release_year < 15", page_size=3)

        assert [each.release_year async for each in walked] == list(range(5, 15))

    async def test_a_walk_through_nothing_yields_nothing(self, client: BookstoreClient) -> None:
        assert [each async for each in client.list_books()] == []

    async def test_a_walk_asks_for_the_next_page_only_when_it_gets_there(self, client: BookstoreClient) -> None:
        created = await client.create_books([book(number) for number in range(3)])

        walk = client.list_books(page_size=1)
        assert (await anext(walk)).id == created[0].id
        await client.delete_book(created[1].id)

        assert [each.id async for each in walk] == [created[2].id]
