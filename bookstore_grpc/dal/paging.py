"""Keyset pagination: orders and page tokens.

A page starts after the last book of the previous one, by comparison with its values, so every page costs the same. A
page token contains these values, and a digest of them, the filter and the order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bookstore_grpc.dal.checked_token import token_from_values, values_from_token
from bookstore_grpc.dal.records import FIELDS, BookRecord, FieldType
from bookstore_grpc.errors import InvalidOrderBy, InvalidPageToken, Rule, quoted

_ORDERABLE = [field.name for field in FIELDS.values() if field.is_orderable]
_INTEGER_BITS = {FieldType.INT32: 32, FieldType.INT64: 64, FieldType.TIME: 64}


class OrderTerm(NamedTuple):
    """A field to order by, and its direction."""

    field: str
    descending: bool


def parse_order_by(text: str) -> tuple[OrderTerm, ...]:
    """Parse an `order_by` into terms that end with the id, so that the order is total.

    Raises `InvalidOrderBy`.
    """
    terms: list[OrderTerm] = []
    for part in text.split(",") if text.strip() else ():
        field, *direction = part.split() or [""]
        if field not in _ORDERABLE:
            known = ", ".join(_ORDERABLE)
            raise InvalidOrderBy(
                f"{quoted(field)} is not a field to order by; there are {known}", rule=Rule.UNKNOWN_FIELD
            )
        if direction not in ([], ["asc"], ["desc"]):
            raise InvalidOrderBy(f"{quoted(' '.join(direction))} after {field} is neither asc nor desc")
        if any(field == term.field for term in terms):
            raise InvalidOrderBy(f"{field} occurs twice", rule=Rule.DUPLICATE)
        terms.append(OrderTerm(field, direction == ["desc"]))
    fields = [term.field for term in terms]
    if "id" not in fields:
        return (*terms, OrderTerm("id", False))
    return tuple(terms[: fields.index("id") + 1])  # ids are unique, so fields after the id have no effect


def page_token_from_record(record: BookRecord, *, filter: str, order: tuple[OrderTerm, ...]) -> str:
    """Return the token of the page that starts after a book."""
    return page_token_from_values([getattr(record, term.field) for term in order], filter=filter, order=order)


def page_token_from_values(values: Sequence[object], *, filter: str, order: tuple[OrderTerm, ...]) -> str:
    """Return the token of the page that starts after the book that has these values of the fields of the order."""
    return token_from_values(values, purpose=[filter.strip(), order])


def position_from_page_token(token: str, *, filter: str, order: tuple[OrderTerm, ...]) -> dict[str, object]:
    """Decode a token into the parameters of a page's statements. Raises `InvalidPageToken`."""
    try:
        return _position_from_values(values_from_token(token, purpose=[filter.strip(), order]), order)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidPageToken(
            "is damaged, or belongs to another filter or order_by; use next_page_token unchanged, with the same "
            "filter and order_by, or start again without it"
        ) from error


def _position_from_values(values: Any, order: tuple[OrderTerm, ...]) -> dict[str, object]:
    """Validate the values of a token, which a caller may have forged, and return them by parameter name."""
    position: dict[str, object] = {}
    for term, value in zip(order, values, strict=True):
        field = FIELDS[term.field]
        if field.type is FieldType.TEXT:
            if not isinstance(value, str) or "\0" in value:
                raise ValueError("not a text of a book")
            value.encode()
        elif type(value) is not int or abs(value) >= 2 ** (_INTEGER_BITS[field.type] - 1):
            raise ValueError("not a number of a book")
        position[f"after_{field.name}"] = value
        if field.head_code_points:
            position[f"after_{field.name}_head"] = value[: field.head_code_points]
    return position
