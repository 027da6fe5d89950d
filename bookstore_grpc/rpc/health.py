"""The health service (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).

The servicer of grpcio-health-checking is not used, because its watchers write while they hold the lock that a change of
status needs: one client that does not read would block all others, and the shutdown of the server, forever.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

_Response = health_pb2.HealthCheckResponse


class Health:
    """Reports the status of the services, which is the same for all."""

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(services)
        self._is_serving = True
        self._changed = asyncio.Event()

    def set(self, *, is_serving: bool) -> None:
        """Set whether the services serve, and notify the watchers."""
        self._is_serving = is_serving
        self._changed.set()
        self._changed = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to add to a server.

        A generic handler, because calls of registered methods may be held back (`calls.admission`).
        """
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._check,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=_Response.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=_Response.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    async def _check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This server has no such service.")
        return self._response(request.service)

    async def _watch(
        self, request: health_pb2.HealthCheckRequest, _context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        reported = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response != reported:
                yield response
                reported = response
            else:
                await changed.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _Response(status=_Response.SERVICE_UNKNOWN)
        return _Response(status=_Response.SERVING if self._is_serving else _Response.NOT_SERVING)
