"""JSON and gRPC-Web through Envoy return what gRPC returns without it: messages, statuses, reasons and details."""

import asyncio
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
from bookstore.v1 import books_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from bookstore_grpc.gateway.responses import STATUSES
from tests.envoy.callers import (
    BINDINGS,
    Outcome,
    ask,
    framed,
    json_request,
    outcome_from_json,
    outcome_from_web,
    outcome_of,
    path_of,
    web_headers,
)
from tests.envoy.edge import Edge
from tests.gateway.client import Response
from tests.rpc.calls import book, create, create_all

if TYPE_CHECKING:
    from tests.rpc.calls import Stub

CREATES = books_pb2.CreateBookRequest
GETS = books_pb2.GetBookRequest
LISTS = books_pb2.ListBooksRequest
UPDATES = books_pb2.UpdateBookRequest
DELETES = books_pb2.DeleteBookRequest
GETS_MANY = books_pb2.BatchGetBooksRequest
CREATES_MANY = books_pb2.BatchCreateBooksRequest
UPDATES_MANY = books_pb2.BatchUpdateBooksRequest
DELETES_MANY = books_pb2.BatchDeleteBooksRequest
PURGES = books_pb2.PurgeBooksRequest
CHANGES = books_pb2.ListBookChangesRequest

NOBODY = 9_223_372_036_854_775_807
STRANGE = 'Ünïcode 元旦 😀 "quoted" \\ & = % + / ?'


class Given(NamedTuple):
    """What is stored before a call: books of one author, a book to delete, and request ids."""

    books: list[books_pb2.Book]
    doomed: books_pb2.Book
    request_ids: list[str]

    @property
    def one(self) -> books_pb2.Book:
        return self.books[0]


class Case(NamedTuple):
    """A call, made from what is stored, and the reason of its error or ""."""

    method: str
    request: Callable[[Given], Message]
    reason: str = ""


def _mask(*paths: str) -> FieldMask:
    return FieldMask(paths=paths)


