"""Every database stores and returns texts unchanged, up to their limits."""

import unicodedata

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.records import BookDraft
from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, NAME_MAX_CODE_POINTS

_TEXTS = [
    "👨‍👩‍👧‍👦 📚 🏳️‍🌈",
    "Robert'); DROP TABLE books;--",
    '" OR ""="',
    "\\' \\\" \\\\ \\0 \\n",
    "%s %(name)s {0} {name} :name $1 ?",
    "`books`; /* */ -- #",
    "100% _like_ [a-z]*",
    "עברית العربية \u202eabc",
    "\ufffe \uffff \U0001fffe",
    "NULL",
    "0",
    "<script>alert(1)</script>",
    "a  b",
    "trailing\u200d",
    "ǅ İ ı ß ẞ ﬃ",
    "Å",
    "각",
    "q\u0323\u0307",
    "ﬁ",
    "①",
    "\u0301",
    "a\u200b",
    "\ufeffa",
    *(f"a{space}b" for space in "\xa0\u1680\u2002\u2003\u2008\u200a\u2028\u2029\u202f\u205f\u3000"),
]


async def test_any_text_is_returned_as_it_was_stored(books: BookDAL) -> None:
    drafts = [BookDraft(text, text, 1) for text in _TEXTS]
    assert all(unicodedata.is_normalized("NFC", text) for text in _TEXTS)
    stored = await books.create_books(drafts)
    page = await books.list_books(page_size=1_000, page_token="", filter="", order_by="")
    assert page.books == stored
    assert [(book.name, book.author) for book in stored] == [(text, text) for text in _TEXTS]
    for record in stored:
        assert await books.get_book(record.id) == record
    by_name = await books.list_books(page_size=1_000, page_token="", filter="", order_by="name,author")
    assert [book.name for book in by_name.books] == sorted(_TEXTS)


async def test_limits_count_code_points(books: BookDAL) -> None:
    for character in ("x", "é", "\u4e2d", "😀", "\U0010ffff"):
        name, author = character * NAME_MAX_CODE_POINTS, character * AUTHOR_MAX_CODE_POINTS
        record = await books.create_book(BookDraft(name, author, 1))
        assert await books.get_book(record.id) == record
        assert (record.name, record.author) == (name, author)


async def test_texts_that_differ_only_by_case_or_accents_or_width_are_different(books: BookDAL) -> None:
    names = ["a", "A", "á", "Á", "\uff41", "a\u200b", "ａ".upper()]
    stored = await books.create_books([BookDraft(name, "x", 1) for name in names])
    for record in stored:
        page = await books.list_books(page_size=10, page_token="", filter=f'name = "{record.name}"', order_by="")
        assert page.books == [record]
