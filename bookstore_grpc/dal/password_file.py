"""libpq's password file, `~/.pgpass`: https://www.postgresql.org/docs/current/libpq-pgpass.html.

asyncpg reads it too, but leaves the backslashes of its escapes in the password, and has one password for all hosts.
"""

import os
import re
import stat
from pathlib import Path

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.password_file")

_FIELD = r"((?:\\.|[^\\:])*)"
_LINE = re.compile(":".join([_FIELD] * 5))
_ESCAPED = re.compile(r"\\(.)")


def password_from_file(path: str, *, host: str, port: int, database: str, user: str) -> str | None:
    """Return the password of the first line that matches, or None. A socket matches as `localhost` too.

    A file that others can read is not used, as in libpq, and a line of the log says so.
    """
    hosts = {"localhost", host} if host.startswith("/") else {host or "localhost"}
    for line in _lines(path):
        if match := _LINE.match(line):
            *fields, password = (_ESCAPED.sub(r"\1", text) for text in match.groups())
            wanted = (hosts, {str(port)}, {database}, {user})
            if all(text == "*" or text in values for text, values in zip(fields, wanted, strict=True)):
                return password
    return None


def _lines(path: str) -> list[str]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return []
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PermissionError("others have access to it; chmod 600 it")
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        _log.warning("password file ignored", file=path, cause=str(error))
        return []
    return [line for line in lines if not line.startswith("#")]
