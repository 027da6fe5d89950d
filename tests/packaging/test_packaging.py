"""The distribution as it is installed: typed, and without the server's packages by default."""

import fcntl
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "generated/bookstore/v1"

# With --strict an unused ignore is an error too, so untyped messages or stubs would not pass.
CALLER = """
from typing import assert_type

import grpc
import grpc.aio
from bookstore.v1 import books_pb2, books_pb2_grpc
from bookstore_grpc.client import BookstoreClient

REQUEST = books_pb2.GetBookRequest(id=1)
books_pb2.GetBookRequest(id="1")  # type: ignore[arg-type]


def read(channel: grpc.Channel) -> str:
    stub = books_pb2_grpc.BookServiceStub(channel)
    book = stub.GetBook(REQUEST, timeout=1)
    assert_type(book, books_pb2.Book)
    stub.GetBook(book)  # type: ignore[arg-type]
    return book.name


async def read_later(channel: grpc.aio.Channel) -> int:
    stub = books_pb2_grpc.BookServiceStub(channel)
    page = await stub.ListBooks(books_pb2.ListBooksRequest(page_size=10), timeout=1)
    assert_type(page, books_pb2.ListBooksResponse)
    await stub.ListBooks(page)  # type: ignore[arg-type]
    return page.books[0].release_year


def takes(client: BookstoreClient) -> None:
    client.no_such_method()  # type: ignore[attr-defined]


async def stores(client: BookstoreClient) -> None:
    book = await client.create_book(name="N", author="A", release_year=1, timeout_seconds=2)
    await client.update_book(book.id, name="M", call_id="x")
    await client.update_book(book.id, nmae="M")  # type: ignore[call-arg]
    await client.create_book(name="N", author="A", release_year="1")  # type: ignore[arg-type]
"""


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)


def succeed(*command: str | Path, cwd: Path = ROOT) -> str:
    completed = run(*command, cwd=cwd)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def built_once(name: str, tmp_path_factory: pytest.TempPathFactory, build: Callable[[Path], None]) -> Path:
    """Return a folder that the first of the processes which run the tests builds, and the others wait for."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, is_built = root / name, root / f"{name}.built"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_built.exists():
            build(folder)
            is_built.touch()
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(folder: Path) -> None:
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        succeed(*pip, "--wheel-dir", folder, ROOT)

    (built,) = built_once("wheel", tmp_path_factory, build).glob("*.whl")
    return built


@pytest.fixture(scope="module")
def light_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, its base dependencies and the stubs that mypy needs."""

    def build(environment: Path) -> None:
        venv.create(environment)
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--python",
            environment / "bin/python",
            "install",
            "--quiet",
            "--no-compile",
        )
        succeed(*pip, "--constraint", ROOT / "constraints.txt", wheel, "types-grpcio", "types-protobuf")

    return built_once("light", tmp_path_factory, build) / "bin"


@pytest.fixture
def light_run(light_bin: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    # Outside of the checkout, whose packages would be found first.
    return lambda *arguments: run(light_bin / "bookstore", *arguments, cwd=tmp_path)


def test_the_wheel_contains_both_packages_with_their_types_and_migrations(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {
        "bookstore",
        "bookstore_grpc",
    }
    assert {"bookstore/py.typed", "bookstore/v1/books_pb2.pyi", "bookstore_grpc/py.typed"} <= names
    migrations = "bookstore_grpc/dal/migrations/"
    kept = {path.relative_to(ROOT).as_posix() for path in (ROOT / migrations).rglob("*.py")}
    assert kept
    assert kept <= names


def test_the_base_install_runs_client_verbs_without_the_servers_packages(
    light_bin: Path, light_run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for package in ("aiosqlite", "alembic", "lark", "sqlalchemy", "structlog"):
        imported = run(light_bin / "python", "-c", f"import {package}", cwd=Path("/"))
        assert "ModuleNotFoundError" in imported.stderr
    version = light_run("version")
    assert version.returncode == 0, version.stderr
    assert "0.1.0" in version.stdout
    for verb in ("create", "get", "list", "update", "delete", "import", "export", "watch", "relay", "health"):
        shown = light_run(verb, "--help")
        assert shown.returncode == 0, shown.stderr
        assert "--server" in shown.stdout


@pytest.mark.parametrize("command", ["serve", "migrate", "backup copy.db"])
def test_a_verb_of_the_server_names_the_extra_that_it_lacks(
    command: str, light_run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rejected = light_run(*command.split())
    assert rejected.returncode != 0
    assert rejected.stdout == ""
    (sentence,) = rejected.stderr.splitlines()
    assert "bookstore-grpc[server]" in sentence


def test_a_callers_code_with_sync_and_async_stubs_passes_mypy_strict(light_bin: Path, tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", "cache")
    succeed(*mypy, "--python-executable", light_bin / "python", "caller.py", cwd=tmp_path)


def test_the_floors_of_grpcio_and_protobuf_are_those_that_the_generated_code_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = {found.name: found.specifier for found in map(Requirement, project["dependencies"])}

    grpc_code = (GENERATED / "books_pb2_grpc.py").read_text()
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '(.+)'", grpc_code)
    protobuf = re.search(r"^# Protobuf Python Version: (.+)$", (GENERATED / "books_pb2.py").read_text(), re.M)
    assert grpcio
    assert protobuf
    assert f">={grpcio[1]}" in str(requirements["grpcio"])
    # A runtime serves code of its own major version and of the one before.
    assert set(str(requirements["protobuf"]).split(",")) == {
        f">={protobuf[1]}",
        f"<{Version(protobuf[1]).major + 1}",
    }
