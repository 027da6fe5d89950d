"""Books on which databases disagree when they are left to their own rules."""

import unicodedata
from itertools import count

from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.records import BookChanges, BookDraft, BookRecord

_LONG = "Anna-Lena Ångström & Söhne, " * 9 + "abc"
assert len(_LONG) == 255

#: Texts whose order by code point differs from their order by locale, by case, by UTF-16 unit or by length; years and
#: names repeat, so that ties must be broken.
ORDERED_DIFFERENTLY: list[tuple[str, str, int]] = [
    ("zebra", "Émile Zola", -5000),
    ("Zebra", "emile zola", 0),
    ("a", "Zola", 1885),
    ("a b", "Zola", 1885),
    ("a-b", "\U0001d49c", -1),
    ("ab", "\uff5e", 9999),
    ("é", "a" * 300 + "b", 1885),
    ("e", "a" * 300 + "a", 1885),
    ("a", "Zola", 1700),
    ("n" * 499 + "o", "Long", 1885),
    ("n" * 499 + "n", "Long", 1885),
    ("\U0001f4d6", "'; DROP TABLE books; --", 1700),
]

_BOOKS: list[tuple[str, str, int]] = [
    # Texts that begin others, and white space and case that loose collations drop.
    ("The", "a", 2000),
    ("The ", "A", 2000),
    ("The Sea", "aa", 1978),
    ("The Sea, the Sea", "Aa", 1978),
    ("the sea", "aA", 1978),
    ("THE SEA", "AA", 1979),
    ("Thé Sea", "ab", 1979),
    ("Theseus", "a b", 1980),
    ("A", "a  b", 0),
    ("a", "ä", 0),
    # Case pairs that are more than one letter, that depend on the language, or that are not reversible.
    ("Straße", "Günter Groß", 1959),
    ("STRASSE", "GÜNTER GROSS", 1959),
    ("Strasse", "Gunter Gross", 1960),
    ("STRAẞE", "günter groß", 1960),
    ("İstanbul", "Orhan Pamuk", 2003),
    ("ISTANBUL", "ORHAN PAMUK", 2003),
    ("istanbul", "orhan pamuk", 2003),
    ("ıstanbul", "Örhan Pamuk", 2003),
    ("Ὀδύσσεια", "Ὅμηρος", -750),
    ("ΟΔΥΣΣΕΙΑ", "ΟΜΗΡΟΣ", -750),
    ("οδυσσεια", "ομηρος", -750),
    ("οδυσςεια", "ομηροσ", -749),
    ("Ǆungla", "ǅungla", 1999),
    ("ǆungla", "ǉubav", 1999),
    ("ﬁnance", "ﬀ", 2008),
    ("finance", "ff", 2008),
    ("ᾳ", "ΑΙ", 12),
    ("Ǿ", "ǿ", 13),
    # Accents, composed where they can be and not where they cannot.
    ("Germinal", "Émile Zola", 1885),
    ("GERMINAL", "ÉMILE ZOLA", 1885),
    ("germinal", "Emile Zola", 1885),
    ("Nana", "e\u0301mile zola", 1880),
    ("q\u0323\u0307", "q\u0307\u0323", 1),
    ("x\u0301", "x", 2),
    ("x", "x\u0301", 2),
    ("Ångström", "A\u030angstro\u0308m", 1868),
    ("\u212bngstrom", "\u2126", 1869),
    ("가나다", "\u1100\u1161", 1446),
    # Code points where UTF-8 and UTF-16 order differently, the ends of ranges, and pictures of several points.
    ("\uffee", "\U00010000", 3),
    ("\U0001f600", "\uffee", 3),
    ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468", 4),
    ("\ud7ff", "\ue000", 4),
    ("\U0010fffd", "\U0010fffd\U0010fffd", 5),
    ("\U0010fffdz", "\U0010ffff", 5),
    ("吾輩は猫である", "夏目 漱石", 1905),
    ("Война и мир", "Лев Толстой", 1869),
    ("ВОЙНА И МИР", "лев толстой", 1869),
    ("نجيب", "محفوظ", 1988),
    # What is special to SQL, to patterns or to filters.
    ("100%", "_", 1984),
    ("100", "%", 1984),
    ("100_", "*", 1984),
    ("*", "**", -1),
    ("a*b", "*b", -1),
    ("a\\b", "\\", -1),
    ('say "hi"', "O'Brien", -2),
    ("it's", 'a"b', -2),
    ("Robert'); DROP TABLE books;--", "' OR '1'='1", -2),
    (":name", ":", -44),
    ("a=b", "a!=b", -44),
    ("(a)", "a, b", -44),
    ("ANDROID", "ORWELL", 1949),
    ("AND", "NOT", 1949),
    ("-5", "-", -5000),
    ("nine", "9999", 9999),
    # Authors longer than what an index holds, alike as far as it goes.
    ("long 1", _LONG, 1),
    ("long 2", _LONG + "d", 1),
    ("long 3", _LONG + "D", 1),
    ("long 4", _LONG + "da", 1),
    ("long 5", _LONG[:-1], 1),
    ("long 6", _LONG[:-1] + "d", 1),
    ("long 7", _LONG + "é" * 745, 1),
    ("n" * 500, "\U0001f600" * 1_000, 1),
    ("\U0001f600" * 500, "ΐ" * 1_000, 1),
]

TRICKY_BOOKS = tuple(
    BookDraft(unicodedata.normalize("NFC", name), unicodedata.normalize("NFC", author), year)
    for name, author, year in _BOOKS
)

# Shortly before 2026-01-01T00:00:00Z, with a fraction that is no whole millisecond.
FIRST_CREATE_TIME = 1_767_225_599_999_998


async def store_tricky_books(database: Database) -> list[BookRecord]:
    """Store the books a microsecond or a second apart; every fifth was changed later, every seventh is older."""
    moments = count()

    def clock() -> int:
        moment = next(moments)
        return FIRST_CREATE_TIME + (moment if moment % 3 else moment * 1_000_000) - (moment % 7 == 0) * 10**15

    books = BookDAL(database, clock=clock)
    stored = []
    for number, draft in enumerate(TRICKY_BOOKS):
        record = await books.create_book(draft._replace(name=draft.name if number % 5 else "provisional"))
        stored.append(await books.update_book(record.id, BookChanges(name=draft.name)))
    return stored
