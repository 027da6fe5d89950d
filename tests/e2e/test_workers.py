"""Several worker processes on one port: they share the calls, are replaced when they end, and end together."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.metadata import REQUEST_ID_KEY
from tests.conftest import DATABASES, new_database
from tests.e2e.conftest import Start
from tests.e2e.test_signals import BOTH, REQUEST, ended, event_of, locked
from tests.executable import PATIENCE_SECONDS, Serving, environment, run_bookstore, serving, wait_until

pytestmark = pytest.mark.e2e

TWO = ("--workers", "2", "--log-level", "debug")
# Its calls wait for SQLite's lock, also in a drain, as long as a test holds it.
PATIENT = (*TWO, "--drain-seconds", "60", "--database-timeout-seconds", "60")
# gRPC would give all channels of this process one connection, and a connection stays with one worker.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)

Stub = books_pb2_grpc.BookServiceStub
EachWorker = dict[int, "books_pb2_grpc.BookServiceAsyncStub"]


def processes(folder: Path) -> dict[int, list[str]]:
    """The command lines, by pid, of all that runs in a folder, as the servers of a test do."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            if (process / "cwd").readlink() == folder:
                found[int(process.name)] = (process / "cmdline").read_text().split("\0")[:-1]
    return found


def folder_of(server: Serving) -> Path:
    return Path(f"/proc/{server.process.pid}/cwd").readlink()


def workers(server: Serving) -> dict[int, int]:
    """The pids of a server's workers by their index. Besides them and the supervisor there is nothing."""
    found = processes(folder_of(server))
    del found[server.process.pid]
    # One that has just ended has no arguments any more.
    return {int(arguments[-1]): pid for pid, arguments in found.items() if arguments}


def events(server: Serving) -> list[str]:
    """What the log tells of, also after the supervisor's end."""
    return [line["event"] for line in server.log_lines()]


async def both_drain(server: Serving) -> None:
    await asyncio.to_thread(wait_until, lambda: events(server).count("worker draining") == 2, "both workers drain")


