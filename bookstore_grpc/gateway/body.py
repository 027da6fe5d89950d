"""The body of a request: read when its call has passed the gates, and no longer than it may be."""

import asyncio

import grpc

from bookstore_grpc.errors import RequestTooLarge
from bookstore_grpc.gateway.context import HttpContext
from bookstore_grpc.net.asgi import Receive

# What is left of a refused request's body is waited for: a connection that is cut amidst it can lose the answer.
_REST_SECONDS = 1


class Body:
    """What a request brings with it."""

    def __init__(self, context: HttpContext, receive: Receive, *, max_bytes: int) -> None:
        self._context = context
        self._receive = receive
        self._max_bytes = max_bytes
        length = context.header("content-length") or ""
        self._length = int(length) if length.isdecimal() else 0
        self.is_announced = self._length > 0 or bool(context.header("transfer-encoding"))
        self._has_more = self.is_announced

    async def read(self) -> bytes:
        """Answer all of it. Raises `RequestTooLarge`, and aborts the call of a caller who has gone."""
        if self._length > self._max_bytes:
            raise RequestTooLarge(self._max_bytes)
        parts: list[bytes] = []
        size = 0
        while self._has_more:
            part = await self._next()
            if part is None:
                await self._context.abort(grpc.StatusCode.CANCELLED, "The caller has gone.")
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise RequestTooLarge(self._max_bytes)
        return b"".join(parts)

    async def finish(self) -> bool:
        """Pass over what has not been read, if it comes soon, and answer whether nothing is left."""
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
        """Answer the next part, or None where the caller has gone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._has_more = False
            return None
        self._has_more = message.get("more_body", False)
        return bytes(message.get("body", b""))
