"""The JSON API of the installed command: not imported unless enabled, as reliable as gRPC under load and signals."""

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from tests.e2e.conftest import Start
from tests.e2e.test_startup import failed_serve
from tests.e2e.test_workers import processes, workers
from tests.executable import PATIENCE_SECONDS, Serving, environment, wait_until
from tests.gateway.client import ask_and_wait, response_on

pytestmark = pytest.mark.e2e

HTTP = ("--http-listen", "127.0.0.1:0")
TWO = ("--workers", "2", "--log-level", "debug")
BOOK = {"name": "N", "author": "A", "releaseYear": 1}
CALLERS = 8


def http_address(server: Serving) -> str:
    return str(server.wait_for_event("serving")["http"])


_SERVE_AND_PRINT_IMPORTS = """
import asyncio, sys
from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.server.app import running_server
from bookstore_grpc.server.settings import Settings

async def main():
    settings = Settings(listen=("127.0.0.1:0",), http_listen=sys.argv[2], database_url=sys.argv[1])
    async with running_server(settings) as server, BookstoreClient(server.addresses[0]) as client:
        await client.create_book(name="N", author="A", release_year=1)
        await client.list_page()
        print(*sys.modules)

asyncio.run(main())
"""


def imported(database_url: str, http_listen: str) -> set[str]:
    """Return what a server has imported after its first calls."""
    done = subprocess.run(
        [sys.executable, "-c", _SERVE_AND_PRINT_IMPORTS, database_url, http_listen],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        timeout=PATIENCE_SECONDS,
    )
    return set(done.stdout.split())


def test_packages_of_disabled_features_are_not_imported(sqlite_url: str) -> None:
    without, with_http = imported(sqlite_url, ""), imported(sqlite_url, "127.0.0.1:0")
    packages = {"starlette", "anyio", "uvicorn", "httptools", "swagger_ui_bundle", "bookstore_grpc.gateway"}
    of_others = {"opentelemetry", "grpc_channelz", "prometheus_client", "jwt", "cryptography"}
    assert not {name for name in without if name.startswith((*packages, *of_others))}
    assert packages <= with_http
    assert "google.api.annotations_pb2" in without  # with the contract's own code


def test_the_address_is_logged_and_requests_to_it_succeed(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, *HTTP)
    address = http_address(server)
    created = ask_and_wait(address, "POST", "/v1/books", BOOK)
    assert created.status == 201
    assert ask_and_wait(address, "GET", created.headers["location"]).json == created.json
    assert server.stop() == 0
    assert [line["event"] for line in server.log_lines()] == [
        "serving",
        "call finished",
        "call finished",
        "draining",
        "stopped",
    ]


def test_without_http_no_address_is_logged(start: Start, sqlite_url: str) -> None:
    assert "http" not in start(sqlite_url).wait_for_event("serving")


@pytest.mark.parametrize("worker_count", ["1", "2"])
def test_a_port_in_use_is_reported(sqlite_url: str, worker_count: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        finished = failed_serve(sqlite_url, "--http-listen", address, "--workers", worker_count)
    assert f"Cannot listen on {address}: the address is in use. " in finished.errors
    assert "--http-listen" in finished.errors


@pytest.mark.parametrize("worker_count", ["1", "2"])
def test_addresses_that_cannot_be_served_are_reported(sqlite_url: str, worker_count: str) -> None:
    workers_and = ("--workers", worker_count)
    assert "--insecure" in failed_serve(sqlite_url, "--http-listen", "0.0.0.0:0", *workers_and).errors
    assert "unix:socket" in failed_serve(sqlite_url, "--http-listen", "unix:socket", *workers_and).errors
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    both = failed_serve(sqlite_url, "--listen", address, "--http-listen", address, *workers_and)
    assert f"gRPC and HTTP cannot both listen on {address}" in both.errors
    origins = failed_serve(sqlite_url, *HTTP, "--http-origins", "*", *workers_and)
    assert "--http-origins '*' is not an origin" in origins.errors


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_extra_is_reported_with_its_name(sqlite_url: str, missing: str) -> None:
    without = f"import sys; sys.modules[{missing!r}] = None; from bookstore_grpc.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", without, "serve", "--listen", "127.0.0.1:0", *HTTP],
        capture_output=True,
        text=True,
        check=False,
        env=environment(BOOKSTORE_DATABASE_URL=sqlite_url),
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert f"HTTP needs another extra (no module '{missing}" in done.stderr
    assert "pip install 'bookstore-grpc[http]'" in done.stderr
    assert "Traceback" not in done.stderr