@pytest.fixture(autouse=True)
def nothing_stays_behind(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does, at its end there is no process left."""
    yield
    wait_until(lambda: not processes(tmp_path), f"all have ended in {tmp_path}")


@contextmanager
def replaced(server: Serving, index: int) -> Iterator[int]:
    """Return the pid of a worker, which a block ends, and wait for its successor to serve."""
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
    """A stub for each of two workers, by its index, on a connection of its own."""
    async with AsyncExitStack() as stack:
        stubs: EachWorker = {}
        while len(stubs) < 2:
            channel = grpc.aio.insecure_channel(server.address, options=OWN_CONNECTION)
            stub = Stub(await stack.enter_async_context(channel))
            request_id = uuid.uuid4().hex
            await stub.ListBooks(books_pb2.ListBooksRequest(), metadata=((REQUEST_ID_KEY, request_id),))
            while not (lines := [line for line in server.log_lines() if line.get("request_id") == request_id]):  # noqa: ASYNC110  a file tells of nothing
                await asyncio.sleep(0.01)
            stubs[lines[0]["worker"]] = stub
        yield stubs


async def under_way(stub: "books_pb2_grpc.BookServiceAsyncStub") -> "asyncio.Task[books_pb2.Book]":
    """Send a create and go on when the worker has it."""

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
    """A server for the tests after which it goes on."""
    folder = tmp_path_factory.mktemp("workers")
    arguments = (*PATIENT, "--listen", "localhost:0", "--listen", "[::1]:0")
    with serving(f"sqlite+aiosqlite:///{folder}/bookstore.db", folder / "log", *arguments) as server:
        yield server
    assert processes(folder) == {}


async def test_connections_are_shared_out_and_every_line_of_a_worker_bears_its_index(shared: Serving) -> None:
    async with each_worker(shared) as stubs:
        assert stubs.keys() == {0, 1}
    for line in shared.log_lines():
        assert ("worker" in line) is (line["event"] != "serving")


def test_one_line_tells_that_all_serve_and_where(shared: Serving) -> None:
    lines = shared.log_lines()
    (told,) = [line for line in lines if line["event"] == "serving"]
    assert (told["workers"], told["pid"], told["level"]) == (2, shared.process.pid, "info")
    assert {line["worker"] for line in lines[: lines.index(told)] if line["event"] == "worker serving"} == {0, 1}
    for address, host in zip(shared.addresses, ["localhost", "[::1]"], strict=True):
        assert re.fullmatch(re.escape(host) + r":[1-9]\d+", address)
        assert run_bookstore("health", "--server", address).output == "SERVING\n"


def test_supervisor_holds_no_grpc_and_no_database_and_its_workers_do(shared: Serving) -> None:
    def holds(pid: int, library: str) -> bool:
        return library in Path(f"/proc/{pid}/maps").read_text()

    # Not of SQLite's own module, which the measuring of coverage loads into every process.
    for library in ("grpc/_cython/cygrpc", "sqlalchemy/engine"):
        assert [holds(pid, library) for pid in workers(shared).values()] == [True, True]
        assert not holds(shared.process.pid, library)


def test_no_command_line_shows_the_database_url(shared: Serving) -> None:
    command_lines = processes(folder_of(shared)).values()
    assert len(command_lines) == 3
    assert not [arguments for arguments in command_lines if "sqlite" in str(arguments)]


def test_port_of_workers_is_not_shared_with_other_workers(shared: Serving, sqlite_url: str) -> None:
    finished = run_bookstore("serve", "--listen", shared.addresses[1], "--database-url", sqlite_url, *TWO)

    assert finished.status == 1
    assert f"Error: Cannot listen on {shared.addresses[1]}" in finished.errors


@pytest.fixture(params=DATABASES)
async def server_on_any(request: pytest.FixtureRequest, tmp_path: Path, start: Start) -> AsyncIterator[Serving]:
    if request.param == "sqlite":
        yield request.getfixturevalue("shared")
        return
    async for url in new_database(request.param, tmp_path):
        server = await asyncio.to_thread(start, url, *TWO, "--migrate")
        yield server
        assert await asyncio.to_thread(server.stop) == 0


async def test_racing_creates_with_one_request_id_make_one_book(server_on_any: Serving) -> None:
    name = uuid.uuid4().hex
    async with each_worker(server_on_any) as stubs:

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


async def test_killed_worker_is_replaced_and_a_client_that_retries_goes_on(shared: Serving) -> None:
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
        clients = [await stack.enter_async_context(BookstoreClient(shared.address)) for _ in range(4)]
        creating = asyncio.gather(*(create_on_and_on(client) for client in clients))
        for index in (0, 1):
            await asyncio.to_thread(kill_and_wait, shared, index)
            *_, line = [line for line in shared.log_lines() if line["event"] == "worker ended"]
            assert (line["worker"], line["ended_by"], line["level"]) == (index, "SIGKILL", "warning")
        has_ended.set()
        count = sum(await creating)
        assert len([book async for book in clients[0].list_books(filter=f'name = "{name}"')]) == count


def kill_and_wait(server: Serving, index: int) -> None:
    with replaced(server, index) as pid:
        os.kill(pid, signal.SIGKILL)


async def test_worker_that_is_sent_sigterm_finishes_its_calls_and_is_replaced(shared: Serving) -> None:
    with locked(folder_of(shared) / "bookstore.db") as lock:
        async with each_worker(shared) as stubs:
            create = await under_way(stubs[1])
            with replaced(shared, 1) as pid:
                os.kill(pid, signal.SIGINT)  # a terminal's, for which the supervisor speaks
                os.kill(pid, signal.SIGTERM)
                assert (await event_of(shared, "worker draining"))["worker"] == 1
                os.kill(pid, signal.SIGTERM)
                # Its neighbour goes on.
                await stubs[0].ListBooks(books_pb2.ListBooksRequest(), timeout=PATIENCE_SECONDS)
                lock.execute("ROLLBACK")
                assert (await create).name == "N"
    *_, line = [line for line in shared.log_lines() if line["event"] == "worker ended"]
    assert (line["worker"], line["ended_by"], line["level"]) == (1, "exit status 0", "info")


@BOTH
async def test_a_signal_to_all_processes_lets_all_workers_finish_their_calls(
    patient: Serving, sqlite_file: Path, number: signal.Signals
) -> None:
    """As a service manager sends SIGTERM and a terminal SIGINT, of which the workers hear only from the supervisor."""
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


async def test_a_second_signal_ends_all_at_once(patient: Serving, sqlite_file: Path, tmp_path: Path) -> None:
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


async def test_workers_of_a_killed_supervisor_finish_their_calls_and_end(
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


# With the time that a worker has beyond its drain made short.
_SERVE_WITH_LITTLE_PATIENCE = """
import asyncio, sys
from bookstore_grpc.server import supervisor
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.telemetry.logs import configure_logging

configure_logging(level="debug", log_format="json")
settings = Settings(
    workers=2, listen=("127.0.0.1:0",), database_url=sys.argv[1], drain_seconds=0, log_level="debug"
)
sys.exit(0 if asyncio.run(supervisor.serve(settings, kill_margin_seconds=2)) else 3)
"""


def test_worker_that_does_not_end_in_its_time_is_killed_and_told_of(tmp_path: Path, sqlite_url: str) -> None:
    with supervising(tmp_path, "-c", _SERVE_WITH_LITTLE_PATIENCE, sqlite_url) as process:
        assert process.stderr is not None
        while '"serving"' not in process.stderr.readline():
            pass
        (stuck,) = [pid for pid, arguments in processes(tmp_path).items() if arguments[-1] == "1"]
        os.kill(stuck, signal.SIGSTOP)
        process.terminate()
        lines = [json.loads(line) for line in process.communicate(timeout=PATIENCE_SECONDS)[1].splitlines()]

    assert process.returncode == 3
    assert [line["pid"] for line in lines if line["event"] == "worker killed"] == [stuck]
    assert [line["worker"] for line in lines if line["event"] == "worker stopped"] == [0]


@pytest.mark.thorough
def test_worker_that_cannot_start_again_is_tried_until_it_can(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "database"
    folder.mkdir()
    server = start(f"sqlite+aiosqlite:///{folder}/bookstore.db", *TWO)
    with replaced(server, 0) as pid:
        folder.rename(tmp_path / "away")
        os.kill(pid, signal.SIGKILL)
        failed = server.wait_for_event("worker did not start")
        assert failed["worker"] == 0
        assert "unable to open database file" in failed["cause"]
        (tmp_path / "away").rename(folder)


@contextmanager
def supervising(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run Python as a supervisor whose standard error is at hand."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def starting(folder: Path, sqlite_url: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a server without its installed command, and go on before its worker 1 serves."""
    serve = ("-m", "bookstore_grpc", "serve", *TWO, "--listen", "127.0.0.1:0", "--database-url", sqlite_url)
    with supervising(folder, *serve) as process:
        wait_until(lambda: len(processes(folder)) == 1 + 2, "worker 1 has been started")
        yield process


def test_a_signal_before_all_serve_ends_it_well(tmp_path: Path, sqlite_url: str) -> None:
    """Also when it reaches a worker that cannot handle it yet, as Ctrl-C does."""
    with starting(tmp_path, sqlite_url) as process:
        for pid in processes(tmp_path):
            os.kill(pid, signal.SIGINT)
        lines = [json.loads(line) for line in process.communicate(timeout=PATIENCE_SECONDS)[1].splitlines()]

    assert process.returncode == 0
    events = [line["event"] for line in lines]
    assert "serving" not in events
    # One that is told while it still imports ends at once, and has nothing to say.
    assert events.count("worker stopped") in (1, 2)
    assert {line["level"] for line in lines} <= {"info", "debug"}
    assert events[-1] == "stopped"


def test_worker_that_ends_before_it_served_ends_the_start(tmp_path: Path, sqlite_url: str) -> None:
    with starting(tmp_path, sqlite_url) as process:
        (pid,) = [pid for pid, arguments in processes(tmp_path).items() if arguments[-1] == "1"]
        os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 1
    assert errors.endswith("Error: Worker 1 ended before it served (SIGKILL).\n")


@pytest.fixture
def taken_address() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_what_keeps_it_from_starting_is_told_once(tmp_path: Path, sqlite_url: str, taken_address: str) -> None:
    (tmp_path / "grpc_reflection.py").write_text("raise ModuleNotFoundError(name='grpc_reflection')")
    no_folder = f"sqlite+aiosqlite:///{tmp_path}/none/bookstore.db"
    for arguments, variables, told in [
        (["--listen", taken_address], {}, f"Cannot listen on {taken_address}: "),
        (["--database-url", no_folder], {}, f"Cannot use the database sqlite {tmp_path}/none/bookstore.db: "),
        (["--listen", "unix:socket"], {}, "Several workers cannot share unix:socket. Serve it with --workers 1"),
        (["--listen", "0.0.0.0:0"], {}, "0.0.0.0:0 can be reached from other machines"),
        ([], {"PYTHONPATH": str(tmp_path)}, "`bookstore serve` needs more than the client (no module 'grpc_refl"),
    ]:
        listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        finished = run_bookstore(
            "serve",
            *("--workers", "3", *listen, *arguments),
            cwd=tmp_path,
            variables={"BOOKSTORE_DATABASE_URL": sqlite_url, **variables},
        )
        assert finished.status == 1
        assert finished.errors.startswith(f"Error: {told}")
        assert len(finished.errors.splitlines()) == 1


def test_plaintext_to_other_machines_is_warned_of_once(start: Start, sqlite_url: str) -> None:
    """And auto is a worker for each core."""
    server = start(sqlite_url, "--workers", "auto", "--listen", "0.0.0.0:0", "--insecure")

    assert [line["event"] for line in server.log_lines() if line["level"] == "warning"] == [
        "serving in plaintext to other machines"
    ]
    cores = len(os.sched_getaffinity(server.process.pid))
    assert len(processes(folder_of(server))) == (1 + cores if cores > 1 else 1)
    assert run_bookstore("health", "--server", f"127.0.0.1:{server.address.rpartition(':')[2]}").status == 0
