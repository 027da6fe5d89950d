"""The ES module with the fields of a book, from which the catalogue page derives its table, form and import."""

from collections.abc import Iterable
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor

from bookstore_grpc.dal.records import Field


def fields_module(fields: Iterable[Field], message: Descriptor) -> bytes:
    """Return JavaScript that exports the fields as `FIELDS`, with their JSON names in `message`."""
    described = [_description(field, message.fields_by_name[field.name].json_name) for field in fields]
    return b"export const FIELDS = " + orjson.dumps(described) + b";\n"


def _description(field: Field, json_name: str) -> dict[str, Any]:
    return {
        "name": field.name,
        "jsonName": json_name,
        "type": field.type.value,
        "isSettable": field.is_settable,
        "isRequired": field.is_settable and not field.is_optional,
        "isSearchable": field.is_searchable,
        "isOrderable": field.is_orderable,
    }
