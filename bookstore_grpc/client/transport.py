"""Sends the client's calls: one channel, and for unary calls a deadline and retries within it."""

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
        if self.is_closed:
            raise ClientUnusable("This client is closed.")
        if self._connection is None:
            self._connection = self._connect()
        else:
            self._connection.check_owner()
        return self._connection

    @property
    def is_closed(self) -> bool:
        """Whether the client has been closed."""
        return self._closed.is_set()

    @property
    def is_orphaned(self) -> bool:
        """Whether the event loop is closed, which has ended all calls."""
        return self._connection is not None and self._connection.is_orphaned

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
        deadline = time.monotonic() + self.timeout(timeout_seconds)
        given = given_metadata(metadata, call_id)
        try:
            return await self._retry(method, request, is_idempotent=is_idempotent, deadline=deadline, given=given)
        except asyncio.CancelledError:
            if self.is_closed and not is_being_cancelled():
                raise ClientUnusable(
                    "This client was closed during the call; the call may have taken effect."
                ) from None
            raise

    def timeout(self, timeout_seconds: float | EllipsisType | None) -> float:
        """Return the timeout of a call in seconds: the client's own, unless another is given."""
        return self._timeout_seconds if timeout_seconds is ... else checked_timeout(timeout_seconds)

    def open_stream(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[Request, Response]",
        request: Request,
        *,
        given: Pairs,
        wait_for_ready: bool | None,
    ) -> "grpc.aio.UnaryStreamCall[Request, Response]":
        """Start a call without a deadline whose responses are read one by one. None waits as other calls do."""
        return method(
            request,
            metadata=self._call_metadata(given),
            wait_for_ready=self._waits_for_ready if wait_for_ready is None else wait_for_ready,
        )

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
                        raise await self.connection_error() from error
                    if not is_idempotent:
                        raise deadline_exceeded("The call exceeded its deadline and may have taken effect.") from error
                self.note_failure(raised, error.code())
                delay = retry_delay_seconds(raised, error.code(), attempts=attempts, is_idempotent=is_idempotent)
                if delay is None or time.monotonic() + delay >= deadline or self.must_fail_fast(attempts):
                    raise raised from error
            await self.sleep(delay)

    async def _attempt(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        deadline: float,
        given: Pairs,
    ) -> Response:
        response = await method(
            request,
            timeout=remaining_seconds(deadline),
            metadata=self._call_metadata(given),
            wait_for_ready=self._waits_for_ready,
        )
        self.note_response()
        return response

    def _call_metadata(self, given: Pairs) -> Pairs:
        """Return the current token, the trace context, and the given metadata, which replaces others of its keys."""
        metadata = self._metadata() + (metadata_of_current_span() or self._trace_context)
        keys = {key for key, _ in given}
        return (*(pair for pair in metadata if pair[0] not in keys), *given)

    async def connection_error(self) -> BookstoreError:
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
        return deadline_exceeded("Could not connect.")

    def note_response(self) -> None:
        """Note that a server responded. Calls wait for one from now on."""
        self._waits_for_ready = True

    def note_failure(self, error: BookstoreError, code: grpc.StatusCode) -> None:
        """Note whether a failed call shows that a server exists."""
        if error.request_id or code is not grpc.StatusCode.UNAVAILABLE:
            self._waits_for_ready = True

    def must_fail_fast(self, attempts: int) -> bool:
        """Return whether to stop retrying because no server is reachable and the caller does not want to wait."""
        if self._waits_for_ready:
            return False
        return attempts >= ATTEMPTS_MAX or self.connection().state is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def _is_connected(self) -> bool:
        return self.connection().state is grpc.ChannelConnectivity.READY

    async def sleep(self, seconds: float) -> None:
        """Sleep, but wake up when the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()


def given_metadata(metadata: GivenMetadata, call_id: str) -> Pairs:
    """Return the metadata of a call's options. Raises `ValueError` for what cannot be sent."""
    given = checked_metadata(metadata) if metadata else ()
    return given + checked_call_id(call_id) if call_id else given


def is_being_cancelled() -> bool:
    """Return whether the running task is being cancelled, and not only a call that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def deadline_exceeded(message: str) -> DeadlineExceeded:
    """Return the error of a deadline that the client itself has enforced."""
    error = DeadlineExceeded(message)
    error.reason = ""  # not reported by the service
    return error
