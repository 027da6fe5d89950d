from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for

# None of it reads the database.
pytestmark = pytest.mark.databases("sqlite")

SERVICES = {
    "bookstore.v1.BookService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
}
Request = reflection_pb2.ServerReflectionRequest
Response = reflection_pb2.ServerReflectionResponse


@pytest.fixture(params=["v1", "v1alpha"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def ask(channel: grpc.aio.Channel, version: str, requests: Sequence[Request]) -> list[Response]:
    stream = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=Request.SerializeToString,
        response_deserializer=Response.FromString,
    )
    return [response async for response in stream(iter(requests))]


async def test_reflection_lists_the_services(channel: grpc.aio.Channel, version: str) -> None:
    (response,) = await ask(channel, version, [Request(list_services="")])
    assert {service.name for service in response.list_services_response.service} >= SERVICES


@pytest.mark.parametrize(
    "symbol",
    [
        "bookstore.v1.BookService",
        "bookstore.v1.BookService.UpdateBook",
        "bookstore.v1.Book",
        "bookstore.v1.Book.release_year",
        "bookstore.v1.ListBooksRequest",
    ],
)
async def test_reflection_describes_the_contract_by_its_symbols(
    channel: grpc.aio.Channel, version: str, symbol: str
) -> None:
    (response,) = await ask(channel, version, [Request(file_containing_symbol=symbol)])
    files = response.file_descriptor_response.file_descriptor_proto
    names = [descriptor_pb2.FileDescriptorProto.FromString(file).name for file in files]
    assert "bookstore/v1/books.proto" in names


async def test_reflection_gives_files_with_all_they_import(channel: grpc.aio.Channel, version: str) -> None:
    wanted, seen = ["bookstore/v1/books.proto"], set()
    while wanted:
        name = wanted.pop()
        seen.add(name)
        (response,) = await ask(channel, version, [Request(file_by_filename=name)])
        for data in response.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            seen.add(file.name)
            wanted += set(file.dependency) - seen
    assert "google/api/annotations.proto" in seen
    assert "google/protobuf/descriptor.proto" in seen


async def test_reflection_says_not_found_within_the_stream_and_goes_on(channel: grpc.aio.Channel, version: str) -> None:
    missing, found = await ask(
        channel,
        version,
        [Request(file_containing_symbol="bookstore.v1.Nothing"), Request(list_services="")],
    )
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert found.list_services_response.service


async def test_disabled_reflection_lists_nothing(tmp_path: Path, version: str) -> None:
    settings = settings_for(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", reflection="off")
    async with running_server(settings) as server, grpc.aio.insecure_channel(server.addresses[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, version, [Request(list_services="")])
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
