"""The fields of books that have an optional text more."""

from collections.abc import Iterable

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from bookstore_grpc.dal.records import FIELDS, Field, FieldType
from bookstore_grpc.web.fields import fields_module


def fields_module_with(*names: str) -> bytes:
    """Return the ES module of a book that also has optional, searchable texts of these names."""
    added = [Field(name, FieldType.TEXT, 17, is_settable=True, is_optional=True, is_searchable=True) for name in names]
    fields = [*FIELDS.values(), *added]
    return fields_module(fields, _message(field.name for field in fields))


def _message(names: Iterable[str]) -> Descriptor:
    """Return a message with fields of these names; their types make no difference to their JSON names."""
    file = FileDescriptorProto(name="added_field.proto", syntax="proto3")
    message = file.message_type.add(name="Book")
    for number, name in enumerate(names, start=1):
        message.field.add(
            name=name,
            number=number,
            type=FieldDescriptorProto.TYPE_STRING,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
        )
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindMessageTypeByName("Book")
