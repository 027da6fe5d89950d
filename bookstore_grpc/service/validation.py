"""The rules of fields, as pure functions: each returns the rule that a value breaks and how, or None.

The limits are the contract's; the descriptions say what would be valid.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bookstore_grpc.errors import InvalidRequest, Rule, Violation
from bookstore_grpc.limits import CHECKPOINT_SECONDS_MAX, CHECKPOINT_SECONDS_MIN, CONTROL_CHARACTER

# Unicode's White_Space property; Python's str.strip() would also take the control characters U+001C to U+001F.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NIL_UUID = "00000000-0000-0000-0000-000000000000"


class Broken(NamedTuple):
    """A rule that a value breaks, and a sentence about it."""

    rule: Rule
    description: str


class Violations:
    """Collects the violations of a request, so that the caller gets all of them at once."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def check(self, field: str, broken: Broken | None) -> None:
        """Add the rule that `field` breaks, if it breaks one."""
        if broken is not None:
            self.add(field, *broken)

    def add(self, field: str, rule: Rule, description: str) -> None:
        """Add a rule that `field` breaks."""
        self._violations.append(Violation(field, description, rule))

    def add_for_other_fields(self, violations: Iterable[Violation]) -> None:
        """Add violations of fields that have none yet, and are not part of a field that has one."""
        known = {violation.field for violation in self._violations}
        self._violations += [violation for violation in violations if known.isdisjoint(_field_and_parents(violation))]

    def __len__(self) -> int:
        return len(self._violations)

    def error(self) -> InvalidRequest:
        """Return the error with all violations."""
        return InvalidRequest(self._violations)

    def raise_if_any(self) -> None:
        """Raise `InvalidRequest` with all violations, if there are any."""
        if self._violations:
            raise self.error()


def stored_text(text: str) -> str:
    """Return a text in its stored form: normal form C, without white space at its ends."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.strip(_WHITE_SPACE)


def is_plainly_stored(text: str, *, max_code_points: int) -> bool:
    """Return whether a text is visibly valid and in its stored form, which most are: the other checks cost more.

    Among the ASCII characters the space is the only printable white space.
    """
    return (
        text.isascii()
        and text.isprintable()
        and 0 < len(text) <= max_code_points
        and text[0] != " "
        and text[-1] != " "
    )


def text_violation(text: str, *, max_code_points: int, is_optional: bool = False) -> Broken | None:
    """Check a text in its stored form; an absent one is empty."""
    if not text:
        return None if is_optional else Broken(Rule.REQUIRED, "is required and must hold more than white space")
    if len(text) > max_code_points:
        return Broken(Rule.TOO_LONG, f"has {len(text):,} code points, more than {max_code_points:,}")
    # A control character is not printable; that check takes a tenth of the time of a search.
    if not text.isprintable() and (found := CONTROL_CHARACTER.search(text)):
        where = f"U+{ord(found[0]):04X} at position {found.start() + 1}"
        return Broken(Rule.CONTROL_CHARACTER, f"holds the control character {where}")
    return None


def integer_violation(value: int | None, *, min_value: int, max_value: int) -> Broken | None:
    """Check an integer; None is an absent one."""
    if value is None:
        return Broken(Rule.REQUIRED, "is required")
    if not min_value <= value <= max_value:
        return Broken(Rule.OUT_OF_RANGE, f"is {value}, not between {min_value} and {max_value}")
    return None


def id_violation(book_id: int) -> Broken | None:
    """Check a book's id."""
    return None if book_id > 0 else Broken(Rule.OUT_OF_RANGE, f"is {book_id}, but ids are positive")


def request_id_violation(request_id: str) -> Broken | None:
    """Check a request id (an idempotency key); the empty one is none."""
    if not request_id:
        return None
    if not _UUID.fullmatch(request_id):
        return Broken(Rule.INVALID_UUID, "is not a UUID such as 6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d")
    # AIP-155: what an uninitialized variable holds would make every create the same one.
    if request_id == _NIL_UUID:
        return Broken(Rule.INVALID_UUID, "is the nil UUID; make a random one for each book")
    return None


def count_violation(count: int, *, most: int) -> Broken | None:
    """Check the number of entries of a batch."""
    if count == 0:
        return Broken(Rule.REQUIRED, "is required and must not be empty")
    return Broken(Rule.TOO_MANY, f"has {count:,} entries, more than {most:,}") if count > most else None


def duplicate_violation(book_id: int, first_index: Mapping[int, int]) -> Broken | None:
    """Check that no earlier request of a batch is for the same book; `first_index` has those of earlier requests."""
    if book_id not in first_index:
        return None
    return Broken(Rule.DUPLICATE, f"is {book_id}, which requests[{first_index[book_id]}] has too")


def purge_filter_violation(filter: str) -> Broken | None:
    """Check that a purge has a filter."""
    return None if filter.strip() else Broken(Rule.REQUIRED, "is required; `id > 0` matches all books")


def page_size_violation(page_size: int) -> Broken | None:
    """Check a page size; 0 is the default."""
    return Broken(Rule.OUT_OF_RANGE, f"is {page_size}, but must not be negative") if page_size < 0 else None


def checkpoint_violation(seconds: float) -> Broken | None:
    """Check the interval of a watch's checkpoints."""
    if CHECKPOINT_SECONDS_MIN <= seconds <= CHECKPOINT_SECONDS_MAX:
        return None
    between = f"between {CHECKPOINT_SECONDS_MIN} and {CHECKPOINT_SECONDS_MAX}"
    return Broken(Rule.OUT_OF_RANGE, f"is {seconds:g} seconds, not {between}")


def _field_and_parents(violation: Violation) -> list[str]:
    field = violation.field
    return [field, *(field[: separator.start()] for separator in re.finditer(r"[.\[]", field))]
