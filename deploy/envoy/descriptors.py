"""What Envoy has to know of the contract to speak JSON for it: the file `bookstore.binpb`.

    python descriptors.py FILE

It is the descriptor set of the service with all that it imports, and with the details of errors, which the contract
does not import but answers.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from bookstore.v1 import books_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2


def descriptor_set() -> FileDescriptorSet:
    """Answer the descriptors, each file after those that it imports."""
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
    """Tell each field's name in JSON, which protoc leaves out of what it writes for Python, and readers may ask for."""
    for message in messages:
        descriptor = described[message.name]
        for field in message.field:
            field.json_name = descriptor.fields_by_name[field.name].json_name
        _name_fields_in_json(message.nested_type, descriptor.nested_types_by_name)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(descriptor_set().SerializeToString())