class Load:
    """Callers that create books over HTTP continuously, each on a connection that it keeps as long as it can."""

    def __init__(self, address: str, *, ends_with_first_failure: bool) -> None:
        self._address = address
        self._ends_with_first_failure = ends_with_first_failure
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: dict[int, str] = {}
        self.statuses: dict[int, int] = {}
        self.cut_off = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(CALLERS) as callers:
            calling = [callers.submit(self._call, number) for number in range(CALLERS)]
            try:
                yield
            finally:
                self._stop.set()
            for each in calling:
                each.result()

    def wait_for(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= wanted, f"{wanted} books are created")

    def _call(self, caller: int) -> None:
        number = 0
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE_SECONDS)
        while not self._stop.is_set():
            number += 1
            name = f"{caller}-{number}"
            try:
                response = response_on(connection, "POST", "/v1/books", {**BOOK, "name": name})
            except (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead):
                connection.close()
                with self._lock:
                    self.cut_off += 1
                if self._ends_with_first_failure:
                    return
                time.sleep(0.01)
                continue
            with self._lock:
                self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
                if response.status == 201:
                    self.acknowledged[int(response.json["id"])] = name
            if response.status != 201 and self._ends_with_first_failure:
                break
        connection.close()


def stored(server: Serving) -> dict[int, str]:
    async def read() -> dict[int, str]:
        async with BookstoreClient(server.address) as client:
            return {book.id: book.name async for book in client.list_books(page_size=1_000)}

    return asyncio.run(read())


@pytest.mark.parametrize("worker_count", ["1", "2"])
def test_sigterm_under_load_loses_no_call(start: Start, sqlite_url: str, worker_count: str) -> None:
    server = start(sqlite_url, *HTTP, "--workers", worker_count)
    load = Load(http_address(server), ends_with_first_failure=True)
    with load.running():
        load.wait_for(100)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert load.statuses.keys() <= {201, 503}
    # Every stored book was acknowledged, and every acknowledged book is stored.
    assert stored(start(sqlite_url)) == load.acknowledged


def test_workers_share_the_http_address_and_each_responds(start: Start, sqlite_url: str) -> None:
    server = start(sqlite_url, *HTTP, *TWO)
    address = http_address(server)

    def responding() -> set[int]:
        ask_and_wait(address, "GET", "/v1/books")
        return {line["worker"] for line in server.log_lines() if line["event"] == "call finished"}

    wait_until(lambda: responding() == {0, 1}, "both workers have responded")
    assert server.stop() == 0
    assert "worker killed" not in server.log_text()


def test_a_killed_worker_under_load_loses_no_acknowledged_book(start: Start, sqlite_url: str, tmp_path: Path) -> None:
    server = start(sqlite_url, *HTTP, *TWO)
    load = Load(http_address(server), ends_with_first_failure=False)
    with load.running():
        for index in (0, 1):
            load.wait_for(50)
            before = workers(server)[index]
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: workers(server).get(index, before) != before, "the worker is replaced")  # noqa: B023  waited for here
            load.wait_for(50)
    assert load.statuses.keys() == {201}
    assert load.cut_off
    there = stored(server)
    assert there | load.acknowledged == there
    assert server.stop() == 0
    wait_until(lambda: not processes(tmp_path), "all have ended")


async def test_concurrent_writers_over_http_and_grpc_lose_no_update(start: Start, sqlite_url: str) -> None:
    server = await asyncio.to_thread(start, sqlite_url, *HTTP, *TWO)
    address = await asyncio.to_thread(http_address, server)
    created = (await asyncio.to_thread(ask_and_wait, address, "POST", "/v1/books", {**BOOK, "releaseYear": 0})).json
    path, rounds = f"/v1/books/{created['id']}", 25

    def over_http() -> int:
        lost = 0
        connection = http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)
        for _ in range(rounds):
            while True:
                current = response_on(connection, "GET", path)
                changed = {"releaseYear": current.json.get("releaseYear", 0) + 1}
                response = response_on(connection, "PATCH", path, changed, if_match=current.headers["etag"])
                if response.status == 200:
                    break
                assert response.status == 409
                lost += 1
        connection.close()
        return lost

    async def over_grpc() -> int:
        lost = 0
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = books_pb2_grpc.BookServiceStub(channel)
            for _ in range(rounds):
                while True:
                    book = await stub.GetBook(books_pb2.GetBookRequest(id=int(created["id"])))
                    change = books_pb2.Book(id=book.id, etag=book.etag, release_year=book.release_year + 1)
                    code = await stub.UpdateBook(books_pb2.UpdateBookRequest(book=change)).code()
                    if code is grpc.StatusCode.OK:
                        break
                    assert code is grpc.StatusCode.ABORTED
                    lost += 1
        return lost

    await asyncio.gather(asyncio.to_thread(over_http), asyncio.to_thread(over_http), over_grpc(), over_grpc())
    final: Any = (await asyncio.to_thread(ask_and_wait, address, "GET", path)).json
    assert final["releaseYear"] == 4 * rounds
