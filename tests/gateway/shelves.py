"""Another service, made of descriptors alone, with the other forms of `google.api.http`."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

from google.api import annotations_pb2
from google.api.http_pb2 import CustomHttpPattern, HttpRule
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from bookstore_grpc.service.servicer import BookServicer

_OF_TYPES = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "bool": FieldDescriptorProto.TYPE_BOOL,
}

RULES: dict[str, tuple[str, str, HttpRule]] = {
    "GetShelf": (
        "ShelfRequest",
        "Shelf",
        HttpRule(
            get="/v1/{name=shelves/*}",
            additional_bindings=[HttpRule(get="/v2/{name=shelves/*/rows/*}"), HttpRule(get="/v3/{name=**}")],
        ),
    ),
    "CreateShelf": ("CreateShelfRequest", "Shelf", HttpRule(post="/v1/shelves", body="shelf")),
    "DustShelf": ("ShelfRequest", "Shelf", HttpRule(post="/v1/{name=shelves/*}:dust", body="*")),
    "CloseShelf": ("ShelfRequest", "Shelf", HttpRule(post="/v1/{name=shelves/*}:close")),
    "LockShelf": (
        "ShelfRequest",
        "Shelf",
        HttpRule(custom=CustomHttpPattern(kind="LOCK", path="/v1/{name=shelves/*}")),
    ),
    "MoveShelf": ("ShelfRequest", "Shelf", HttpRule()),
    "WatchShelves": (
        "WatchShelvesRequest",
        "ShelfChange",
        HttpRule(get="/v1/shelves:watch", additional_bindings=[HttpRule(post="/v1/{name=shelves/*}:watch", body="*")]),
    ),
    "CountShelves": ("ShelfRequest", "Shelf", HttpRule(get="/v1/shelves:count")),
}


def shelf_service(
    rules: dict[str, tuple[str, str, HttpRule]] = RULES,
    *,
    streams: Collection[str] = ("WatchShelves", "CountShelves"),
    streams_of_requests: Collection[str] = (),
) -> ServiceDescriptor:
    """Make the service in a pool of its own; `streams` are the methods that return several responses."""
    file = FileDescriptorProto(name="shelves.proto", package="shelves.v1", syntax="proto3")
    file.message_type.extend(
        [
            _message("Shelf", name="string", room="int64"),
            _message("ShelfRequest", name="string", gently="bool", times="int64"),
            _message("CreateShelfRequest", shelf=".shelves.v1.Shelf"),
            _message("WatchShelvesRequest", name="string", resume_token="string"),
            _message("ShelfChange", shelf=".shelves.v1.Shelf", resume_token="string"),
        ]
    )
    service = file.service.add(name="Shelves")
    for name, (request, response, rule) in rules.items():
        method = service.method.add(
            name=name,
            input_type=f".shelves.v1.{request}",
            output_type=f".shelves.v1.{response}",
            server_streaming=name in streams,
            client_streaming=name in streams_of_requests,
        )
        if rule.WhichOneof("pattern"):
            method.options.Extensions[annotations_pb2.http].CopyFrom(rule)  # type: ignore[index]  # as in bindings.py
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("shelves.v1.Shelves")


class Librarian(BookServicer):
    """Responds with the request.

    WatchShelves streams what a test puts into `responses`: a message or its bytes, an error to raise, or None for the
    end. CountShelves streams as many shelves as the request has `times`.
    """

    def __init__(self, service: ServiceDescriptor) -> None:
        self._shelf = GetMessageClass(service.methods_by_name["GetShelf"].output_type)
        self.change = GetMessageClass(service.methods_by_name["WatchShelves"].output_type)
        self.responses: asyncio.Queue[Any] = asyncio.Queue()
        self.requests: list[Any] = []
        self.begun = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)

    async def GetShelf(self, request: Any, _context: Any) -> Any:  # noqa: N802  the contract's name
        return self._shelf(name=request.name, room=1)

    async def CreateShelf(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return request.shelf

    async def DustShelf(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return self._shelf(name=f"{request.name} dusted{' gently' if request.gently else ''}", room=request.times)

    async def CloseShelf(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return self._shelf(name=f"{request.name} closed")

    async def LockShelf(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return self._shelf(name=f"{request.name} locked{' gently' if request.gently else ''}", room=request.times)

    async def WatchShelves(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.requests.append(request)
        self.begun.release()
        try:
            while (response := await self.responses.get()) is not None:
                if isinstance(response, Exception):
                    raise response
                yield response
        finally:
            self.ended.release()

    async def CountShelves(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        for number in range(request.times):
            yield self._shelf(room=number + 1)


def _message(name_of_message: str, /, **fields: str) -> DescriptorProto:
    message = DescriptorProto(name=name_of_message)
    for number, (field, kind) in enumerate(fields.items(), start=1):
        described = message.field.add(name=field, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if kind in _OF_TYPES:
            described.type = _OF_TYPES[kind]
        else:
            described.type, described.type_name = FieldDescriptorProto.TYPE_MESSAGE, kind
    return message
