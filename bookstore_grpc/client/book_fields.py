"""The fields of a book as the contract's descriptor has them, for the client and its verbs.

The server has a table of its own, `dal/records.py`; a test compares the two.
"""

from typing import NamedTuple

from bookstore.v1.books_pb2 import Book
from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor


class BookField(NamedTuple):
    """A field that a caller sets: a text or a 32-bit integer."""

    name: str
    is_text: bool
    is_required: bool


def _settable(field: FieldDescriptor) -> BookField:
    if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_INT32) or field.is_repeated:
        raise TypeError(f"the field {field.name} of a book is neither a text nor an int32")
    is_text = field.type == FieldDescriptor.TYPE_STRING
    return BookField(field.name, is_text, _behaves(field, field_behavior_pb2.REQUIRED))


def _behaves(field: FieldDescriptor, behavior: int) -> bool:
    return behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]  # type: ignore[index]  # its stubs do not know what extends what


#: In the order of the contract.
FIELDS: tuple[FieldDescriptor, ...] = tuple(Book.DESCRIPTOR.fields)
# An etag is a condition of an update, not a value (AIP-154).
SETTABLE_FIELDS: tuple[BookField, ...] = tuple(
    _settable(field) for field in FIELDS if not _behaves(field, field_behavior_pb2.OUTPUT_ONLY) and field.name != "etag"
)
