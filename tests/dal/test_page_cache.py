"""The page cache: a page is served from it only until the next commit, and its size is bounded."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.page_cache import PageCache
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookPage, BookRecord
from bookstore_grpc.errors import DatabaseUnavailable
from tests.dal.conftest import move, statements_of
from tests.rpc.obstacles import until

DRAFT = BookDraft("Dune", "Frank Herbert", 1965)


@pytest.fixture
def books(sqlite: Database) -> BookDAL:
    return BookDAL(sqlite)


async def page(books: BookDAL, *, page_size: int = 50, filter: str = "") -> BookPage:
    return await books.list_books(page_size=page_size, page_token="", filter=filter, order_by="")


async def names(books: BookDAL) -> list[str]:
    return [record.name for record in (await page(books)).books]


async def test_page_is_read_once_until_the_next_commit(sqlite: Database, books: BookDAL) -> None:
    await books.create_book(DRAFT)

    with statements_of(sqlite) as statements:
        first, again = await page(books), await page(books)
        assert len(statements) == 1
        await books.create_book(DRAFT)
        third, fourth = await page(books), await page(books)

    assert len([statement for statement in statements if statement.startswith("SELECT books.id, ")]) == 2
    assert first is again
    assert third is fourth
    assert (len(first.books), len(third.books)) == (1, 2)


async def test_every_own_write_shows_at_once(books: BookDAL) -> None:
    assert await names(books) == []
    book = await books.create_book(DRAFT)
    assert await names(books) == ["Dune"]
    await books.update_book(book.id, BookChanges(name="Dune Messiah"))
    assert await names(books) == ["Dune Messiah"]
    await books.delete_book(book.id)
    assert await names(books) == []


async def test_what_another_process_commits_shows_at_once(books: BookDAL, path: Path) -> None:
    await books.create_book(DRAFT)
    with closing(sqlite3.connect(path)) as other:
        for number in range(20):
            other.execute("UPDATE books SET name = ?", (f"Renamed {number}",))
            assert await names(books) == ([f"Renamed {number - 1}"] if number else ["Dune"])
            other.commit()
            assert await names(books) == [f"Renamed {number}"]


async def test_a_reopened_connection_serves_no_page_of_the_previous_one(
    sqlite: Database, books: BookDAL, path: Path
) -> None:
    # SQLite counts for each connection apart, so equal numbers of two mean nothing.
    await books.create_book(DRAFT)
    with closing(sqlite3.connect(path)) as other:
        for number in range(20):
            await names(books)
            assert sqlite._inline_reader
            sqlite._inline_reader.close()
            other.execute("UPDATE books SET name = ?", (f"Renamed {number}",))
            other.commit()
            assert await names(books) == [f"Renamed {number}"]


async def test_a_book_written_while_a_page_is_read_is_on_the_next(books: BookDAL) -> None:
    async def write(number: int) -> int:
        return (await books.create_book(DRAFT._replace(name=f"Book {number}"))).id

    async def read() -> set[int]:
        return {record.id for record in (await page(books, page_size=1_000)).books}

    for number in range(50):
        created, *_ = await asyncio.gather(write(number), *(read() for _ in range(4)))
        assert created in await read()


@pytest.mark.parametrize("other", [{"page_size": 1}, {"filter": "author:frank"}])
async def test_another_cache_key_has_another_page(books: BookDAL, other: dict[str, object]) -> None:
    await books.create_books([DRAFT, DRAFT._replace(author="Anon")])
    assert len((await page(books)).books) == 2
    assert len((await page(books, **other)).books) == 1  # type: ignore[arg-type]  # one of the two, by its name


async def test_a_moved_file_serves_no_cached_page(books: BookDAL, path: Path, tmp_path: Path) -> None:
    await books.create_book(DRAFT)
    await page(books)
    move(path, tmp_path / "elsewhere.db")

    async def is_noticed() -> bool:
        try:
            await page(books)
        except DatabaseUnavailable:
            return True
        return False

    await until(is_noticed)


def page_of(count: int) -> BookPage:
    return BookPage([BookRecord(number, "N", "A", 0, 0, 0) for number in range(count)], "")


class TestPageCache:
    VERSION, LATER = (object(), 1), (object(), 2)

    def test_page_is_cached_for_its_key_and_version(self) -> None:
        cache, book_page = PageCache(max_books=1_000), page_of(3)
        assert cache.get("key", self.VERSION) is None
        cache.put("key", self.VERSION, book_page)
        assert cache.get("key", self.VERSION) is book_page
        assert cache.get("another", self.VERSION) is None
        assert cache.get("key", self.LATER) is None
        assert cache.get("key", self.VERSION) is None

    def test_page_read_before_a_commit_is_not_cached(self) -> None:
        cache = PageCache(max_books=1_000)
        cache.get("key", self.VERSION)
        cache.get("key", self.LATER)
        cache.put("key", self.VERSION, page_of(3))
        assert cache.get("key", self.VERSION) is None
        assert cache.get("key", self.LATER) is None

    def test_without_a_version_nothing_is_cached(self) -> None:
        cache = PageCache(max_books=1_000)
        cache.get("key", None)
        cache.put("key", None, page_of(3))
        assert cache.get("key", None) is None

    @pytest.mark.parametrize("count", [0, 1, 100])
    def test_no_more_pages_are_cached_than_fit(self, count: int) -> None:
        cache = PageCache(max_books=1_000)
        for number in range(1_000):
            cache.get(number, self.VERSION)
            cache.put(number, self.VERSION, page_of(count))
            assert cache.get(number, self.VERSION)
        found = sum(cache.get(number, self.VERSION) is not None for number in range(1_000))
        assert 1 <= found <= 1_000 // (32 + count)

    def test_page_larger_than_the_cache_is_not_cached(self) -> None:
        cache = PageCache(max_books=1_000)
        cache.get("small", self.VERSION)
        cache.put("small", self.VERSION, page_of(1))
        cache.put("large", self.VERSION, page_of(1_001))
        assert cache.get("large", self.VERSION) is None
        assert cache.get("small", self.VERSION) is not None
