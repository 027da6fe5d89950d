"""Converts JSON to messages and back, by the rules of proto3 JSON (https://protobuf.dev/programming-guides/json/).

Unknown fields are rejected. All violations, up to a thousand, are reported together, with the contract's field paths.
protobuf's own parser stops at the first violation, and describes it in terms of Python.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bookstore_grpc.errors import Rule, quoted
from bookstore_grpc.limits import JSON_ARRAY_MAX, JSON_VIOLATIONS_MAX
from bookstore_grpc.service.validation import Violations, count_violation

_WELL_KNOWN = "google.protobuf."
_WHOLE_NUMBER = re.compile("-?[0-9]{1,20}")
_DURATION = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,9})?s")
_SHOWN_MAX_CHARACTERS = 100
_EPOCH = datetime(1970, 1, 1)  # in UTC, as all timestamps are


def json_from_message(message: Message) -> bytes:
    """Return a message as JSON. Fields with default values are omitted, and 64-bit integers are strings."""
    return orjson.dumps(_object(message))


def fill_message(message: Message, value: Any, path: str, violations: Violations) -> None:
    """Set the fields of a message from a JSON object. Violations are added with field paths below `path`."""
    if not isinstance(value, dict):
        violations.add(path or "body", Rule.INVALID_TYPE, "must be a JSON object")
        return
    fields = fields_by_spelling(message.DESCRIPTOR)
    given: set[int] = set()
    for key, item in value.items():
        if len(violations) >= JSON_VIOLATIONS_MAX:
            return
        field = fields.get(key)
        if field is None:
            here = joined(path, key[:_SHOWN_MAX_CHARACTERS])
            violations.add(here, Rule.UNKNOWN_FIELD, f"is not a field of {message.DESCRIPTOR.name}")
        elif field.number in given:
            violations.add(joined(path, field.name), Rule.DUPLICATE, "is given twice, in two spellings")
        else:
            given.add(field.number)
            if item is not None:  # null is the same as absent
                set_field(message, field, item, joined(path, field.name), violations)


def set_field(message: Message, field: FieldDescriptor, value: Any, path: str, violations: Violations) -> None:
    """Set a field from a JSON value. Violations are added with the field path `path`."""
    convert = _converter(field)
    if convert is None:
        try:
            json_format.ParseDict({field.json_name: value}, message)
        except json_format.ParseError:
            kind = field.message_type or field.enum_type
            violations.add(path, Rule.INVALID_TYPE, f"is not a valid {kind.name}" if kind else "has the wrong type")
    elif not field.is_repeated:
        convert(message, value, path, violations)
    elif not isinstance(value, list):
        violations.add(path, Rule.INVALID_TYPE, "must be a JSON array")
    elif len(value) > JSON_ARRAY_MAX:
        violations.check(path, count_violation(len(value), most=JSON_ARRAY_MAX))
    else:
        # A query adds the entries one by one.
        for index, item in enumerate(value, len(getattr(message, field.name))):
            if len(violations) >= JSON_VIOLATIONS_MAX:
                return
            convert(message, item, f"{path}[{index}]", violations)


@cache
def fields_by_spelling(message: Descriptor) -> Mapping[str, FieldDescriptor]:
    """Return the fields of a message by their JSON names and by their names in the contract."""
    return {spelling: field for field in message.fields for spelling in (field.json_name, field.name)}


def is_well_known(field: FieldDescriptor) -> bool:
    """Return whether a field's message has a special form in JSON, such as timestamps and field masks."""
    return field.message_type is not None and field.message_type.full_name.startswith(_WELL_KNOWN)


def joined(path: str, name: str) -> str:
    """Return the path of a field within another."""
    return f"{path}.{name}" if path else name


def _is_object(field: FieldDescriptor) -> bool:
    """Return whether a field's message is represented as a JSON object of its fields."""
    kind = field.message_type
    return kind is not None and not is_well_known(field) and not kind.GetOptions().map_entry


_Convert = Callable[[Any, Any, str, Violations], None]


@cache
def _converter(field: FieldDescriptor) -> _Convert | None:
    """Return a function that sets a field, or appends to a repeated one; None for types left to protobuf's parser."""
    name, is_repeated = field.name, field.is_repeated
    if _is_object(field):

        def set_message(message: Any, value: Any, path: str, violations: Violations) -> None:
            child = getattr(message, name).add() if is_repeated else getattr(message, name)
            child.SetInParent()
            fill_message(child, value, path, violations)

        return set_message
    if field.message_type is not None:
        is_duration = field.message_type.full_name == Duration.DESCRIPTOR.full_name
        return _set_duration(name) if is_duration and not is_repeated else None
    read = _enum_reader(field.enum_type) if field.enum_type is not None else _READERS.get(field.type)
    if read is None:
        return None

    def set_value(message: Any, value: Any) -> None:
        if is_repeated:
            getattr(message, name).append(value)
        else:
            setattr(message, name, value)

    def set_scalar(message: Any, value: Any, path: str, violations: Violations) -> None:
        try:
            set_value(message, read(value))
        except _Unreadable as unreadable:
            violations.add(path, Rule.INVALID_TYPE, str(unreadable))
        except ValueError:  # raised by the message: a whole number that is out of range
            violations.add(path, Rule.OUT_OF_RANGE, _out_of_range(value))
        else:
            return
        if is_repeated:  # a placeholder, so that later entries keep the index of their field path
            set_value(message, "" if field.type == FieldDescriptor.TYPE_STRING else 0)

    return set_scalar


