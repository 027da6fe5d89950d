"""The operations as gRPC calls."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import count, cycle
from typing import Any

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from benchmarks.books import BOOKS_PER_AUTHOR, author_count, author_name, id_range, requested_authors
from benchmarks.calls import Prepared
from benchmarks.errors import check
from benchmarks.load import Load
from benchmarks.operations import BATCH_CREATE, BATCH_GET, Operation

_FRAME_BYTES = 5
_HEADERS = {"content-type": "application/grpc", "te": "trailers"}
_FIVE_BYTES_NANOS = 2**28  # the smallest value that is encoded in five bytes
_TIMEOUT_SECONDS = 60
_BATCH_GET_BODIES = 512
_ANY_PAGE_BYTES = 4  # by which a page with a shorter token, or an author's with shorter ids, may fall short


class GrpcCalls:
    """The calls of a gRPC server whose catalogue had `size` synthetic books initially, with a token if it needs one."""

    def __init__(self, address: str, *, size: int, connections: int = 8, token: str = "") -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self._metadata = {"authorization": f"Bearer {token}"} if token else {}
        self._stub = books_pb2_grpc.BookServiceStub(grpc.intercept_channel(self._channel, _Adding(self._metadata)))
        self._address = address
        self._size = size
        self._connections = connections
        self._random = random.Random(size)  # noqa: S311  not used for security

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def walk(self) -> Iterator[books_pb2.Book]:
        """Return every book."""
        token = ""
        while True:
            page = self._list(1_000, token)
            yield from page.books
            if not (token := page.next_page_token):
                return

    def prepare(self, operation: Operation, *, run: int) -> Prepared:
        """Return the load of an operation. `run` makes new names unique."""
        prepared = self._prepare_list(operation) if operation.page_size else self._prepare_other(operation, run)
        if operation.in_flight:
            load = replace(prepared.load, connections=1, in_flight=operation.in_flight)
            prepared = replace(prepared, load=load)
        return prepared

    def _prepare_other(self, operation: Operation, run: int) -> Prepared:
        prepare: dict[str, Callable[[int], Prepared]] = {
            "get": self._prepare_get,
            "batch-get": self._prepare_batch_get,
            "update": self._prepare_update,
            "update-one": self._prepare_update,
            "create": self._prepare_create,
            "batch-create": self._prepare_batch_create,
            "batch-create-8": self._prepare_batch_create,
        }
        return prepare[operation.key](run)

    def _prepare_get(self, _run: int) -> Prepared:
        def call() -> int:
            book_id = self._random_id()
            book = self._stub.GetBook(books_pb2.GetBookRequest(id=book_id), timeout=_TIMEOUT_SECONDS)
            check(book.id == book_id and book.name and book.author and book.release_year, f"GetBook returned {book}")
            return _framed_bytes(book)

        bodies = (_framed(books_pb2.GetBookRequest(id=self._random_id())) for _ in count())
        return Prepared(load=self._load("GetBook", bodies), call=call)

    def _prepare_list(self, operation: Operation) -> Prepared:
        if operation.is_filtered:
            return self._prepare_filtered_list(operation)
        positions = self._positions(operation)
        requests = [self._list_request(operation, page_token=self._tokens[position]) for position in positions]

        def call() -> int:
            # The last request has the longest ids.
            page, first_id = self._stub.ListBooks(requests[-1], timeout=_TIMEOUT_SECONDS), positions[-1] + 1
            ids = [book.id for book in page.books]
            expected = list(range(first_id, first_id + operation.page_size))
            check(ids == expected, f"a page has books {ids[:2]}… instead of {operation.page_size} from {first_id}")
            return _framed_bytes(page)

        return self._prepared_list(requests, call)

    def _prepare_filtered_list(self, operation: Operation) -> Prepared:
        authors = requested_authors(self._size, is_any=operation.is_any)
        requests = [self._list_request(operation, filter=f'author = "{author}"') for author in authors]

        def call() -> int:
            page = self._stub.ListBooks(requests[-1], timeout=_TIMEOUT_SECONDS)
            ids = [book.id for book in page.books]
            check(len(ids) == BOOKS_PER_AUTHOR and ids == sorted(set(ids)), f"an author's page has books {ids}")
            check({book.author for book in page.books} == {authors[-1]}, "a filtered page has another author's book")
            return _framed_bytes(page)

        return self._prepared_list(requests, call)

    def _prepared_list(self, requests: list[books_pb2.ListBooksRequest], call: Callable[[], int]) -> Prepared:
        bodies = [_framed(request) for request in requests]
        if len(bodies) == 1:
            return Prepared(load=self._load("ListBooks", bodies[0]), call=call)
        return Prepared(load=self._load("ListBooks", cycle(bodies)), call=call, allowance_bytes=_ANY_PAGE_BYTES)

    def _positions(self, operation: Operation) -> list[int]:
        """Return the number of books before the requested pages."""
        if operation.is_any:
            first, end = id_range(self._size)
            positions = [position for position in self._tokens if first < position < end - operation.page_size]
            # All bodies of a load must have the same length.
            length = len(self._tokens[positions[-1]])
            return [position for position in positions if len(self._tokens[position]) == length]
        return [self._size * 9 // 10 if operation.is_late else 0]

    @cached_property
    def _tokens(self) -> dict[int, str]:
        """Page through the catalogue in a thousand steps, and return the tokens by the number of books before each."""
        step = self._size // 1_000
        tokens = {0: ""}
        for position in range(step, self._size, step):
            tokens[position] = self._list(step, tokens[position - step]).next_page_token
        return tokens

    def _list_request(
        self, operation: Operation, *, page_token: str = "", filter: str = ""
    ) -> books_pb2.ListBooksRequest:
        return books_pb2.ListBooksRequest(page_size=operation.page_size, page_token=page_token, filter=filter)

    def _prepare_batch_get(self, _run: int) -> Prepared:
        def request() -> books_pb2.BatchGetBooksRequest:
            return books_pb2.BatchGetBooksRequest(ids=self._random.sample(range(*id_range(self._size)), BATCH_GET))

        def call() -> int:
            wanted = request()
            response = self._stub.BatchGetBooks(wanted, timeout=_TIMEOUT_SECONDS)
            check([book.id for book in response.books] == list(wanted.ids), "BatchGetBooks returned other books")
            return _framed_bytes(response)

        bodies = cycle([_framed(request()) for _ in range(_BATCH_GET_BODIES)])
        return Prepared(load=self._load("BatchGetBooks", bodies), call=call)

    def _prepare_update(self, run: int) -> Prepared:
        prefix, ids = f"Renamed in run {run:04d}: ", list[int]()

        def request() -> books_pb2.UpdateBookRequest:
            ids.append(self._random_id())
            book = books_pb2.Book(id=ids[-1], name=f"{prefix}{len(ids):011d}")
            return books_pb2.UpdateBookRequest(book=book, update_mask=FieldMask(paths=["name"]))

        def call() -> int:
            update = request()
            book = self._stub.UpdateBook(update, timeout=_TIMEOUT_SECONDS)
            stored = self._stub.GetBook(books_pb2.GetBookRequest(id=update.book.id), timeout=_TIMEOUT_SECONDS)
            check(stored == book and book.name == update.book.name, f"UpdateBook returned {book}, stored is {stored}")
            return _longest(book)

        bodies = (_framed(request()) for _ in count())
        return Prepared(
            load=self._load("UpdateBook", bodies),
            call=call,
            allowance_bytes=1,
            renames_to=prefix,
            renamed=lambda outcome: len(set(ids[: outcome.bodies])),
        )

    def _prepare_create(self, run: int) -> Prepared:
        numbers = count()

        def call() -> int:
            book = self._stub.CreateBook(self._create_request(run, next(numbers)), timeout=_TIMEOUT_SECONDS)
            stored = self._stub.GetBook(books_pb2.GetBookRequest(id=book.id), timeout=_TIMEOUT_SECONDS)
            check(stored == book, f"CreateBook returned {book}, and stored is {stored}")
            return _longest(book)

        bodies = (_framed(self._create_request(run, number)) for number in numbers)
        return Prepared(load=self._load("CreateBook", bodies), call=call, allowance_bytes=2, books_per_call=1)

    def _prepare_batch_create(self, run: int) -> Prepared:
        request = books_pb2.BatchCreateBooksRequest(
            requests=[self._create_request(run, number) for number in range(BATCH_CREATE)]
        )

        def call() -> int:
            response = self._stub.BatchCreateBooks(request, timeout=_TIMEOUT_SECONDS)
            names = [book.name for book in response.books]
            check(names == [create.book.name for create in request.requests], "a batch returned other books")
            check(len({book.id for book in response.books}) == BATCH_CREATE, "a batch has fewer books than were sent")
            return _longest(response)

        return Prepared(
            load=self._load("BatchCreateBooks", _framed(request)),
            call=call,
            allowance_bytes=2 * BATCH_CREATE,
            books_per_call=BATCH_CREATE,
        )

    def _create_request(self, run: int, number: int) -> books_pb2.CreateBookRequest:
        book = books_pb2.Book(
            name=f"A new book of run {run:04d}: {number:08d}",
            author=author_name(number % author_count(self._size)),
            release_year=1950,
        )
        return books_pb2.CreateBookRequest(book=book)

    def _list(self, page_size: int, page_token: str) -> books_pb2.ListBooksResponse:
        request = books_pb2.ListBooksRequest(page_size=page_size, page_token=page_token)
        return self._stub.ListBooks(request, timeout=_TIMEOUT_SECONDS)

    def _random_id(self) -> int:
        return self._random.randrange(*id_range(self._size))

    def _load(self, method: str, bodies: Iterator[bytes] | bytes) -> Load:
        uri = f"http://{self._address}/bookstore.v1.BookService/{method}"
        return Load(uris=[uri], bodies=bodies, headers=_HEADERS | self._metadata, connections=self._connections)


class _Adding(grpc.UnaryUnaryClientInterceptor):
    """Adds metadata to every call."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Continue the call with the metadata."""
        return continuation(client_call_details._replace(metadata=tuple(self._metadata.items())), request)


def _framed(message: Message) -> bytes:
    """Return a message as the body of a gRPC request: uncompressed flag, length in four bytes, message."""
    encoded = message.SerializeToString()
    return b"\0" + len(encoded).to_bytes(4, "big") + encoded


def _framed_bytes(message: Message) -> int:
    return _FRAME_BYTES + message.ByteSize()


def _longest(response: books_pb2.Book | books_pb2.BatchCreateBooksResponse) -> int:
    """Return the size of a response whose times have fractions of the maximum length."""
    longest = type(response)()
    longest.CopyFrom(response)  # type: ignore[arg-type]  # it is of the same type
    for book in [longest] if isinstance(longest, books_pb2.Book) else longest.books:
        book.create_time.nanos = max(book.create_time.nanos, _FIVE_BYTES_NANOS)
        book.update_time.nanos = max(book.update_time.nanos, _FIVE_BYTES_NANOS)
    return _framed_bytes(longest)
