"""Several worker processes on one port: they share the connections, are replaced when they end, and stop together."""

import asyncio
import os
import re
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.metadata import REQUEST_ID_KEY
from tests.e2e.conftest import Start
from tests.e2e.test_signals import BOTH, REQUEST, ended, event_of, locked
from tests.executable import PATIENCE_SECONDS, Serving, run_bookstore, serving, wait_until

pytestmark = pytest.mark.e2e

TWO = ("--workers", "2", "--log-level", "debug")
# Its calls wait for SQLite's lock, also in a drain, as long as a test holds it.
PATIENT = (*TWO, "--drain-seconds", "60", "--database-timeout-seconds", "60")
# gRPC would give all channels of this process one connection, and a connection stays with one worker.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)

Stub = books_pb2_grpc.BookServiceStub
EachWorker = dict[int, "books_pb2_grpc.BookServiceAsyncStub"]


def processes(folder: Path) -> dict[int, list[str]]:
    """Return the command lines, by pid, of all processes that run in a folder, as the servers of a test do."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if (process / "cwd").readlink() == folder:
                found[int(process.name)] = (process / "cmdline").read_text().split("\0")[:-1]
    return found


def folder_of(server: Serving) -> Path:
    return Path(f"/proc/{server.process.pid}/cwd").readlink()


def workers(server: Serving) -> dict[int, int]:
    """Return the pids of the running workers of a server by their index; its log is of level debug."""
    started = {line["pid"]: line["worker"] for line in server.log_lines() if line["event"] == "worker serving"}
    return {started[pid]: pid for pid in processes(folder_of(server)) if pid in started}


def events(server: Serving) -> list[str]:
    """Return the log's events, also after the supervisor's end."""
    return [line["event"] for line in server.log_lines()]


async def both_drain(server: Serving) -> None:
    await asyncio.to_thread(wait_until, lambda: events(server).count("worker draining") == 2, "both workers drain")


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a process running."""
    yield
    wait_until(lambda: not processes(tmp_path), f"all have ended in {tmp_path}")


@contextmanager
def replaced(server: Serving, index: int) -> Iterator[int]:
    """Yield the pid of a worker, which the block ends, and wait for its successor to serve."""
    before = workers(server)
    known = len(server.log_lines())

    def is_replaced() -> bool:
        return ("worker serving", index) in [(line["event"], line.get("worker")) for line in server.log_lines()[known:]]

    yield before[index]
    wait_until(is_replaced, f"worker {index} is replaced")
    after = workers(server)
    assert after.keys() == before.keys()
    assert [other for other in before if after[other] != before[other]] == [index]


@asynccontextmanager
async def each_worker(server: Serving) -> AsyncIterator[EachWorker]:
    """Yield a stub for each of two workers, by its index, on a connection of its own."""
    async with AsyncExitStack() as stack:
        stubs: EachWorker = {}
        while len(stubs) < 2:
            channel = grpc.aio.insecure_channel(server.address, options=OWN_CONNECTION)
            stub = Stub(await stack.enter_async_context(channel))
            request_id = uuid.uuid4().hex
            await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=((REQUEST_ID_KEY, request_id),))
            while not (lines := [line for line in server.log_lines() if line.get("request_id") == request_id]):  # noqa: ASYNC110  a file has no events
                await asyncio.sleep(0.01)
            stubs[lines[0]["worker"]] = stub
        yield stubs


async def under_way(stub: "books_pb2_grpc.BookServiceAsyncStub") -> "asyncio.Task[books_pb2.Book]":
    """Send a create, and return when the worker has received it."""

    async def create() -> books_pb2.Book:
        return await stub.CreateBook(REQUEST, timeout=PATIENCE_SECONDS)

    task = asyncio.create_task(create())
    for _ in range(3):  # these come after it on the same connection
        await stub.ListBooks(books_pb2.ListBooksRequest(), timeout=PATIENCE_SECONDS)
    assert not task.done()
    return task


