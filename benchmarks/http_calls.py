"""The operations as HTTP calls, if the tutorial has them. Its late page has a large offset."""

import http.client
import json
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any
from urllib.parse import quote_plus

from benchmarks.books import BOOKS_PER_AUTHOR, author_count, author_name, id_range, requested_authors
from benchmarks.calls import Prepared
from benchmarks.errors import check
from benchmarks.load import IN_FLIGHT, Load, Outcome
from benchmarks.operations import Operation

_JSON = {"content-type": "application/json"}
_TIMEOUT_SECONDS = 60
_URIS = 1_024
# With one process, all connections would request the same books concurrently, and updates would wait for each other.
_PROCESSES = 16
_STATUSES = {"GET": 200, "POST": 201, "PUT": 200, "PATCH": 200}


class HttpCalls:
    """The calls of the tutorial's server, whose catalogue had `size` synthetic books initially."""

    _books_path = "/books"
    _update_verb = "PUT"
    _allowance_bytes = 0  # by which a response may be shorter than the longest

    def __init__(self, address: str, *, size: int) -> None:
        self._address = address
        self._size = size
        self._random = random.Random(size)  # noqa: S311  not used for security

    def prepare(self, operation: Operation, *, run: int) -> Prepared | None:
        """Return the load of an operation, or None for batches and many calls on one connection."""
        if operation.page_size:
            return self._prepare_list(operation)
        prepare: dict[str, Callable[[int], Prepared]] = {
            "get": self._prepare_get,
            "update": self._prepare_update,
            "create": self._prepare_create,
        }
        return prepare[operation.key](run) if operation.key in prepare else None

    def _prepare_get(self, _run: int) -> Prepared:
        def call() -> int:
            book_id = self._random_id()
            book, length = self._call("GET", f"{self._books_path}/{book_id}")
            check(int(book["id"]) == book_id and book["name"] and book["author"], f"GET returned {book}")
            return length

        return self._prepared(self._load(self._paths(), processes=_PROCESSES), call)

    def _prepare_list(self, operation: Operation) -> Prepared:
        if operation.is_filtered:
            return self._prepare_filtered_list(operation)
        positions = self._positions(operation)
        paths = [self._page_path(operation, position) for position in positions]

        def call() -> int:
            page, length = self._call("GET", paths[-1])
            ids, first_id = [int(book["id"]) for book in self._books(page)], positions[-1] + 1
            expected = list(range(first_id, first_id + operation.page_size))
            check(ids == expected, f"a page has books {ids[:2]}… instead of {operation.page_size} from {first_id}")
            return length

        return self._prepared_list(paths, call)

    def _prepare_filtered_list(self, operation: Operation) -> Prepared:
        authors = requested_authors(self._size, is_any=operation.is_any)
        paths = [self._author_path(operation, author) for author in authors]

        def call() -> int:
            page, length = self._call("GET", paths[-1])
            books = self._books(page)
            ids = [int(book["id"]) for book in books]
            check(len(ids) == BOOKS_PER_AUTHOR and ids == sorted(set(ids)), f"an author's page has books {ids}")
            check({book["author"] for book in books} == {authors[-1]}, "a filtered page has another author's book")
            return length

        return self._prepared_list(paths, call)

    def _prepared_list(self, paths: list[str], call: Callable[[], int]) -> Prepared:
        return self._prepared(self._load(paths, processes=1 if len(paths) == 1 else _PROCESSES), call)

    def _positions(self, operation: Operation) -> list[int]:
        """Return the number of books before the requested pages."""
        if operation.is_any:
            first, end = id_range(self._size)
            return sorted(self._random.randrange(first, end - operation.page_size) for _ in range(_URIS))
        return [self._size * 9 // 10 if operation.is_late else 0]

    def _page_path(self, operation: Operation, position: int) -> str:
        return f"{self._books_path}?limit={operation.page_size}&skip={position}"

    def _author_path(self, operation: Operation, author: str) -> str:
        return f"{self._books_path}?limit={operation.page_size}&author={quote_plus(author)}"

    def _books(self, page: Any) -> Any:
        return page

    def _renaming(self, name: str) -> bytes:
        return _book(name, author_name(0))

    def _prepare_update(self, run: int) -> Prepared:
        prefix, numbers = f"Renamed in run {run:04d}: ", count()

        def body() -> bytes:
            return self._renaming(f"{prefix}{next(numbers):011d}")

        def call() -> int:
            path, sent = f"{self._books_path}/{self._random_id()}", body()
            book, length = self._call(self._update_verb, path, sent)
            stored, _ = self._call("GET", path)
            check(
                stored == book and book["name"] == json.loads(sent)["name"],
                f"{self._update_verb} returned {book}, stored is {stored}",
            )
            return length

        bodies = (body() for _ in count())
        paths = self._paths()

        def renamed(outcome: Outcome) -> float:
            # The connections of a process share the sequence of its URIs; each process has its own order.
            walked = min(1, outcome.calls / IN_FLIGHT / len(paths))
            return float(len(set(paths)) * (1 - (1 - walked) ** _PROCESSES))

        headers = {":method": self._update_verb}
        load = self._load(paths, bodies=bodies, headers=headers, processes=_PROCESSES)
        return self._prepared(load, call, renames_to=prefix, renamed=renamed)

    def _prepare_create(self, run: int) -> Prepared:
        def body(number: int) -> bytes:
            name = f"A new book of run {run:04d}: {number:08d}"
            return _book(name, author_name(number % author_count(self._size)))

        numbers = count()

        def call() -> int:
            book, length = self._call("POST", self._books_path, body(next(numbers)))
            stored, _ = self._call("GET", f"{self._books_path}/{book['id']}")
            check(stored == book, f"POST returned {book}, stored is {stored}")
            return length

        bodies = (body(number) for number in numbers)
        return self._prepared(self._load([self._books_path], bodies=bodies), call, books_per_call=1)

    def _prepared(self, load: Load, call: Callable[[], int], **options: Any) -> Prepared:
        return Prepared(load=load, call=call, allowance_bytes=self._allowance_bytes, **options)

    def _paths(self) -> list[str]:
        return [f"{self._books_path}/{self._random_id()}" for _ in range(_URIS)]

    def _random_id(self) -> int:
        return self._random.randrange(*id_range(self._size))

    def _load(
        self,
        paths: list[str],
        *,
        bodies: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        processes: int = 1,
    ) -> Load:
        return Load(
            uris=[f"http://{self._address}{path}" for path in paths],
            bodies=bodies,
            headers={**_JSON, **(headers or {})},
            connections=IN_FLIGHT,
            processes=processes,
            is_http1=True,
        )

    def _call(self, method: str, path: str, body: bytes | None = None) -> tuple[Any, int]:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body, _JSON)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        check(
            response.status == _STATUSES[method],
            f"{method} {path} returned {response.status}: {content[:300]!r}",
        )
        return json.loads(content), len(content)


def _book(name: str, author: str) -> bytes:
    return json.dumps({"name": name, "author": author, "release_year": 1950}).encode()
