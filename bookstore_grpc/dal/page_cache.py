"""Pages that are answered again as they are until somebody commits: docs/decisions/0009."""

from collections.abc import Hashable

from bookstore_grpc.dal.records import BookPage
from bookstore_grpc.dal.sqlite_reader import Version

# A page counts as so many books and those that are on it, for its question can be long and its books none.
_BOOKS_FOR_A_QUESTION = 32


class KeptPages:
    """The pages of one version of the database. `most` bounds the books on all of them together."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._version: Version | None = None
        self._pages: dict[Hashable, BookPage] = {}
        self._count = 0

    def page(self, question: Hashable, version: Version | None) -> BookPage | None:
        """Answer the page that was kept for a question, if nothing was committed since."""
        if version != self._version:
            self._forget(version)
        return self._pages.get(question)

    def keep(self, question: Hashable, version: Version | None, page: BookPage) -> None:
        """Keep a page that was read after the version was, unless a newer version has been seen meanwhile."""
        count = _BOOKS_FOR_A_QUESTION + len(page.books)
        if version is None or version != self._version or count > self._most:
            return
        if self._count + count > self._most:
            self._forget(version)
        self._pages[question] = page
        self._count += count

    def _forget(self, version: Version | None) -> None:
        self._version = version
        self._pages.clear()
        self._count = 0
