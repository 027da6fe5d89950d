"""Messages as JSON Schema, by the rules of proto3 JSON (https://protobuf.dev/programming-guides/json/).

A message has up to three schemas. The one for responses is open: fields may be added, and fields with default values
are omitted. The one for requests allows only the known fields, and the one for PATCH requires none of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, ServiceDescriptor

from bookstore_grpc.gateway.openapi.comments import Comments

Schema = dict[str, Any]

_OBJECT: Schema = {"type": "object"}
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Any": _OBJECT
    | {"properties": {"@type": {"type": "string"}}, "required": ["@type"], "additionalProperties": True},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.Empty": _OBJECT,
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Struct": _OBJECT,
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Value": {},
}
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer", "format": "int64"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "format": "uint32"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "integer", "format": "uint64"},
}
# Integers that JavaScript's numbers cannot represent, and which therefore are strings in JSON.
_LARGE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


class Schemas:
    """Creates the schemas of messages, and collects the referenced ones in `components`.

    `details` has additional keywords, which descriptors cannot express, by a field's full name. For a repeated field
    they describe the list, and those in `items` each entry.
    """

    def __init__(self, service: ServiceDescriptor, comments: Comments, *, details: Mapping[str, Schema]) -> None:
        self.components: dict[str, Schema] = {}
        self._package = service.file.package
        self._in_responses = _reachable(method.output_type for method in service.methods)
        self._comments = comments
        self._details = details

    def of_response(self, message: Descriptor) -> Schema:
        """Return the schema of a message in a response."""
        return self._message(message, "")

    def of_body(self, message: Descriptor, *, is_partial: bool) -> Schema:
        """Return the schema of a message in a request."""
        return self._message(message, "Patch" if is_partial else "Input")

    def of_parameter(self, field: FieldDescriptor) -> Schema:
        """Return the schema of a field in a path or a query, where 64-bit integers are not strings."""
        return self._field(field, "Parameter")

    def example(self, message: Descriptor) -> Any:
        """Return an example of a request message with its required fields; None without examples."""
        examples = {field.json_name: self._example(field) for field in message.fields if is_required(field)}
        return {name: value for name, value in examples.items() if value is not None} or None

    def _example(self, field: FieldDescriptor) -> Any:
        examples = self._details.get(field.full_name, {}).get("examples", ())
        if examples or field.message_type is None or field.message_type.full_name in _WELL_KNOWN:
            return next(iter(examples), None)
        example = self.example(field.message_type)
        return [example] if example is not None and field.is_repeated else example

    def _message(self, message: Descriptor, use: str) -> Schema:
        if (well_known := _WELL_KNOWN.get(message.full_name)) is not None:
            return dict(well_known)
        if message.file.name == "google/protobuf/wrappers.proto":
            return self._value(message.fields[0], use)
        name = message.full_name.removeprefix(f"{self._package}.")
        if use == "Patch" or (use and message.full_name in self._in_responses):
            name += f"-{use}"  # message names contain no "-"
        if name not in self.components:
            schema = self.components[name] = dict(_OBJECT)  # registered first, because messages may be recursive
            schema |= self._described(message.full_name)
            # Beside a mask of an update (AIP-134) the resource has only the fields that change.
            inner_use = "Patch" if use and any(map(_is_mask, message.fields)) else use
            schema["properties"] = {field.json_name: self._field(field, inner_use) for field in message.fields}
            if use:
                schema["additionalProperties"] = False
            if use != "Patch" and (required := [field.json_name for field in message.fields if is_required(field)]):
                schema["required"] = required
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: FieldDescriptor, use: str) -> Schema:
        details = self._details.get(field.full_name, {})
        schema: Schema
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            schema = _OBJECT | {"additionalProperties": self._value(value, use)}
        elif field.is_repeated:
            schema = {"type": "array", "items": self._value(field, use) | details.get("items", {})}
        else:
            schema = self._value(field, use)
        schema |= self._described(field.full_name, values_of=field.enum_type)
        if _behaves(field, field_behavior_pb2.OUTPUT_ONLY):
            schema["readOnly"] = True
        return schema | {key: value for key, value in details.items() if key != "items"}

    def _value(self, field: FieldDescriptor, use: str) -> Schema:
        if field.message_type is not None:
            return self._message(field.message_type, use)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        schema = dict(_SCALARS[field.cpp_type])
        if field.cpp_type in _LARGE and use != "Parameter":
            # Requests may contain a number too.
            schema |= {"type": ["string", "integer"] if use else "string", "pattern": "^-?[0-9]+$"}
        if field.type == FieldDescriptor.TYPE_BYTES:
            schema["contentEncoding"] = "base64"
        return schema

    def _described(self, full_name: str, *, values_of: EnumDescriptor | None = None) -> Schema:
        """Return the description of what has this name, with those of an enum's values."""
        parts = [self._comments.of(full_name).description]
        if values_of is not None:
            comments = {name: self._comments.of(f"{values_of.full_name}.{name}") for name in values_of.values_by_name}
            lines = [f"* `{name}`: {comment.description}" for name, comment in comments.items() if comment.description]
            parts.append("\n".join(lines))
        description = "\n\n".join(filter(None, parts))
        return {"description": description} if description else {}


def _is_mask(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == "google.protobuf.FieldMask"


def is_required(field: FieldDescriptor) -> bool:
    """Return whether a request without the field is rejected (AIP-203)."""
    return _behaves(field, field_behavior_pb2.REQUIRED)


def _behaves(field: FieldDescriptor, behavior: int) -> bool:
    return behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]  # type: ignore[index]  # the stubs do not know the types of extensions


def _reachable(messages: Iterable[Descriptor]) -> set[str]:
    """Return the full names of messages and of all messages that they contain."""
    found: set[str] = set()
    remaining = list(messages)
    while remaining:
        message = remaining.pop()
        if message.full_name not in found:
            found.add(message.full_name)
            remaining += [field.message_type for field in message.fields if field.message_type is not None]
    return found
