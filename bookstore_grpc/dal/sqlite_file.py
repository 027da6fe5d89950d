"""The identity of a SQLite file, by which its removal or replacement is noticed."""

import os

from sqlalchemy.engine import URL

from bookstore_grpc.errors import DatabaseUnavailable


class SqliteFile:
    """The file of a SQLite database; of another database, nothing that is ever checked.

    An open SQLite database outlives the removal of its file, and later writes are lost; opened again, the file is
    created anew, empty.
    """

    def __init__(self, url: URL) -> None:
        path = url.database or ""
        # A URI of SQLite's own is for SQLite alone to read.
        self._path = path if url.get_backend_name() == "sqlite" and not path.startswith("file:") else ""
        self._identity: tuple[int, int] | None = None

    def remember(self) -> None:
        """Remember the file that is there now."""
        self._identity = self._stat()

    def require_same(self) -> None:
        """Raise `DatabaseUnavailable` or `OSError` if the file is no longer the remembered one."""
        if self._identity is not None and self._stat() != self._identity:
            raise DatabaseUnavailable("The database file was moved or replaced; restart the server.")

    def _stat(self) -> tuple[int, int] | None:
        if not self._path:
            return None
        stat = os.stat(self._path)
        return (stat.st_dev, stat.st_ino)
