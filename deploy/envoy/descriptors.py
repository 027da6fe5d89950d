"""Writes the descriptors with which Envoy transcodes JSON: the file `bookstore.binpb`.

    python descriptors.py FILE

It is the descriptor set of the service with its imports, and with the details of errors, which the contract returns
but does not import.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from bookstore.v1 import books_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2


def descriptor_set() -> FileDescriptorSet:
    """Return the descriptors, each file after its imports."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        files[file.name] = file

    for module in (books_pb2, error_details_pb2, status_pb2):
        add(module.DESCRIPTOR)
    found = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
        _name_fields_in_json(found.file[-1].message_type, file.message_types_by_name)
    return found


def _name_fields_in_json(messages: Iterable[DescriptorProto], described: Mapping[str, Descriptor]) -> None:
    """Set each field's JSON name, which protoc omits for Python and some readers need."""
    for message in messages:
        descriptor = described[message.name]
        for field in message.field:
            field.json_name = descriptor.fields_by_name[field.name].json_name
        _name_fields_in_json(message.nested_type, descriptor.nested_types_by_name)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(descriptor_set().SerializeToString())
