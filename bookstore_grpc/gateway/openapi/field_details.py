"""What JSON Schema can express of the fields of messages and their descriptors do not have.

The comments of the contract state the same limits in words; tests hold the API to them.
"""

from collections.abc import Mapping

from bookstore.v1.books_pb2 import Book
from google.rpc import error_details_pb2

from bookstore_grpc.dal.records import FIELDS, Field, FieldType
from bookstore_grpc.gateway.openapi.schemas import Schema
from bookstore_grpc.limits import BATCH_MAX, FILTER_MAX_CODE_POINTS

FAILURE_DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.RequestInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
)
_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


def _of_book(field: Field) -> Schema:
    """Return the bounds of a field of a book, and its example as JSON has it."""
    details: Schema = {}
    if field.is_settable and field.type is FieldType.TEXT:
        details = {} if field.is_optional else {"minLength": 1}
        details["maxLength"] = field.max_code_points
    elif field.is_settable:
        details = {"minimum": field.min_value, "maximum": field.max_value}
    if field.example is not None:
        details["examples"] = [str(field.example) if field.type is FieldType.INT64 else field.example]
    return details


FIELD_DETAILS: Mapping[str, Schema] = {
    **{f"{Book.DESCRIPTOR.full_name}.{name}": _of_book(field) for name, field in FIELDS.items()},
    "bookstore.v1.CreateBookRequest.request_id": {"pattern": f"^({_UUID})?$"},
    "bookstore.v1.GetBookRequest.id": {"minimum": 1, "examples": [1]},
    "bookstore.v1.ListBooksRequest.page_size": {"minimum": 0},
    "bookstore.v1.ListBooksRequest.filter": {"maxLength": FILTER_MAX_CODE_POINTS},
    "bookstore.v1.BatchGetBooksRequest.ids": {
        "minItems": 1,
        "maxItems": BATCH_MAX,
        "items": {"minimum": 1},
        "examples": [[1]],
    },
    "bookstore.v1.BatchCreateBooksRequest.requests": {"minItems": 1, "maxItems": BATCH_MAX},
    "bookstore.v1.BatchUpdateBooksRequest.requests": {
        "minItems": 1,
        "maxItems": BATCH_MAX,
        "examples": [[{"book": {"id": "1", "releaseYear": 1969}}]],
    },
    "bookstore.v1.DeleteBookRequest.id": {"minimum": 1},
    "bookstore.v1.BatchDeleteBooksRequest.requests": {
        "minItems": 1,
        "maxItems": BATCH_MAX,
        "examples": [[{"id": "2"}]],
    },
    "bookstore.v1.PurgeBooksRequest.filter": {
        "minLength": 1,
        "maxLength": FILTER_MAX_CODE_POINTS,
        "examples": ["release_year < 0"],
    },
    "bookstore.v1.WatchBooksRequest.filter": {"maxLength": FILTER_MAX_CODE_POINTS},
    "bookstore.v1.ListBookChangesRequest.page_size": {"minimum": 0},
    "bookstore.v1.ListBookChangesRequest.filter": {"maxLength": FILTER_MAX_CODE_POINTS},
    "google.rpc.Status.code": {"description": "The number of the status over gRPC (`google.rpc.Code`)."},
    "google.rpc.Status.message": {"description": "A sentence to act on."},
    "google.rpc.Status.details": {
        "items": {
            "oneOf": [
                {
                    "$ref": f"#/components/schemas/{detail.DESCRIPTOR.full_name}",
                    "properties": {"@type": {"const": f"type.googleapis.com/{detail.DESCRIPTOR.full_name}"}},
                }
                for detail in FAILURE_DETAILS
            ]
        }
    },
}