def _set_duration(name: str) -> _Convert:
    """Return the function that sets the duration of this name from seconds as text, such as `1.5s`."""

    def set_duration(message: Any, value: Any, path: str, violations: Violations) -> None:
        if not isinstance(value, str) or not _DURATION.fullmatch(value):
            violations.add(path, Rule.INVALID_TYPE, "must be a duration in seconds, such as 1.5s")
            return
        duration = getattr(message, name)
        duration.SetInParent()
        try:
            duration.FromJsonString(value)
        except ValueError:  # more than ten thousand years
            violations.add(path, Rule.OUT_OF_RANGE, _out_of_range(value))

    return set_duration


def _out_of_range(value: Any) -> str:
    return f"is {quoted(str(value))}, which does not fit into its type"


class _Unreadable(Exception):
    """The value does not have the type of its field; the message is the description of the violation."""


def _whole_number(value: Any) -> int:
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        return int(value)
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise _Unreadable("must be a whole number")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _Unreadable("must be a string")


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _Unreadable("must be true or false")


def _enum_reader(enum: EnumDescriptor) -> Callable[[Any], int]:
    """Return the function that reads a value of an enum: its name or, as in every JSON of proto3, its number."""

    def read(value: Any) -> int:
        if isinstance(value, str) and value in enum.values_by_name:
            return enum.values_by_name[value].number
        with suppress(_Unreadable):
            if (number := _whole_number(value)) in enum.values_by_number:
                return number
        raise _Unreadable(f"must be one of {', '.join(enum.values_by_name)}")

    return read


_READERS: Mapping[int, Callable[[Any], Any]] = {
    FieldDescriptor.TYPE_STRING: _text,
    FieldDescriptor.TYPE_BOOL: _truth,
    FieldDescriptor.TYPE_INT32: _whole_number,
    FieldDescriptor.TYPE_INT64: _whole_number,
    FieldDescriptor.TYPE_UINT32: _whole_number,
    FieldDescriptor.TYPE_UINT64: _whole_number,
}


_Write = Callable[[Any], Any]

# No function means unchanged.
_WRITERS: Mapping[int, _Write | None] = {
    FieldDescriptor.TYPE_STRING: None,
    FieldDescriptor.TYPE_BOOL: None,
    FieldDescriptor.TYPE_INT32: None,
    FieldDescriptor.TYPE_UINT32: None,
    FieldDescriptor.TYPE_INT64: str,
    FieldDescriptor.TYPE_UINT64: str,
}


def _object(message: Message) -> Mapping[str, Any]:
    """Return the fields that are set. Twice as fast as protobuf's function, which looks up their types each time."""
    writers = _writers(message.DESCRIPTOR)
    if writers is None:
        return json_format.MessageToDict(message)
    written: dict[str, Any] = {}
    for field, value in message.ListFields():
        name, write = writers[field.number]
        written[name] = write(value) if write else value
    return written


def _own_form(value: Any) -> Any:
    return value.ToJsonString()


def _time(value: Any) -> str:
    time = (_EPOCH + timedelta(seconds=value.seconds)).isoformat()
    if value.nanos % 1_000:
        return f"{time}.{value.nanos:09d}Z"
    if value.nanos % 1_000_000:
        return f"{time}.{value.nanos // 1_000:06d}Z"
    return f"{time}.{value.nanos // 1_000_000:03d}Z" if value.nanos else f"{time}Z"


_WELL_KNOWN_WRITERS: Mapping[str, _Write] = {
    Timestamp.DESCRIPTOR.full_name: _time,
    Duration.DESCRIPTOR.full_name: _own_form,
    FieldMask.DESCRIPTOR.full_name: _own_form,
}


@cache
def _writers(message: Descriptor) -> Mapping[int, tuple[str, _Write | None]] | None:
    """Return the JSON name and the encoding function of each field by its number.

    Returns None if a field has another type. Such messages are left to protobuf's function.
    """
    try:
        return {field.number: (field.json_name, _writer(field)) for field in message.fields}
    except KeyError:
        return None


def _writer(field: FieldDescriptor) -> _Write | None:
    """Return the encoding function of a field. Raises `KeyError` for types that are left to protobuf's function."""
    if field.message_type is not None:
        write: _Write | None = _object if _is_object(field) else _WELL_KNOWN_WRITERS[field.message_type.full_name]
    elif field.enum_type is not None:
        write = _enum_writer(field.enum_type)
    else:
        write = _WRITERS[field.type]
    return _list_writer(write) if field.is_repeated else write


def _enum_writer(enum: EnumDescriptor) -> _Write:
    """Return the function that writes a value of an enum: its name, or its number if it has none."""
    names = {number: value.name for number, value in enum.values_by_number.items()}
    return lambda number: names.get(number, number)


def _list_writer(write: _Write | None) -> _Write:
    return list if write is None else lambda values: [write(value) for value in values]
