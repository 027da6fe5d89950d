"""Searches in a large catalogue: their latency by kind and order, and that of GetBook beside them."""

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

import grpc
from bookstore.v1 import books_pb2, books_pb2_grpc
from rich.progress import Progress

from benchmarks.books import varied_books
from benchmarks.errors import check
from benchmarks.measuring import Bench
from benchmarks.servers import OURS
from benchmarks.storage import Databases

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

ORDERS = ("", "name", "author desc, id desc", "release_year", "author, name")
SEARCHERS = 4

_LATENCY_CALLS = 2_000
_TIMEOUT_SECONDS = 60


class SearchResults(NamedTuple):
    """The latencies in ms, by kind of search and order, and of GetBook without and with concurrent searches."""

    searches: dict[str, dict[str, list[float]]]
    get_alone: list[float]
    get_beside: list[float]


def searched_filters(size: int, count: int) -> dict[str, list[str]]:
    """Return filters of each kind, with words of random books: no match, one word, and three words and a year."""
    chance = random.Random(size)  # noqa: S311  not used for security
    chosen = {chance.randrange(size) for _ in range(count)}
    books = [book for index, book in enumerate(islice(varied_books(size), max(chosen) + 1)) if index in chosen]
    one = [max(f"{book.name} {book.author}".split(), key=len) for book in books]
    three = [
        f"{' '.join(sorted(f'{book.name} {book.author}'.split(), key=len)[-3:])} release_year >= {book.release_year}"
        for book in books
    ]
    return {
        "no match": [f"{word}xq" for word in one],
        "one word": one,
        "three words and a year": three,
    }


def measure_searches(bench: Bench, databases: Databases, size: int, *, count: int, progress: Progress) -> SearchResults:
    """Measure searches one after the other, and GetBook alone and beside `SEARCHERS` concurrent ones."""
    filters = searched_filters(size, count)
    found: dict[str, dict[str, list[float]]] = {kind: {order: [] for order in ORDERS} for kind in filters}
    with databases.copy("varied", size) as storage, bench.serving(OURS, storage, size) as target:
        with _stub(target.server.address) as stub:
            task = progress.add_task(f"Searches on {databases.name}", total=len(filters) * len(ORDERS) * count)
            for index in range(count):
                for kind, texts in filters.items():
                    for order in ORDERS:
                        request = books_pb2.ListBooksRequest(filter=texts[index], order_by=order)
                        page, milliseconds = _timed(partial(stub.ListBooks, request, timeout=_TIMEOUT_SECONDS))
                        check(bool(page.books) == (kind != "no match"), f"{texts[index]} found {len(page.books)} books")
                        found[kind][order].append(milliseconds)
                        progress.update(task, advance=1, refresh=True)
            alone = _get_latencies(stub, size)
        with _searching(target.server.address, filters["one word"]), _stub(target.server.address) as stub:
            beside = _get_latencies(stub, size)
    return SearchResults(found, alone, beside)


def _timed(call: Callable[[], books_pb2.ListBooksResponse]) -> tuple[books_pb2.ListBooksResponse, float]:
    began = time.perf_counter()
    response = call()
    return response, (time.perf_counter() - began) * 1e3


def _get_latencies(stub: books_pb2_grpc.BookServiceStub, size: int) -> list[float]:
    chance = random.Random(size)  # noqa: S311  not used for security
    latencies = []
    for _ in range(_LATENCY_CALLS):
        request = books_pb2.GetBookRequest(id=chance.randint(1, size))
        began = time.perf_counter()
        stub.GetBook(request, timeout=_TIMEOUT_SECONDS)
        latencies.append((time.perf_counter() - began) * 1e3)
    return latencies


@contextmanager
def _stub(address: str) -> Iterator[books_pb2_grpc.BookServiceStub]:
    # A connection of its own.
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield books_pb2_grpc.BookServiceStub(channel)


@contextmanager
def _searching(address: str, filters: Sequence[str]) -> Iterator[None]:
    """Search continuously from several clients, in a process of their own, while a block runs."""
    context = get_context("spawn")  # gRPC does not work in a forked process
    is_over = context.Event()
    searchers = context.Process(target=_search_until, args=(is_over, address, filters), daemon=True)
    searchers.start()
    try:
        yield
    finally:
        is_over.set()
        searchers.join()
    check(searchers.exitcode == 0, "a searcher failed")


def _search_until(is_over: "Event", address: str, filters: Sequence[str]) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # so that it takes no CPU from the server

    def search(number: int) -> None:
        chance = random.Random(number)  # noqa: S311  not used for security
        with _stub(address) as stub:
            while not is_over.is_set():
                request = books_pb2.ListBooksRequest(filter=chance.choice(filters), order_by=chance.choice(ORDERS))
                stub.ListBooks(request, timeout=_TIMEOUT_SECONDS)

    with ThreadPoolExecutor(SEARCHERS) as pool:
        for searcher in [pool.submit(search, number) for number in range(SEARCHERS)]:
            searcher.result()


def p99(latencies: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(latencies, n=100)[98]
