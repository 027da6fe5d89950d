"""The body of a request: read after its call has passed the checks, and bounded in size."""

import asyncio

from bookstore_grpc.calls.context import CallEnded
from bookstore_grpc.errors import RequestTooLarge
from bookstore_grpc.gateway.context import HttpContext
from bookstore_grpc.net.asgi import Receive

# For how long the rest of a rejected request's body is read. Closing the connection earlier could lose the response.
_REST_SECONDS = 1


class Body:
    """The body of one request."""

    def __init__(self, context: HttpContext, receive: Receive, *, max_bytes: int) -> None:
        self._context = context
        self._receive = receive
        self._max_bytes = max_bytes
        length = context.header("content-length") or ""
        self._length = int(length) if length.isdecimal() else 0
        self.is_announced = self._length > 0 or bool(context.header("transfer-encoding"))
        self._has_more = self.is_announced

    async def read(self) -> bytes:
        """Return the whole body. Raises `RequestTooLarge`, and `CallEnded` if the client has disconnected."""
        if self._length > self._max_bytes:
            raise RequestTooLarge(self._max_bytes)
        parts: list[bytes] = []
        size = 0
        while self._has_more:
            part = await self._next()
            if part is None:
                raise CallEnded("CANCELLED")
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise RequestTooLarge(self._max_bytes)
        return b"".join(parts)

    async def finish(self) -> bool:
        """Read and discard the rest of the body for up to one second. Returns whether it was completely received."""
        if self._context.header("expect"):
            return not self._has_more
        try:
            async with asyncio.timeout(_REST_SECONDS):
                while self._has_more:
                    await self._next()
        except TimeoutError:
            return False
        return not self._has_more

    async def _next(self) -> bytes | None:
        """Return the next part, or None if the client has disconnected."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._has_more = False
            return None
        self._has_more = message.get("more_body", False)
        return bytes(message.get("body", b""))
