"""Database URLs: which are understood, and what is said of the others, never with a password."""

import sys

import pytest

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.engines import parse_database_url
from bookstore_grpc.errors import DatabaseUnavailable, StartupError

_SECRET = "s3cret"


@pytest.mark.parametrize(
    ("text", "drivername"),
    [
        ("sqlite:///books.db", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:///books.db", "sqlite+aiosqlite"),
        ("sqlite:////var/lib/books.db", "sqlite+aiosqlite"),
        ("sqlite:///file:books.db?mode=ro&uri=true", "sqlite+aiosqlite"),
        ("postgres://u:p@h/books", "postgresql+asyncpg"),
        ("postgresql://u:p@h/books", "postgresql+asyncpg"),
        ("postgresql+asyncpg://u:p@h:5433/books", "postgresql+asyncpg"),
        ("mysql://u:p@h/books", "mariadb+asyncmy"),
        ("mariadb://u:p@h/books", "mariadb+asyncmy"),
        ("mysql+asyncmy://u:p@h/books", "mariadb+asyncmy"),
        ("mariadb+asyncmy://u:p@h:3307/books", "mariadb+asyncmy"),
    ],
)
def test_scheme_settles_the_driver(text: str, drivername: str) -> None:
    url = parse_database_url(text)
    assert url.drivername == drivername
    assert url.database
    assert Database(text, pool_size=1, timeout_seconds=1).dialect == drivername.partition("+")[0]


def test_user_password_host_port_and_options_stay() -> None:
    url = parse_database_url("postgres://me:p%40ss@example.org:5433/books?application_name=x")
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "me",
        "p@ss",
        "example.org",
        5433,
        "books",
    )
    assert url.query == {"application_name": "x"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("books.db", "cannot be read"),
        ("://", "cannot be read"),
        (":s3cret@", "cannot be read"),
        ("postgresql:u:s3cret@h/books", "cannot be read"),
        ("postgresql://u:s3cret@h:port/books", "cannot be read"),
        ("oracle://u:s3cret@h/books", "starts with 'oracle'; supported are sqlite+aiosqlite"),
        ("http://u:s3cret@h/", "starts with 'http'"),
        ("SQLITE:///books.db", "starts with 'SQLITE'"),
        ("postgresql+psycopg://u:s3cret@h/books", "'postgresql+psycopg' is not supported; use postgresql+asyncpg"),
        ("mysql://u:s3cret@h", "names no database"),
        ("mysql+pymysql://u:s3cret@h/books", "'mysql+pymysql' is not supported; use mariadb+asyncmy"),
        ("sqlite+pysqlite:///books.db", "'sqlite+pysqlite' is not supported; use sqlite+aiosqlite"),
        ("sqlite://", "needs a file"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "needs a file"),
        ("sqlite:///file::memory:?uri=true", "needs a file"),
        ("sqlite:///file:?uri=true", "needs a file"),
    ],
)
def test_what_names_no_supported_database_is_refused(text: str, said: str) -> None:
    with pytest.raises(StartupError) as caught:
        Database(text, pool_size=1, timeout_seconds=1)
    assert said in caught.value.message
    assert _SECRET not in caught.value.message


@pytest.mark.parametrize("scheme", ["postgresql", "mariadb"])
@pytest.mark.parametrize("port", [0, 65_536, 99_999])
async def test_port_that_does_not_exist_is_told_of(scheme: str, port: int) -> None:
    with pytest.raises((StartupError, DatabaseUnavailable)) as caught:
        await Database(f"{scheme}://u:{_SECRET}@127.0.0.1:{port}/x", pool_size=1, timeout_seconds=1).ping()
    assert _SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("sqlite:////var/lib/books.db", "sqlite /var/lib/books.db"),
        (f"postgres://u:{_SECRET}@h/books?application_name=x", "postgresql h/books"),
        (f"postgres://u:{_SECRET}@h:5433/books", "postgresql h:5433/books"),
        (f"mysql://u:{_SECRET}@/books", "mariadb localhost/books"),
    ],
)
def test_description_holds_neither_user_nor_password(url: str, description: str) -> None:
    assert Database(url, pool_size=1, timeout_seconds=1).description == description


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("sqlite:///books.db", "aiosqlite", "server"),
        ("postgresql://h/books", "asyncpg", "postgresql"),
        ("mariadb://h/books", "asyncmy", "mariadb"),
    ],
)
def test_missing_driver_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StartupError, match=rf"pip install 'bookstore-grpc\[{extra}\]'"):
        Database(url, pool_size=1, timeout_seconds=1)
