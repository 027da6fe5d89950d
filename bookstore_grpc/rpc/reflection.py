"""Server reflection, v1 and v1alpha."""

from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


def add_reflection(server: grpc.aio.Server, service: str) -> None:
    """Add reflection to a server. It describes a service, health and reflection to clients such as grpcurl."""
    servicer = _ReflectionServicer((service, health.SERVICE_NAME, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # not in its stubs
    # The two versions of reflection differ only in their package names.
    v1 = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": v1})]
    )


class _ReflectionServicer(reflection.aio.ReflectionServicer):
    """gRPC's servicer, extended to find methods by name, as `grpcurl describe` needs."""

    def _file_containing_symbol(self, request: Any, symbol: str) -> Any:
        with suppress(KeyError):
            symbol = descriptor_pool.Default().FindMethodByName(symbol).containing_service.full_name
        return super()._file_containing_symbol(request, symbol)  # type: ignore[misc]  # not in its stubs
