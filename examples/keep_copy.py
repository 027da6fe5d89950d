"""Keep a copy of the catalogue in an SQLite file of its own, in step with the service.

    python examples/keep_copy.py copy.db

BOOKSTORE_SERVER names another server. The copy continues where it stopped, however it was stopped, and after an outage
for which changes are no longer kept it starts over. docs/keep-a-copy.md explains it.
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Iterable

from bookstore.v1.books_pb2 import Book, BookChange

from bookstore_grpc.client import BookstoreClient
from bookstore_grpc.errors import InvalidResumeToken, ResumeTokenExpired

SCHEMA = """
CREATE TABLE IF NOT EXISTS books (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, author TEXT NOT NULL, release_year INTEGER NOT NULL,
    round INTEGER NOT NULL  -- in which the book was last seen
);
CREATE TABLE IF NOT EXISTS position (
    id INTEGER PRIMARY KEY CHECK (id = 1), resume_token TEXT NOT NULL, round INTEGER NOT NULL
);
INSERT OR IGNORE INTO position VALUES (1, '', 1);
"""


class Copy:
    """The copy, and up to where it is one. Every start from the beginning is another round."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.executescript(SCHEMA)
        self.resume_token, self._round = self._database.execute("SELECT resume_token, round FROM position").fetchone()
        self._is_complete = False  # whether books of earlier rounds have been removed

    def apply(self, changes: Iterable[BookChange]) -> None:
        """Apply changes, in a transaction that `commit` ends."""
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")
        for change in changes:
            if change.type == BookChange.DELETED:
                self._database.execute("DELETE FROM books WHERE id = ?", (change.book.id,))
            else:
                self._database.execute(
                    "REPLACE INTO books VALUES (?, ?, ?, ?, ?)", (*_values(change.book), self._round)
                )

    def remove_what_is_gone(self) -> None:
        """Remove the books of earlier rounds, once all that exist have been seen in this one."""
        if not self._is_complete:
            self._database.execute("DELETE FROM books WHERE round < ?", (self._round,))
            self._is_complete = True

    def commit(self, resume_token: str) -> None:
        """Store the token in the transaction of the changes: neither is ever stored without the other."""
        self._database.execute("UPDATE position SET resume_token = ?", (resume_token,))
        self._database.execute("COMMIT")
        self.resume_token = resume_token

    def start_over(self) -> None:
        """Forget the position. The books stay until it is known which of them are gone."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._database.execute("UPDATE position SET resume_token = '', round = round + 1")
        self.resume_token, self._round, self._is_complete = "", self._round + 1, False


def _values(book: Book) -> tuple[int, str, str, int]:
    return book.id, book.name, book.author, book.release_year


async def follow(client: BookstoreClient, copy: Copy) -> None:
    """Apply what the service sends. Ends only with an error."""
    watch = client.watch_books(resume_token=copy.resume_token, start="existing")
    async for response in watch.responses():
        copy.apply(response.changes)
        if watch.existing_sent:
            copy.remove_what_is_gone()
        if not response.continues:  # the changes of one call become visible together
            copy.commit(response.resume_token)


async def main(path: str) -> None:
    """Keep the copy in step until the program is stopped."""
    copy = Copy(path)
    async with BookstoreClient(os.environ.get("BOOKSTORE_SERVER", "127.0.0.1:50051")) as client:
        while True:
            try:
                await follow(client, copy)
            except (ResumeTokenExpired, InvalidResumeToken) as error:
                print(f"Starting over: {error}", file=sys.stderr)
                copy.start_over()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
