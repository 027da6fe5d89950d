"""Access to aiosqlite's worker thread: its daemon flag and `join`, which aiosqlite does not expose.

Tried on aiosqlite 0.22.0 and 0.22.1.
"""

import sqlite3
from threading import Thread

import aiosqlite

from bookstore_grpc.errors import StartupError


def check() -> None:
    """Raise `StartupError` if a connection has no `_thread`."""
    connection = aiosqlite.Connection(lambda: sqlite3.connect(":memory:"), iter_chunk_size=64)
    if not isinstance(getattr(connection, "_thread", None), Thread):
        raise StartupError(f"aiosqlite {aiosqlite.__version__} is not supported: its connections have no `_thread`.")


def worker_thread(connection: aiosqlite.Connection) -> Thread:
    """Return the thread of a connection. It starts when the connection is awaited for the first time."""
    thread: Thread = connection._thread
    return thread
