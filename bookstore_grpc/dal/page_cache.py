"""The page cache: pages of ListBooks, valid until the next commit (docs/decisions/0009-page-cache.md)."""

from collections.abc import Hashable

from bookstore_grpc.dal.records import BookPage
from bookstore_grpc.dal.sqlite_reader import Version

# Each entry counts as this many books in addition to its own, because its key can be long and its page empty.
_BOOKS_FOR_A_KEY = 32


class PageCache:
    """Caches pages of one version of the database. `max_books` bounds the total number of books on them."""

    def __init__(self, *, max_books: int) -> None:
        self._max_books = max_books
        self._version: Version | None = None
        self._pages: dict[Hashable, BookPage] = {}
        self._count = 0

    def get(self, key: Hashable, version: Version | None) -> BookPage | None:
        """Return the page cached under a key at this version, or None. A new version clears the cache."""
        if version != self._version:
            self._clear(version)
        return self._pages.get(key)

    def put(self, key: Hashable, version: Version | None, page: BookPage) -> None:
        """Cache a page that was read at or after `version`, unless a newer version has been seen in the meantime."""
        count = _BOOKS_FOR_A_KEY + len(page.books)
        if version is None or version != self._version or count > self._max_books:
            return
        if self._count + count > self._max_books:
            self._clear(version)
        self._pages[key] = page
        self._count += count

    def _clear(self, version: Version | None) -> None:
        self._version = version
        self._pages.clear()
        self._count = 0
