"""Decoding of HTTP requests: from path, query, headers and body to a request message."""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bookstore_grpc.errors import MalformedMessage, Rule
from bookstore_grpc.gateway.bindings import Binding
from bookstore_grpc.gateway.json_codec import fields_by_spelling, fill_message, is_well_known, set_field
from bookstore_grpc.service.validation import Violations

ANY = "*"  # matches any etag in If-Match and If-None-Match

_BOOLS = {"true": True, "false": False}
_ETAG = "etag"
RESUME_TOKEN = "resume_token"  # noqa: S105  the name of a field

Path = tuple[FieldDescriptor, ...]


class RequestDecoder:
    """Decodes the requests of one binding.

    The query may have the fields that are neither in the path nor in the body. `If-Match` sets the etag of the request,
    or otherwise of the resource in its body. PATCH without a mask changes the fields that are present in the body, even
    if null (RFC 7396), and PUT replaces the whole resource (RFC 9110, 9.3.4). `Last-Event-ID` sets the resume token of
    a stream, also if the query has one: a browser repeats the query when it resumes.
    """

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._message = binding.method.input_type
        self._request_class = GetMessageClass(self._message)
        self._parameters = {
            spelling: path
            for path in query_parameters(binding)
            for spelling in (_dotted_name(path), ".".join(field.json_name for field in path))
        }
        self._path_fields = [field_path(self._message, name) for name in binding.path_fields]
        self._mask = next((field for field in self._message.fields if is_mask(field)), None)
        self._etag = etag_path(binding)
        self._is_resumable = is_resumable(binding)

    @property
    def takes_body(self) -> bool:
        """Whether requests have a JSON body."""
        return bool(self._binding.body)

    def decode(
        self,
        *,
        path_values: Sequence[str],
        query: bytes,
        if_match: str | None,
        last_event_id: str | None,
        body: bytes,
        violations: Violations,
    ) -> Message:
        """Return the request, and add its violations to `violations`.

        Raises `MalformedMessage` if the body is not JSON or the query is not UTF-8.
        """
        request: Message = self._request_class()
        if self.takes_body:
            self._decode_body(request, body, violations)
        if query:
            self._decode_query(request, query, violations)
        for path, text in zip(self._path_fields, path_values, strict=True):
            _decode_path_value(request, path, text, violations)
        if if_match not in (None, ANY) and self._etag:
            self._decode_etag(request, self._etag, etag_from_header(if_match), violations)
        if last_event_id and self._is_resumable:
            setattr(request, RESUME_TOKEN, last_event_id)
        return request

    def _decode_body(self, request: Message, body: bytes, violations: Violations) -> None:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise MalformedMessage(self._binding.call, f"the body is not JSON ({error})") from error
        name = self._binding.body
        if name == "*":
            fill_message(request, value, "", violations)
            return
        resource = getattr(request, name)
        resource.SetInParent()
        fill_message(resource, value, name, violations)
        if self._mask is not None and isinstance(value, dict):
            getattr(request, self._mask.name).paths.extend(self._changed_fields(resource.DESCRIPTOR, value))

    def _changed_fields(self, resource: Descriptor, value: dict[str, Any]) -> Sequence[str]:
        if self._binding.verb == "PUT":
            return ("*",)
        if self._binding.verb != "PATCH":
            return ()
        fields = fields_by_spelling(resource)
        return [fields[key].name for key in value if key in fields]

    def _decode_query(self, request: Message, query: bytes, violations: Violations) -> None:
        try:
            parameters = parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
        except ValueError as error:
            raise MalformedMessage(self._binding.call, "the query is not UTF-8") from error
        given: set[Path] = set()
        for name, text in parameters:
            path = self._parameters.get(name)
            if path is None:
                violations.add(name[:100], Rule.UNKNOWN_FIELD, f"is not a parameter of {self._binding.method.name}")
                continue
            *parents, field = path
            if path in given and not field.is_repeated:
                violations.add(_dotted_name(path), Rule.DUPLICATE, "is given more than once")
                continue
            given.add(path)
            message = _below(request, parents)
            if field is self._mask:
                if not text:
                    continue  # an empty mask is the same as none
                if self._binding.verb == "PUT" and text != "*":
                    description = "is not allowed with PUT, which replaces all fields; use PATCH"
                    violations.add(_dotted_name(path), Rule.CONFLICT, description)
                message.ClearField(field.name)
            set_field(message, field, _parameter_value(field, text), _dotted_name(path), violations)

    def _decode_etag(self, request: Message, path: Path, etag: str, violations: Violations) -> None:
        *parents, field = path
        message = _below(request, parents)
        if not etag:
            violations.add(_dotted_name(path), Rule.REQUIRED, "is empty in If-Match, which would match any version")
        elif '"' in etag:
            violations.add(_dotted_name(path), Rule.TOO_MANY, "is a list of etags in If-Match, which takes only one")
        elif getattr(message, field.name) not in ("", etag):
            violations.add(_dotted_name(path), Rule.CONFLICT, "differs from the one in If-Match")
        setattr(message, field.name, etag)


