"""The size of SQLite's write-ahead log (WAL), docs/decisions/0020-wal-size.md."""

import os
from collections.abc import Sequence

from bookstore_grpc.dal.database_url import DatabaseUrl
from bookstore_grpc.dal.engines import checkpointing_engine, wal_max_bytes


class SqliteWal:
    """The WAL of a SQLite database. It cannot shrink while a reader, such as a backup, needs what it contains."""

    def __init__(self, database_url: DatabaseUrl) -> None:
        self._url = database_url.url
        path = self._url.database or ""
        # SQLite resolves symbolic links before it appends the suffix. Only SQLite can parse its own URIs.
        self._path = "" if path.startswith("file:") else f"{os.path.realpath(path)}-wal"
        self._engine = checkpointing_engine(database_url)

    def size(self) -> int:
        """Return the size of the file in bytes: 0 without a file, or if the database is a SQLite URI."""
        try:
            return os.stat(self._path).st_size
        except FileNotFoundError:
            return 0

    @property
    def is_too_long(self) -> bool:
        """Whether `truncate` may have something to do."""
        return self.size() > wal_max_bytes(self._url)

    async def truncate(self) -> None:
        """Copy the WAL into the database and truncate it, unless a reader needs it. Waits for no other connection.

        Raises the errors of SQLAlchemy.
        """
        try:
            async with self._engine.connect() as connection:
                # TRUNCATE excludes writers while it copies, so PASSIVE, which excludes nobody, copies first.
                row: Sequence[int] = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")).one()
                is_busy, frames, copied = row
                if not is_busy and frames == copied:
                    await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            await self._engine.dispose()
