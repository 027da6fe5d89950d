"""Sends the client's unary calls: one channel, a deadline for each call, and retries within it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import EllipsisType
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2

from bookstore_grpc.client.call_options import (
    GivenMetadata,
    Pairs,
    checked_call_id,
    checked_metadata,
    checked_timeout,
    remaining_seconds,
)
from bookstore_grpc.client.channel import Connection
from bookstore_grpc.client.errors import error_from_rpc_error
from bookstore_grpc.client.retries import ATTEMPTS_MAX, retry_delay_seconds
from bookstore_grpc.errors import BookstoreError, ClientUnusable, DeadlineExceeded
from bookstore_grpc.metadata import Metadata, metadata_of_current_span

Request = TypeVar("Request")
Response = TypeVar("Response")

# The timeout of a call that should fail immediately.
_PROBE_SECONDS = 0.5


class Transport:
    """Owns the client's connection, opened by the first call. `connect` opens it, `metadata` returns the token's."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        metadata: Callable[[], Metadata],
        timeout_seconds: float | None,
        wait_for_ready: bool,
        trace_context: Metadata,
    ) -> None:
        self._connect = connect
        self._metadata = metadata
        self._timeout_seconds = checked_timeout(timeout_seconds)
        self._waits_for_ready = wait_for_ready
        self._trace_context = checked_metadata(trace_context)
        self._connection: Connection | None = None
        self._closed = asyncio.Event()

    def connection(self) -> Connection:
        """Return the connection, opening it if necessary. Raises `ClientUnusable`."""
        if self._closed.is_set():
            raise ClientUnusable("This client is closed.")
        if self._connection is None:
            self._connection = self._connect()
        else:
            self._connection.check_owner()
        return self._connection

    async def close(self) -> None:
        """Close the connection. Idempotent. Raises `ClientUnusable` in another process or running event loop."""
        connection = self._connection
        if connection is not None and not connection.is_orphaned:
            connection.check_owner()
            self._closed.set()
            await connection.channel.close()
        self._closed.set()

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        is_idempotent: bool = True,
        timeout_seconds: float | EllipsisType | None = ...,
        metadata: GivenMetadata = (),
        call_id: str = "",
    ) -> Response:
        """Return the response to a request. Raises a `BookstoreError`, and `ValueError` for invalid options."""
        seconds = self._timeout_seconds if timeout_seconds is ... else checked_timeout(timeout_seconds)
        deadline = time.monotonic() + seconds
        given = checked_metadata(metadata) if metadata else ()
        if call_id:
            given += checked_call_id(call_id)
        try:
            return await self._retry(method, request, is_idempotent=is_idempotent, deadline=deadline, given=given)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed.is_set() and not (task and task.cancelling()):
                raise ClientUnusable(
                    "This client was closed during the call; the call may have taken effect."
                ) from None
            raise

    async def _retry(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        is_idempotent: bool,
        deadline: float,
        given: Pairs,
    ) -> Response:
        """Attempt a call until it succeeds or must not be retried."""
        attempts = 0
        while True:
            connecting = self.connection().connecting()
            try:
                return await self._attempt(method, request, deadline=deadline, given=given)
            except grpc.aio.AioRpcError as error:
                attempts += 1
                raised = error_from_rpc_error(error)
                if isinstance(raised, DeadlineExceeded) and not raised.reason:
                    if connecting and not connecting.done() and not self._is_connected():
                        raise await self._connection_error() from error
                    if not is_idempotent:
                        raise _deadline_exceeded("The call exceeded its deadline and may have taken effect.") from error
                if raised.request_id or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    self._waits_for_ready = True  # a server exists
                delay = retry_delay_seconds(raised, error.code(), attempts=attempts, is_idempotent=is_idempotent)
                if delay is None or time.monotonic() + delay >= deadline or self._must_fail_fast(attempts):
                    raise raised from error
            await self._sleep(delay)

    async def _attempt(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        deadline: float,
        given: Pairs,
    ) -> Response:
        metadata = self._metadata() + (metadata_of_current_span() or self._trace_context)
        if given:
            keys = {key for key, _ in given}
            metadata = tuple(pair for pair in metadata if pair[0] not in keys) + given
        response = await method(
            request,
            timeout=remaining_seconds(deadline),
            metadata=metadata,
            wait_for_ready=self._waits_for_ready,
        )
        self._waits_for_ready = True
        return response

    async def _connection_error(self) -> BookstoreError:
        """Return why no connection could be made. gRPC reports the cause only to a call that does not wait for one.

        That call is a health check, because it may reach the server after all.
        """
        connection = self.connection()
        if connection.state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            request = health_pb2.HealthCheckRequest()
            try:
                await connection.check_health(request, timeout=_PROBE_SECONDS, wait_for_ready=False)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return error_from_rpc_error(error)
        return _deadline_exceeded("Could not connect.")

    def _must_fail_fast(self, attempts: int) -> bool:
        """Return whether to stop retrying because no server is reachable and the caller does not want to wait."""
        if self._waits_for_ready:
            return False
        return attempts >= ATTEMPTS_MAX or self.connection().state is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def _is_connected(self) -> bool:
        return self.connection().state is grpc.ChannelConnectivity.READY

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up when the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()


def _deadline_exceeded(message: str) -> DeadlineExceeded:
    error = DeadlineExceeded(message)
    error.reason = ""  # not reported by the service
    return error
