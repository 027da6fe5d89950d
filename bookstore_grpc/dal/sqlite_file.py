"""The identity of a SQLite file, to detect its removal or replacement."""

import errno
import os

from sqlalchemy.engine import URL

from bookstore_grpc.errors import DatabaseUnavailable


class SqliteFile:
    """The file of a SQLite database. For other databases, all checks succeed.

    After the removal of its file an open SQLite database still works, but later writes are lost. Opened again, it would
    be recreated empty.
    """

    def __init__(self, url: URL) -> None:
        path = url.database or ""
        # Only SQLite can parse its own URIs.
        self._path = path if url.get_backend_name() == "sqlite" and not path.startswith("file:") else ""
        self._identity: tuple[int, int] | None = None

    def remember(self) -> None:
        """Remember the current file."""
        self._identity = self._stat()

    def require_same(self) -> None:
        """Raise `DatabaseUnavailable` or `OSError` if the file is no longer the remembered one."""
        if self._identity is not None and self._stat() != self._identity:
            raise DatabaseUnavailable("The database file was moved or replaced; restart the server.")

    def require_writable(self) -> None:
        """Raise `OSError` if this process may not write to the file, which its mode, flags and disk decide."""
        if self._path and not os.access(self._path, os.W_OK):
            raise PermissionError(errno.EACCES, "The file is read-only", self._path)

    def _stat(self) -> tuple[int, int] | None:
        if not self._path:
            return None
        stat = os.stat(self._path)
        return (stat.st_dev, stat.st_ino)