@pytest.fixture
def patient(start: Start, sqlite_url: str) -> Serving:
    return start(sqlite_url, *PATIENT)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server whose processes are interpreters of their own, for tests after which it still serves."""
    folder = tmp_path_factory.mktemp("workers")
    arguments = (*PATIENT, "--listen", "localhost:0", "--listen", "[::1]:0")
    with serving(
        f"sqlite+aiosqlite:///{folder}/bookstore.db", folder / "log", *arguments, start_method="spawn"
    ) as server:
        yield server
    assert processes(folder) == {}


async def test_connections_are_distributed_and_every_line_of_a_worker_has_its_index(shared: Serving) -> None:
    async with each_worker(shared) as stubs:
        assert stubs.keys() == {0, 1}
    for line in shared.log_lines():
        assert ("worker" in line) is (line["event"] != "serving")


def test_one_line_is_logged_when_all_serve_with_the_addresses(shared: Serving) -> None:
    lines = shared.log_lines()
    (serving_line,) = [line for line in lines if line["event"] == "serving"]
    assert (serving_line["workers"], serving_line["pid"], serving_line["level"]) == (2, shared.process.pid, "info")
    before = lines[: lines.index(serving_line)]
    assert {line["worker"] for line in before if line["event"] == "worker serving"} == {0, 1}
    for address, host in zip(shared.addresses, ["localhost", "[::1]"], strict=True):
        assert re.fullmatch(re.escape(host) + r":[1-9]\d+", address)
        assert run_bookstore("health", "--server", address).output == "SERVING\n"


def test_the_supervisor_loads_neither_grpc_nor_sqlalchemy_and_its_workers_do(shared: Serving) -> None:
    def has_loaded(pid: int, library: str) -> bool:
        return library in Path(f"/proc/{pid}/maps").read_text()

    # SQLite's own module is left out: coverage loads it into every process.
    for library in ("grpc/_cython/cygrpc", "sqlalchemy/engine"):
        assert [has_loaded(pid, library) for pid in workers(shared).values()] == [True, True]
        assert not has_loaded(shared.process.pid, library)


def test_no_command_line_shows_the_database_url(shared: Serving) -> None:
    command_lines = processes(folder_of(shared)).values()
    assert len(command_lines) == 3
    assert not [arguments for arguments in command_lines if "sqlite" in str(arguments)]


def test_port_of_workers_is_not_shared_with_other_workers(shared: Serving, sqlite_url: str) -> None:
    finished = run_bookstore("serve", "--listen", shared.addresses[1], "--database-url", sqlite_url, *TWO)

    assert finished.status == 1
    assert f"Error: Cannot listen on {shared.addresses[1]}" in finished.errors


async def test_concurrent_creates_with_one_request_id_through_two_workers_create_one_book(shared: Serving) -> None:
    name = uuid.uuid4().hex
    async with each_worker(shared) as stubs:

        async def race(request_id: str) -> int:
            book = books_pb2.Book(name=name, author="A", release_year=1)
            request = books_pb2.CreateBookRequest(book=book, request_id=request_id)
            calls = [stub.CreateBook(request, timeout=PATIENCE_SECONDS) for _ in range(4) for stub in stubs.values()]
            books = [await call for call in calls]
            assert all(book == books[0] for book in books)
            return books[0].id

        ids = [await race(str(uuid.uuid4())) for _ in range(25)]
        for stub in stubs.values():
            page = await stub.ListBooks(books_pb2.ListBooksRequest(filter=f'name = "{name}"'))
            assert [book.id for book in page.books] == sorted(set(ids))
    assert len(set(ids)) == 25


async def test_a_killed_worker_is_replaced_and_no_call_of_a_client_that_retries_fails(patient: Serving) -> None:
    name = uuid.uuid4().hex
    has_ended = asyncio.Event()

    async def create_on_and_on(client: BookstoreClient) -> int:
        count = 0
        while not has_ended.is_set():
            await client.create_book(name=name, author="A", release_year=1)
            count += 1
            await asyncio.sleep(0.01)  # leaves the machine to what starts
        return count

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(BookstoreClient(patient.address)) for _ in range(4)]
        creating = asyncio.gather(*(create_on_and_on(client) for client in clients))
        for index in (0, 1):
            await asyncio.to_thread(kill_and_wait, patient, index)
            *_, line = [line for line in patient.log_lines() if line["event"] == "worker ended"]
            assert (line["worker"], line["ended_by"], line["level"]) == (index, "SIGKILL", "warning")
        has_ended.set()
        count = sum(await creating)
        assert len([book async for book in clients[0].list_books(filter=f'name = "{name}"')]) == count


def kill_and_wait(server: Serving, index: int) -> None:
    with replaced(server, index) as pid:
        os.kill(pid, signal.SIGKILL)


async def test_a_worker_that_receives_sigterm_finishes_its_calls_and_is_replaced(shared: Serving) -> None:
    with locked(folder_of(shared) / "bookstore.db") as lock:
        async with each_worker(shared) as stubs:
            create = await under_way(stubs[1])
            with replaced(shared, 1) as pid:
                os.kill(pid, signal.SIGINT)  # a terminal's, which only the supervisor handles
                os.kill(pid, signal.SIGTERM)
                assert (await event_of(shared, "worker draining"))["worker"] == 1
                os.kill(pid, signal.SIGTERM)
                # The other worker still serves.
                await stubs[0].ListBooks(books_pb2.ListBooksRequest(), timeout=PATIENCE_SECONDS)
                lock.execute("ROLLBACK")
                assert (await create).name == "N"
    *_, line = [line for line in shared.log_lines() if line["event"] == "worker ended"]
    assert (line["worker"], line["ended_by"], line["level"]) == (1, "exit status 0", "info")


@BOTH
async def test_a_signal_to_all_processes_lets_all_workers_finish_their_calls(
    patient: Serving, sqlite_file: Path, number: signal.Signals
) -> None:
    """A service manager sends SIGTERM so, and a terminal SIGINT; workers ignore that and wait for the supervisor."""
    with locked(sqlite_file) as lock:
        async with each_worker(patient) as stubs:
            creates = [await under_way(stub) for stub in stubs.values()]
            for pid in [patient.process.pid, *workers(patient).values()]:
                os.kill(pid, number)
            await both_drain(patient)
            lock.execute("ROLLBACK")
            assert len({(await create).id for create in creates}) == 2

    assert await ended(patient) == 0
    assert events(patient)[-1] == "stopped"
    assert events(patient).count("worker stopped") == 2
    assert "worker ended" not in events(patient)


async def test_a_second_signal_ends_all_processes_immediately(
    patient: Serving, sqlite_file: Path, tmp_path: Path
) -> None:
    with locked(sqlite_file):
        async with each_worker(patient) as stubs:
            creates = [await under_way(stub) for stub in stubs.values()]
            patient.process.send_signal(signal.SIGTERM)
            await event_of(patient, "draining")
            patient.process.send_signal(signal.SIGINT)
            assert await ended(patient) == -signal.SIGINT
            for create in creates:
                with pytest.raises(grpc.aio.AioRpcError):
                    await create
            # The calls would wait for the lock that is still held.
            await asyncio.to_thread(wait_until, lambda: not processes(tmp_path), "all have ended")


async def test_workers_of_a_killed_supervisor_finish_their_calls_and_stop(
    patient: Serving, sqlite_file: Path, tmp_path: Path
) -> None:
    with locked(sqlite_file) as lock:
        async with each_worker(patient) as stubs:
            creates = [await under_way(stub) for stub in stubs.values()]
            patient.process.kill()
            await both_drain(patient)
            lock.execute("ROLLBACK")
            assert len({(await create).id for create in creates}) == 2
    await asyncio.to_thread(wait_until, lambda: not processes(tmp_path), "all have ended")
    assert events(patient).count("worker stopped") == 2
