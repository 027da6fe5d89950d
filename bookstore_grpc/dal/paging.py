"""Keyset pagination: orders and page tokens.

A page starts after the last book of the previous one, found by comparing values, so every page costs the same. A token
holds those values and a digest of them, the filter and the order. The digest protects against mistakes, not against
forgery: a forged token shows nothing that another filter would not.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, or_, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from bookstore_grpc.dal.filters import parse_filter
from bookstore_grpc.dal.models import COLUMNS, HEAD_COLUMNS, SELECT_BOOKS
from bookstore_grpc.dal.records import FIELDS, BookRecord, FieldType
from bookstore_grpc.errors import InvalidOrderBy, InvalidPageToken, Rule, quoted
from bookstore_grpc.limits import PAGE_TOKEN_MAX_CODE_POINTS

_DIGEST_BYTES = 8
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
            raise InvalidOrderBy(f"{field} stands twice", rule=Rule.DUPLICATE)
        terms.append(OrderTerm(field, direction == ["desc"]))
    fields = [term.field for term in terms]
    if "id" not in fields:
        return (*terms, OrderTerm("id", False))
    return tuple(terms[: fields.index("id") + 1])  # no two books share an id: what follows it decides nothing


def is_search(filter: str, order: tuple[OrderTerm, ...]) -> bool:
    """Return whether a page may take long to read: it has a filter, or no index has its order.

    Each index is of one field and the id, in the same direction.
    """
    return bool(filter.strip()) or len(order) > 2 or len({term.descending for term in order}) > 1


def page_token_from_record(record: BookRecord, *, filter: str, order: tuple[OrderTerm, ...]) -> str:
    """Return the token of the page that starts after a book."""
    values = [getattr(record, term.field) for term in order]
    payload = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return urlsafe_b64encode(_digest(payload, filter, order) + payload).rstrip(b"=").decode()


def position_from_page_token(token: str, *, filter: str, order: tuple[OrderTerm, ...]) -> dict[str, object]:
    """Decode a token into the parameters of `page_statement`. Raises `InvalidPageToken`."""
    try:
        if len(token) > PAGE_TOKEN_MAX_CODE_POINTS:
            raise ValueError("longer than any token")
        content = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if digest != _digest(payload, filter, order) or urlsafe_b64encode(content).rstrip(b"=") != token.encode():
            raise ValueError("damaged, or made for another filter or order")
        return _position_from_values(json.loads(payload), order)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidPageToken(
            "is damaged, or belongs to another filter or order_by; use next_page_token as it came, with the same "
            "filter and order_by, or start again without it"
        ) from error


@lru_cache(maxsize=128)
def page_statement(filter: str, order: tuple[OrderTerm, ...], *, dialect: str, continued: bool) -> Select[Any]:
    """Return the statement of a page; its parameters are `limit` and, if `continued`, a position.

    Raises `InvalidFilter`.
    """
    keys = [(key, term.descending) for term in order for key in _keys(term.field)]
    statement = (
        SELECT_BOOKS.where(parse_filter(filter))
        .order_by(*(column.desc() if descending else column.asc() for (_, column), descending in keys))
        .limit(bindparam("limit"))
    )
    return statement.where(_after(keys, dialect=dialect)) if continued else statement


_Key = tuple[str, InstrumentedAttribute[Any]]


def _keys(field: str) -> list[_Key]:
    # If the index holds only the head of a text, ordering by that first lets the index be used; the order is the same.
    head = [(f"{field}_head", HEAD_COLUMNS[field])] if field in HEAD_COLUMNS else []
    return [*head, (field, COLUMNS[field])]


def _after(keys: Sequence[tuple[_Key, bool]], *, dialect: str) -> ColumnElement[bool]:
    columns = [column for (_, column), _ in keys]
    values = [bindparam(f"after_{name}", type_=column.type) for (name, column), _ in keys]
    directions = {descending for _, descending in keys}
    # A row comparison is one index range on SQLite and PostgreSQL; MariaDB finds ranges only in ANDs and ORs.
    if len(directions) == 1 and dialect != "mariadb":
        row, position = tuple_(*columns), tuple_(*values)
        return row < position if directions == {True} else row > position
    condition: ColumnElement[bool] | None = None
    for column, value, (_, descending) in reversed(list(zip(columns, values, keys, strict=True))):
        beyond = column < value if descending else column > value
        condition = beyond if condition is None else or_(beyond, and_(column == value, condition))
    first, value = columns[0], values[0]
    bound = first <= value if keys[0][1] else first >= value  # implied by the rest, and an index range
    return and_(bound, condition)  # type: ignore[arg-type]  # there is always a key: the id


def _position_from_values(values: Any, order: tuple[OrderTerm, ...]) -> dict[str, object]:
    """Return the values of a token by parameter name, once checked, because a caller could have made them up."""
    position: dict[str, object] = {}
    for term, value in zip(order, values, strict=True):
        field = FIELDS[term.field]
        if field.type is FieldType.TEXT:
            if not isinstance(value, str) or "\0" in value:
                raise ValueError("no text of a book")
            value.encode()
        elif type(value) is not int or abs(value) >= 2 ** (_INTEGER_BITS[field.type] - 1):
            raise ValueError("no number of a book")
        position[f"after_{field.name}"] = value
        if field.head_code_points:
            position[f"after_{field.name}_head"] = value[: field.head_code_points]
    return position


def _digest(payload: bytes, filter: str, order: tuple[OrderTerm, ...]) -> bytes:
    terms = json.dumps([filter.strip(), order])
    return blake2b(payload, digest_size=_DIGEST_BYTES, key=blake2b(terms.encode()).digest()).digest()
