"""The module with the fields of a book, which the catalogue page derives its table, form and import from."""

from typing import Any

import orjson
from bookstore.v1.books_pb2 import Book

from bookstore_grpc.dal.records import FIELDS
from bookstore_grpc.web.fields import fields_module
from tests.web.added_field import fields_module_with


def exported(module: bytes) -> list[dict[str, Any]]:
    start, end = b"export const FIELDS = ", b";\n"
    assert module.startswith(start)
    assert module.endswith(end)
    return orjson.loads(module[len(start) : -len(end)])  # type: ignore[no-any-return]


def test_the_module_lists_every_field_in_the_order_of_the_table() -> None:
    fields = exported(fields_module(FIELDS.values(), Book.DESCRIPTOR))

    assert [field["name"] for field in fields] == list(FIELDS)
    assert [field["name"] for field in fields if field["isRequired"]] == ["name", "author", "release_year"]
    assert fields[3] == {
        "name": "release_year",
        "jsonName": "releaseYear",
        "type": "int32",
        "isSettable": True,
        "isRequired": True,
        "isSearchable": False,
        "isOrderable": True,
    }


def test_an_added_optional_text_is_in_the_module() -> None:
    *_, added = exported(fields_module_with("original_title"))

    assert added == {
        "name": "original_title",
        "jsonName": "originalTitle",
        "type": "text",
        "isSettable": True,
        "isRequired": False,
        "isSearchable": True,
        "isOrderable": True,
    }