# Only the first transport creates a book: with the same request id the others return it.
CASES = {
    "create": Case("CreateBook", lambda at: CREATES(book=book(STRANGE), request_id=at.request_ids[0])),
    "create with year 0": Case("CreateBook", lambda at: CREATES(book=book("A", "B", 0), request_id=at.request_ids[0])),
    "create with every field wrong": Case(
        "CreateBook", lambda _: CREATES(book=book(" ", "\t", 10_000)), "INVALID_FIELD"
    ),
    "create of nothing": Case("CreateBook", lambda _: CREATES(book=books_pb2.Book()), "INVALID_FIELD"),
    "create with no UUID": Case("CreateBook", lambda _: CREATES(book=book(), request_id="x/y z"), "INVALID_FIELD"),
    "create with a used id": Case(
        "CreateBook", lambda at: CREATES(book=book("Other"), request_id=at.request_ids[1]), "REQUEST_ID_REUSED"
    ),
    "get": Case("GetBook", lambda at: GETS(id=at.one.id)),
    "get of nobody": Case("GetBook", lambda _: GETS(id=NOBODY), "BOOK_NOT_FOUND"),
    "get of 0": Case("GetBook", lambda _: GETS(id=0), "INVALID_FIELD"),
    "get of a negative id": Case("GetBook", lambda _: GETS(id=-1), "INVALID_FIELD"),
    "list": Case("ListBooks", lambda at: LISTS(filter=f'author = "{at.one.author}"')),
    "list of none": Case("ListBooks", lambda _: LISTS(filter='author = "~"')),
    "list a page in an order": Case(
        "ListBooks", lambda at: LISTS(filter=f'author = "{at.one.author}"', page_size=2, order_by="name desc, id")
    ),
    "list with an operator of every kind": Case(
        "ListBooks", lambda at: LISTS(filter=f'(author:"{at.one.author}" AND release_year >= -5) -name="*&+%"')
    ),
    "list with a broken filter": Case("ListBooks", lambda _: LISTS(filter="name = (%&+"), "INVALID_FILTER"),
    "list in no order": Case("ListBooks", lambda _: LISTS(order_by="etag"), "INVALID_ORDER_BY"),
    "list by no token": Case("ListBooks", lambda _: LISTS(page_token="x"), "INVALID_PAGE_TOKEN"),
    "list of a negative size": Case("ListBooks", lambda _: LISTS(page_size=-1), "INVALID_FIELD"),
    "update without a mask": Case("UpdateBook", lambda at: UPDATES(book=books_pb2.Book(id=at.one.id, name=STRANGE))),
    "update by a mask": Case(
        "UpdateBook",
        lambda at: UPDATES(book=book("N", "A", 7, id=at.one.id), update_mask=_mask("name", "release_year")),
    ),
    "update of everything": Case(
        "UpdateBook", lambda at: UPDATES(book=book("N", "A", 0, id=at.one.id), update_mask=_mask("*"))
    ),
    "update by an etag of before": Case(
        "UpdateBook", lambda at: UPDATES(book=book(id=at.one.id, etag="before")), "ETAG_MISMATCH"
    ),
    "update of nobody": Case("UpdateBook", lambda _: UPDATES(book=book(id=NOBODY)), "BOOK_NOT_FOUND"),
    "update of no field": Case(
        "UpdateBook", lambda at: UPDATES(book=book(id=at.one.id), update_mask=_mask("nope")), "INVALID_FIELD"
    ),
    "update of what is required": Case(
        "UpdateBook", lambda at: UPDATES(book=books_pb2.Book(id=at.one.id), update_mask=_mask("*")), "INVALID_FIELD"
    ),
    "delete": Case("DeleteBook", lambda at: DELETES(id=at.doomed.id)),
    "delete by its etag": Case("DeleteBook", lambda at: DELETES(id=at.doomed.id, etag=at.doomed.etag)),
    "delete by an etag of before": Case("DeleteBook", lambda at: DELETES(id=at.one.id, etag="a b&c"), "ETAG_MISMATCH"),
    "delete of nobody": Case("DeleteBook", lambda _: DELETES(id=NOBODY), "BOOK_NOT_FOUND"),
    "delete of 0": Case("DeleteBook", lambda _: DELETES(id=0), "INVALID_FIELD"),
    "get several": Case("BatchGetBooks", lambda at: GETS_MANY(ids=[*(each.id for each in at.books), at.one.id])),
    "get a thousand that are not there": Case(
        "BatchGetBooks", lambda _: GETS_MANY(ids=range(NOBODY - 999, NOBODY + 1)), "BOOK_NOT_FOUND"
    ),
    "get none": Case("BatchGetBooks", lambda _: GETS_MANY(), "INVALID_FIELD"),
    "create several": Case(
        "BatchCreateBooks",
        lambda at: CREATES_MANY(requests=[CREATES(book=book(each), request_id=each) for each in at.request_ids[2:]]),
    ),
    "create several of which some are wrong": Case(
        "BatchCreateBooks", lambda _: CREATES_MANY(requests=[CREATES(book=book()), CREATES()]), "INVALID_FIELD"
    ),
    "create none": Case("BatchCreateBooks", lambda _: CREATES_MANY(), "INVALID_FIELD"),
    "update several": Case(
        "BatchUpdateBooks",
        lambda at: UPDATES_MANY(
            requests=[UPDATES(book=book("M", "A", 7, id=each.id), update_mask=_mask("name")) for each in at.books]
        ),
    ),
    "update several by etags of before": Case(
        "BatchUpdateBooks",
        lambda at: UPDATES_MANY(requests=[UPDATES(book=book(id=each.id, etag="before")) for each in at.books]),
        "ETAG_MISMATCH",
    ),
    "delete several": Case("BatchDeleteBooks", lambda at: DELETES_MANY(requests=[DELETES(id=at.doomed.id)])),
    "delete several of which one is wrong": Case(
        "BatchDeleteBooks", lambda at: DELETES_MANY(requests=[DELETES(id=at.doomed.id), DELETES()]), "INVALID_FIELD"
    ),
    "purge to see": Case("PurgeBooks", lambda at: PURGES(filter=f'author = "{at.one.author}"')),
    "purge": Case("PurgeBooks", lambda at: PURGES(filter=f"id = {at.doomed.id}", force=True)),
    "purge without a filter": Case("PurgeBooks", lambda _: PURGES(force=True), "INVALID_FIELD"),
    "list with a total": Case(
        "ListBooks", lambda at: LISTS(filter=f'author = "{at.one.author}"', page_size=1, include_total=True)
    ),
    "changes": Case("ListBookChanges", lambda at: CHANGES(filter=f'author = "{at.one.author}"', page_size=1)),
    "changes after no token": Case("ListBookChanges", lambda _: CHANGES(page_token="x"), "INVALID_RESUME_TOKEN"),
    "create several with a used id": Case(
        "BatchCreateBooks",
        lambda at: CREATES_MANY(requests=[CREATES(book=book("Other"), request_id=at.request_ids[1])]),
        "REQUEST_ID_REUSED",
    ),
}


