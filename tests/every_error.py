"""Errors of every class, made from their signatures: a new class is in the tests that use this by itself."""

import inspect
from collections.abc import Iterator
from typing import Any

from bookstore_grpc import errors
from bookstore_grpc.errors import BookstoreError, Rule, Violation

# What each parameter of a constructor is given; a new one is named here.
ARGUMENTS: dict[str, Any] = {
    "message": "Something is wrong.",
    "metadata": {"of": "the reason"},
    "violations": (Violation("book.name", "is empty", Rule.REQUIRED), Violation("book.author", "is 7", Rule.TOO_LONG)),
    "field": "book.name",
    "description": "is wrong (column 3)",
    "column": 3,
    "rule": Rule.UNKNOWN_FIELD,
    "method": "/a.B/C",
    "cause": "it is empty",
    "max_bytes": 7,
    "ids": (2**63 - 1, 7),
    "book_id": 2**63 - 1,
    "create_request_id": "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d",
    "limit": "rate",
    "retry_seconds": 2.5,
}


def every_class(root: type[BookstoreError] = BookstoreError) -> Iterator[type[BookstoreError]]:
    """Walk over the classes of `errors`, in their order in the tree."""
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from every_class(kind)


def made(kind: type[BookstoreError], **arguments: Any) -> BookstoreError:
    """Make an error with every argument that its class takes."""
    parameters = inspect.signature(kind).parameters
    return kind(**{name: arguments.get(name, ARGUMENTS[name]) for name in parameters})
