"""libpq's password file: which line applies, its escapes, and who may read it."""

from pathlib import Path

import pytest

from bookstore_grpc.dal.password_file import password_from_file
from tests.conftest import LogLines

_LINES = r"""# db:5432:books:u:comment
db:5433:books:u:of the port
db:5432:other:u:of the database
db:5432:books:other:of the user
db:5432:books:u:it\:s a \\ and a space{space}
\::*:*:*:of a host with a colon
localhost:*:*:*:local
/run/here:*:*:*:of a socket
short:line
*:*:*:any:first:second
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pgpass"
    path.write_text(_LINES.format(space=" "), encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("host", "port", "database", "user", "password"),
    [
        ("db", 5432, "books", "u", "it:s a \\ and a space "),
        ("db", 5433, "books", "u", "of the port"),
        ("db", 5432, "other", "u", "of the database"),
        ("db", 5432, "books", "other", "of the user"),
        (":", 5432, "books", "u", "of a host with a colon"),
        ("", 5432, "books", "u", "local"),
        ("/run/elsewhere", 5432, "books", "u", "local"),
        ("elsewhere", 5432, "books", "any", "first"),
        ("elsewhere", 5432, "books", "u", None),
    ],
)
def test_the_first_line_that_matches_has_the_password(
    file: Path, host: str, port: int, database: str, user: str, password: str | None
) -> None:
    assert password_from_file(str(file), host=host, port=port, database=database, user=user) == password


def _password(path: Path) -> str | None:
    return password_from_file(str(path), host="db", port=5432, database="books", user="u")


def test_a_file_that_others_can_read_is_not_used_and_logged(file: Path, log_lines: LogLines) -> None:
    file.chmod(0o640)
    assert _password(file) is None
    (line,) = log_lines()
    assert (line["event"], line["file"]) == ("password file ignored", str(file))
    assert "chmod 600" in line["cause"]


def test_without_a_file_there_is_no_password(tmp_path: Path, log_lines: LogLines) -> None:
    assert _password(tmp_path / "missing") is None
    assert _password(tmp_path) is None
    assert log_lines() == []
