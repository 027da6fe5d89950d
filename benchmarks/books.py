"""The synthetic books of every contender: deterministic, of realistic lengths, and all of one size.

The ids that loads ask for are alike in their number of digits too, so every book's response has one length. Only thus
can the bytes that a load generator has counted show that no call went wrong.
"""

from collections.abc import Iterator
from typing import NamedTuple

from bookstore_grpc.dal.records import BookRecord

BOOKS_PER_AUTHOR = 20
# The mean lengths in a catalogue of 10,000 popular books.
NAME_CHARACTERS = 32
AUTHOR_CHARACTERS = 19

# 2020-01-01T00:00:00.5Z. Books are whole seconds apart, so all times have the same number of digits.
_FIRST_CREATE_TIME = 1_577_836_800_500_000
_SECOND = 1_000_000

_ADJECTIVES = ("Silent", "Distant", "Broken", "Golden", "Last", "Hidden", "Northern", "Forgotten", "Long", "Second")
_NOUNS = ("Garden", "River", "Winter", "House", "Crossing", "Letters", "Orchard", "Harbour", "Summer", "Mountain")
_GIVEN_NAMES = ("Anna", "Boris", "Clara", "David", "Edith", "Franz", "Grace", "Henry", "Irene", "Jakob", "Katherine")
_FAMILY_NAMES = ("Abel", "Brandt", "Costa", "Dubois", "Eriksen", "Fischer", "Goldman", "Harris", "Ito")


class IdRange(NamedTuple):
    """Ids from `first`, up to but excluding `end`."""

    first: int
    end: int


def synthetic_books(size: int) -> Iterator[BookRecord]:
    """Return the books of a catalogue of `size`, with each author's books spread over all of it."""
    for book_id in range(1, size + 1):
        title = f"{_ADJECTIVES[book_id % 10]} {_NOUNS[book_id // 10 % 10]}"
        name = f"The {title}".ljust(NAME_CHARACTERS - 8, ".") + f" {book_id:07d}"
        time = _FIRST_CREATE_TIME + book_id * _SECOND
        yield BookRecord(book_id, name, author_name(book_id % author_count(size)), 1900 + book_id % 120, time, time)


def author_count(size: int) -> int:
    """Return the number of authors in a catalogue of `size`."""
    return max(1, size // BOOKS_PER_AUTHOR)


def asked_authors(size: int, *, is_any: bool) -> list[str]:
    """Return the author, one or many, whose books a list requests: two fifths, with ids of nearly one length."""
    count = author_count(size)
    return [author_name(index) for index in (range(count * 3 // 5, count) if is_any else [count // 2])]


def author_name(index: int) -> str:
    """Return the author's name, unique for each index."""
    given = _GIVEN_NAMES[index % len(_GIVEN_NAMES)]
    family = _FAMILY_NAMES[index // len(_GIVEN_NAMES) % len(_FAMILY_NAMES)]
    return f"{given} {family}"[: AUTHOR_CHARACTERS - 6].ljust(AUTHOR_CHARACTERS - 6, ".") + f" {index:05d}"


def id_range(size: int) -> IdRange:
    """Return the ids that loads request: the highest ones that are encoded and written with the same length.

    The bounds are multiples of what the last byte of an encoded id does not tell, so that bytes mixed from two ids
    are an id of the range as well.
    """
    block = 128 if size < 128**2 else 128**2
    end = size // block * block
    return IdRange(16 ** (len(f"{end - 1:x}") - 1), end)
