"""The comments on the services, messages, fields and enums of a .proto file.

Generated code contains no comments. They come from the descriptor set with source info that `make generate` writes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import NamedTuple

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.rpc.code_pb2 import Code

# Field numbers of a file's parts in its descriptor (google/protobuf/descriptor.proto).
_SYNTAX, _MESSAGE, _ENUM, _SERVICE = 12, 4, 5, 6
_FIELD, _NESTED_MESSAGE, _NESTED_ENUM, _ENUM_VALUE, _METHOD = 2, 3, 4, 2, 2

# A line break within a paragraph of Markdown. Some renderers, such as Swagger UI, would keep it.
_SOFT_BREAK = re.compile(r"(?<=\S)\n {0,3}(?=[^\s*])")
_FIRST_SENTENCE = re.compile(r".+?[.!?](?=\s|$)")
_ERRORS = re.compile(rf"^(?=(?:{'|'.join(Code.keys())}) `)", re.MULTILINE)


class Comment(NamedTuple):
    """A comment: its first sentence, the whole text, and for an RPC the code and description of each error."""

    summary: str = ""
    description: str = ""
    errors: tuple[tuple[str, str], ...] = ()


class Comments:
    """The comments of a file, by the full name of what they describe; "" is the comment on the file itself.

    The name of an enum's value is that of the enum and its own.
    """

    def __init__(self, file: FileDescriptorProto) -> None:
        texts = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        self._comments: Mapping[str, Comment] = {
            name: _comment(texts[place]) for name, place in _places(file) if texts.get(place)
        }

    def of(self, full_name: str) -> Comment:
        """Return the comment on a full name; empty if there is none."""
        return self._comments.get(full_name, Comment())


def comments_of_contract() -> Comments:
    """Return the comments of `bookstore.v1`."""
    data = resources.files("bookstore.v1").joinpath("books.binpb").read_bytes()
    return Comments(FileDescriptorSet.FromString(data).file[-1])  # the files that it imports come first


def _places(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "", (_SYNTAX,)
    yield from _places_of_messages(file.package, (_MESSAGE,), file.message_type)
    yield from _places_of_enums(file.package, (_ENUM,), file.enum_type)
    for number, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield name, (_SERVICE, number)
        for method_number, method in enumerate(service.method):
            yield f"{name}.{method.name}", (_SERVICE, number, _METHOD, method_number)


def _places_of_messages(
    scope: str, place: tuple[int, ...], messages: Iterable[DescriptorProto]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number, message in enumerate(messages):
        name, here = f"{scope}.{message.name}", (*place, number)
        yield name, here
        for field_number, field in enumerate(message.field):
            yield f"{name}.{field.name}", (*here, _FIELD, field_number)
        yield from _places_of_messages(name, (*here, _NESTED_MESSAGE), message.nested_type)
        yield from _places_of_enums(name, (*here, _NESTED_ENUM), message.enum_type)


def _places_of_enums(
    scope: str, place: tuple[int, ...], enums: Iterable[EnumDescriptorProto]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number, enum in enumerate(enums):
        name, here = f"{scope}.{enum.name}", (*place, number)
        yield name, here
        for value_number, value in enumerate(enum.value):
            yield f"{name}.{value.name}", (*here, _ENUM_VALUE, value_number)


def _comment(text: str) -> Comment:
    """Parse a comment. Errors are listed at its end, each on a line that starts with the status code."""
    parts = _ERRORS.split("\n".join(line.removeprefix(" ") for line in text.splitlines()))
    description, *errors = (_SOFT_BREAK.sub(" ", part).strip() for part in parts)
    first = _FIRST_SENTENCE.match(description)
    return Comment(
        summary=first[0] if first else description,
        description=description,
        errors=tuple((code, line) for code, _, line in (error.partition(" ") for error in errors)),
    )