@pytest.fixture
async def given(stub: "Stub") -> Callable[[], Any]:
    author = f"Author {uuid.uuid4()}"
    request_ids = [str(uuid.uuid4()) for _ in range(5)]
    books = await create_all(stub, [book(f"Book {number}", author, number - 5) for number in range(4)])
    await create(stub, request_id=request_ids[1])

    async def with_a_doomed_book() -> Given:
        return Given(books, await create(stub, "Doomed"), request_ids)

    return with_a_doomed_book


async def by_json(edge: Edge, method: str, request: Message) -> tuple[Outcome, Response]:
    verb, target, body = json_request(method, request)
    headers = {} if body is None else {"content-type": "application/json"}
    response = await asyncio.to_thread(ask, edge.envoy.address, edge.envoy.ca, verb, target, body, headers)
    return outcome_from_json(method, response), response


async def by_web(edge: Edge, method: str, data: bytes) -> Outcome:
    response = await asyncio.to_thread(
        ask, edge.envoy.address, edge.envoy.ca, "POST", path_of(method), framed(data), web_headers()
    )
    return outcome_from_web(method, response)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_json_and_grpc_web_return_what_grpc_does(
    edge: Edge, direct: grpc.aio.Channel, given: Callable[[], Any], case: Case
) -> None:
    expected = await outcome_of(direct, case.method, case.request(await given()))
    assert expected.reason == case.reason
    assert (expected.message is None) == bool(case.reason)

    async with edge.envoy.channel() as channel:
        assert await outcome_of(channel, case.method, case.request(await given())) == expected
    assert await by_web(edge, case.method, case.request(await given()).SerializeToString()) == expected
    outcome, response = await by_json(edge, case.method, case.request(await given()))
    assert outcome == expected
    code = next(code for code in grpc.StatusCode if code.value[0] == expected.status.code)
    assert response.status == STATUSES[code.name]


def test_the_cases_have_a_success_and_an_error_of_every_rpc() -> None:
    for is_error in (False, True):
        methods = {case.method for case in CASES.values() if bool(case.reason) is is_error}
        assert methods == set(BINDINGS) - {"WatchBooks"}  # which test_watch.py is about


async def test_bytes_that_are_not_a_message_are_rejected_as_by_a_server(edge: Edge) -> None:
    assert (await by_web(edge, "GetBook", b"\xff")).reason == "MALFORMED_MESSAGE"


async def test_a_message_that_is_too_long_is_rejected_as_by_a_server(edge: Edge, direct: grpc.aio.Channel) -> None:
    request = CREATES(book=book("x" * (8 << 20)))
    expected = await outcome_of(direct, "CreateBook", request)
    assert expected.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    async with edge.envoy.channel() as channel:
        assert await outcome_of(channel, "CreateBook", request) == expected


async def test_an_unknown_method_is_unimplemented_as_by_a_server(edge: Edge, direct: grpc.aio.Channel) -> None:
    async with edge.envoy.channel() as channel:
        for path in (path_of("BurnBooks"), "/other.Service/Get"):
            details = []
            for each in (direct, channel):
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = each.unary_unary(path)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"")
                details.append((caught.value.code(), caught.value.details()))
            assert details[0] == details[1]
            assert details[0][0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_is_propagated_and_the_error_is_the_servers(edge: Edge) -> None:
    outcomes = []
    for _ in range(10):
        response = await asyncio.to_thread(
            ask, edge.envoy.address, edge.envoy.ca, "DELETE", f"/v1/books/{NOBODY}", headers={"grpc-timeout": "1n"}
        )
        assert response.status == 504
        outcomes.append(outcome_from_json("DeleteBook", response))
    # gRPC's own status, without a reason, may come first.
    assert {outcome.status.code for outcome in outcomes} == {grpc.StatusCode.DEADLINE_EXCEEDED.value[0]}
    assert "DEADLINE_EXCEEDED" in {outcome.reason for outcome in outcomes}
