"""The health service, called with types that its own stub lacks."""

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

Status = HealthCheckResponse


def check(
    channel: grpc.aio.Channel, service: str = "", *, metadata: tuple[tuple[str, str], ...] = ()
) -> "grpc.aio.UnaryUnaryCall[HealthCheckRequest, HealthCheckResponse]":
    method: grpc.aio.UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse] = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return method(HealthCheckRequest(service=service), metadata=metadata)


def watch(
    channel: grpc.aio.Channel, service: str = ""
) -> "grpc.aio.UnaryStreamCall[HealthCheckRequest, HealthCheckResponse]":
    method: grpc.aio.UnaryStreamMultiCallable[HealthCheckRequest, HealthCheckResponse] = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return method(HealthCheckRequest(service=service))
