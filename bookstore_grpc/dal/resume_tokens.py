"""Resume tokens: where in the log of changes a watch continues."""

from functools import lru_cache
from typing import NamedTuple

from bookstore_grpc.dal.change_log import Position
from bookstore_grpc.dal.checked_token import token_from_values, values_from_token
from bookstore_grpc.errors import InvalidResumeToken

_INT64_MAX = 2**63 - 1
# One for each watcher that reads at a place of its own.
_TOKENS_MAX = 1_024


class ResumePoint(NamedTuple):
    """A position in the log.

    While a watch sends the existing books, `after_id` is the id up to which it has sent them, otherwise None.
    """

    position: Position
    after_id: int | None = None


@lru_cache(maxsize=_TOKENS_MAX)
def token_from_resume_point(point: ResumePoint, *, log_id: str, filter: str) -> str:
    """Return the token of a point. Only that of a watch that has not sent all existing books depends on the filter."""
    if point.after_id is None:
        return token_from_values(point.position, purpose=log_id)
    return token_from_values([*point.position, point.after_id], purpose=[log_id, filter.strip()])


def resume_point_from_token(token: str, *, log_id: str, filter: str) -> ResumePoint:
    """Decode a token. Raises `InvalidResumeToken`."""
    try:
        return ResumePoint(Position(*_integers(values_from_token(token, purpose=log_id), count=2)))
    except (ValueError, TypeError, RecursionError):
        pass
    try:
        values = _integers(values_from_token(token, purpose=[log_id, filter.strip()]), count=3)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidResumeToken(
            "is damaged, or of another database or filter; use it unchanged, or start again without it"
        ) from error
    return ResumePoint(Position(*values[:2]), values[2])


def _integers(values: object, *, count: int) -> list[int]:
    """Verify the values of a token, which a caller may have forged."""
    if not isinstance(values, list) or len(values) != count:
        raise ValueError("not the values of a resume token")
    if any(type(value) is not int or not 0 <= value <= _INT64_MAX for value in values):
        raise ValueError("not the numbers of a resume token")
    return values
