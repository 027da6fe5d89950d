"""The synthetic books of every contender: deterministic, of realistic lengths, and all of the same size.

The requested ids have the same number of digits too, so that all responses have the same length. The number of bytes
that the load generator received then shows whether any call failed.
"""

import random
from collections.abc import Iterator
from itertools import accumulate, product
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
# Of `varied_books`.
_VARIED_SEED = 16
_VOCABULARY = 20_000
_AUTHORS = 20_000
# Such that trigrams are about as unequally frequent as in a catalogue of popular books.
_ONSETS = (
    "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gn gr kn ph pl pr qu sc sh sl sm sn sp spl st str "
    "sw th thr tr tw wh wr"
)
_NUCLEI = "a e i o u y ai au ea ee ey ia ie oi oo ou ow"
_CODAS = "ck d ft gh l lf m mp n nd ng nk nt pt r rd rm rn rt s sk ss st t x"
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


def varied_books(size: int) -> Iterator[BookRecord]:
    """Return books whose titles have two to six words, which are as unequally frequent as those of a language."""
    chance = random.Random(_VARIED_SEED)  # noqa: S311  not used for security
    syllables = [*map("".join, product(_ONSETS.split(), _NUCLEI.split(), ["", *_CODAS.split()]))]
    words = ["".join(chance.choices(syllables, k=chance.choice((1, 1, 2, 2, 2, 3)))) for _ in range(_VOCABULARY)]
    frequencies = [*accumulate(1 / (rank + 5) for rank in range(1, _VOCABULARY + 1))]  # the law of Zipf and Mandelbrot
    names = [" ".join(chance.choices(words, k=2)).title() for _ in range(_AUTHORS)]
    for book_id in range(1, size + 1):
        title = " ".join(chance.choices(words, cum_weights=frequencies, k=chance.randint(2, 6))).capitalize()
        yield BookRecord(book_id, title, chance.choice(names), chance.randint(1850, 2025), book_id, book_id)


def author_count(size: int) -> int:
    """Return the number of authors in a catalogue of `size`."""
    return max(1, size // BOOKS_PER_AUTHOR)


def requested_authors(size: int, *, is_any: bool) -> list[str]:
    """Return the authors whose books are listed: one, or two fifths of all, whose ids have nearly the same length."""
    count = author_count(size)
    return [author_name(index) for index in (range(count * 3 // 5, count) if is_any else [count // 2])]


def author_name(index: int) -> str:
    """Return the author's name, unique for each index."""
    given = _GIVEN_NAMES[index % len(_GIVEN_NAMES)]
    family = _FAMILY_NAMES[index // len(_GIVEN_NAMES) % len(_FAMILY_NAMES)]
    return f"{given} {family}"[: AUTHOR_CHARACTERS - 6].ljust(AUTHOR_CHARACTERS - 6, ".") + f" {index:05d}"


def id_range(size: int) -> IdRange:
    """Return the ids that loads request: the highest ones that are encoded and written with the same length.

    The bounds are multiples of the values of an encoded id's other bytes, so that a mixture of the bytes of two ids is
    an id within the range too.
    """
    block = 128 if size < 128**2 else 128**2
    end = size // block * block
    return IdRange(16 ** (len(f"{end - 1:x}") - 1), end)