def query_parameters(binding: Binding) -> Iterator[Path]:
    """Return the paths of the fields that a query may have. Only leaf fields, without fields of their own in JSON."""
    if binding.body != "*":
        yield from _parameters(binding.method.input_type, (), taken=(binding.body, *binding.path_fields))


def etag_path(binding: Binding) -> Path | None:
    """Return the path of the field that `If-Match` sets, or None if the request has no etag."""
    for name in (_ETAG, f"{binding.body}.{_ETAG}"):
        try:
            return field_path(binding.method.input_type, name)
        except KeyError:
            continue
    return None


def is_resumable(binding: Binding) -> bool:
    """Return whether the RPC is a stream that continues after the `resume_token` of a response."""
    field = binding.method.input_type.fields_by_name.get(RESUME_TOKEN)
    return binding.is_stream and field is not None and field.type == FieldDescriptor.TYPE_STRING


def field_path(message: Descriptor, name: str) -> Path:
    """Return the path of a dotted field name. Raises `KeyError`."""
    first, _, rest = name.partition(".")
    field = message.fields_by_name[first]
    if not rest:
        return (field,)
    if field.message_type is None:
        raise KeyError(name)
    return (field, *field_path(field.message_type, rest))


def is_mask(field: FieldDescriptor) -> bool:
    """Return whether a field is a field mask."""
    return field.message_type is not None and field.message_type.full_name == FieldMask.DESCRIPTOR.full_name


def etag_from_header(value: str) -> str:
    """Return the etag in a header. `W/` is ignored: proxies that compress responses make etags weak."""
    return value.strip().removeprefix("W/").strip('" ')


def _parameters(message: Descriptor, path: Path, *, taken: Sequence[str]) -> Iterator[Path]:
    for field in message.fields:
        here = (*path, field)
        if _dotted_name(here) in taken or field in path:
            continue
        if field.message_type is None or is_well_known(field):
            yield here
        elif not field.is_repeated:
            yield from _parameters(field.message_type, here, taken=taken)


def _parameter_value(field: FieldDescriptor, text: str) -> Any:
    value: Any = text
    if field.type == FieldDescriptor.TYPE_BOOL:
        value = _BOOLS.get(text, text)
    elif is_mask(field):
        value = re.sub("_([a-z0-9])", lambda found: found[1].upper(), text)  # in JSON, masks have only this spelling
    return [value] if field.is_repeated else value


def _decode_path_value(request: Message, path: Path, text: str, violations: Violations) -> None:
    *parents, field = path
    message = _below(request, parents)
    in_body = getattr(message, field.name)
    set_field(message, field, text, _dotted_name(path), violations)
    if in_body and in_body != getattr(message, field.name):
        violations.add(_dotted_name(path), Rule.CONFLICT, f"is {in_body} in the body and {text} in the path")


def _below(message: Message, parents: Sequence[FieldDescriptor]) -> Any:
    for field in parents:
        message = getattr(message, field.name)
    return message


def _dotted_name(path: Sequence[FieldDescriptor]) -> str:
    return ".".join(field.name for field in path)
