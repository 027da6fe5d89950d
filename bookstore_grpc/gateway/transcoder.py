"""Transcoding: runs an HTTP request with JSON as a call, in the same pipeline as the calls over gRPC.

Requests with an unknown path or verb run in the pipeline too, so that unauthenticated callers learn nothing from the
response, and operators see the request.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from bookstore_grpc.calls.call import UNKNOWN_METHOD, Call, new_call
from bookstore_grpc.calls.context import CallEnded
from bookstore_grpc.calls.pipeline import CallPipeline
from bookstore_grpc.errors import (
    BookstoreError,
    InvalidRequest,
    MalformedMessage,
    MediaTypeUnsupported,
    MethodUnknown,
    VerbNotAllowed,
    quoted,
)
from bookstore_grpc.gateway.bindings import Binding, Route, Routes, bindings, location_of_new
from bookstore_grpc.gateway.body import Body
from bookstore_grpc.gateway.context import HttpContext
from bookstore_grpc.gateway.event_stream import KEEP_ALIVE_SECONDS, EventEncoder, EventStream
from bookstore_grpc.gateway.host_check import HostCheck
from bookstore_grpc.gateway.requests import RequestDecoder
from bookstore_grpc.gateway.responses import Response, ResponseEncoder, response_from_error
from bookstore_grpc.limits import JSON_VIOLATIONS_MAX
from bookstore_grpc.metadata import REQUEST_ID_KEY
from bookstore_grpc.net.asgi import Receive, Scope, Send
from bookstore_grpc.service.validation import Violations

# Validates a request by the service's rules. Raises `InvalidRequest` with all violations.
Validate = Callable[[Message], object]


class _Endpoint:
    """One binding, and the method that it calls. The `behaviour` of a stream returns an async generator."""

    def __init__(self, servicer: Any, binding: Binding, *, location: Binding | None) -> None:
        self.method = binding.call
        self.behaviour: Callable[[Any, Any], Any] = getattr(servicer, binding.method.name)
        self.decoder = RequestDecoder(binding)
        self.encoder = ResponseEncoder(binding, location=location)
        self.events = EventEncoder(binding.method) if binding.is_stream else None


class JsonApi:
    """An ASGI application that serves the RPCs of a service by its `google.api.http` options.

    Every request runs in the `pipeline`. With `hosts` only requests to these host names and to the loopback's are
    served. `validate` finds the remaining violations of a request that is already invalid as JSON. Streams without a
    response send a comment every `keep_alive_seconds`.
    """

    def __init__(
        self,
        servicer: Any,
        service: ServiceDescriptor,
        *,
        pipeline: CallPipeline,
        max_request_bytes: int,
        validate: Validate | None = None,
        hosts: Collection[str] | None = None,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        found = bindings(service)
        self._routes = Routes(found)
        self._endpoints = {
            binding: _Endpoint(servicer, binding, location=location_of_new(binding, found)) for binding in found
        }
        self._pipeline = pipeline
        self._max_request_bytes = max_request_bytes
        self._validate = validate
        self._host_check = None if hosts is None else HostCheck(hosts)
        self._keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        context = HttpContext(scope)
        body = Body(context, receive, max_bytes=self._max_request_bytes)
        route = self._routes.find(context.path)
        binding = route.bindings.get(context.verb) if route else None
        endpoint = self._endpoints[binding] if binding else None
        call = new_call(endpoint.method if endpoint else UNKNOWN_METHOD, context)
        # HEAD has no events to stream, so that it is bounded as a unary call is.
        is_stream = endpoint is not None and endpoint.events is not None and not context.is_head
        stream = EventStream(
            send, request_id=call.request_id, keep_alive_seconds=self._keep_alive_seconds, abort=context.abort
        )
        response = None
        with context.ended_with_caller():
            try:
                response = await self._pipeline.run(
                    call,
                    partial(self._handle, context, route, endpoint, body, call, stream=stream),
                    is_stream=is_stream,
                    is_watch=is_stream,
                    is_rejected_by_drain=True,
                )
            except BookstoreError as error:
                response = response_from_error(error, request_id=call.request_id)
                if isinstance(error, VerbNotAllowed) and route:
                    response = response.with_header("allow", ", ".join(_verbs(route)))
            except CallEnded:
                pass
        if stream.is_started:
            await stream.end(error=response.body if response else None)
            return
        if response is None:
            return  # the client has disconnected
        response = response.with_header(REQUEST_ID_KEY, call.request_id)
        if not await body.finish():
            response = response.with_header("connection", "close")
        await response.send(send)

    async def _handle(
        self,
        context: HttpContext,
        route: Route | None,
        endpoint: _Endpoint | None,
        body: Body,
        call: Call,
        *,
        stream: EventStream,
    ) -> Response | None:
        """Return the response of a unary call. Streamed responses are sent here, and None is returned at their end."""
        if self._host_check:
            self._host_check.check(context.header("host"))
        if route is None or endpoint is None:
            raise _unknown(context, route)
        data = b""
        # Pages of other origins can send a POST without a CORS preflight, but not with this content type.
        if (endpoint.decoder.takes_body or context.verb == "POST") and not context.is_json:
            raise MediaTypeUnsupported
        if endpoint.decoder.takes_body:
            data = await body.read()
            call.request_bytes = len(data)
        elif body.is_announced:
            raise MalformedMessage(endpoint.method, "this request must not have a body")
        request = self._decode(endpoint, route.values, context, data)
        if endpoint.events:
            await _send_events(endpoint.behaviour(request, context), context, call, endpoint.events, stream)
            return None
        message = await endpoint.behaviour(request, context)
        response = endpoint.encoder.encode(message, if_none_match=context.header("if-none-match"))
        call.response_bytes = len(response.body)
        return response

    def _decode(self, endpoint: _Endpoint, path_values: Sequence[str], context: HttpContext, data: bytes) -> Message:
        """Return the request. Raises `InvalidRequest` with all its violations.

        The servicer validates the requests that it receives. Requests that are already invalid as JSON are validated
        here instead, so that the caller sees all violations together.
        """
        violations = Violations()
        request = endpoint.decoder.decode(
            path_values=path_values,
            query=context.query,
            if_match=context.header("if-match"),
            last_event_id=context.header("last-event-id"),
            body=data,
            violations=violations,
        )
        # With the maximum number of violations, the rest of the request has not been decoded.
        if self._validate and 0 < len(violations) < JSON_VIOLATIONS_MAX:
            try:
                self._validate(request)
            except InvalidRequest as error:
                violations.add_for_other_fields(error.violations)
        violations.raise_if_any()
        return request


async def _send_events(
    responses: AsyncGenerator[Any, None], context: HttpContext, call: Call, encoder: EventEncoder, stream: EventStream
) -> None:
    """Send each response as an event. For HEAD, send the head as soon as there is a response, and end the responses."""
    async with aclosing(responses):
        if context.is_head:
            await anext(responses, None)
        else:
            context.give_way()  # so that streams, which can be resumed, lock out no other calls
            async with stream.kept_alive():
                async for response in responses:
                    event = encoder.encode(response)
                    await stream.write(event)
                    call.response_bytes += len(event)
        await stream.start()


def _unknown(context: HttpContext, route: Route | None) -> MethodUnknown:
    path = quoted(context.path)
    if route is None:
        return MethodUnknown(f"There is nothing at {path}; /openapi.json lists all paths.")
    return VerbNotAllowed(f"{context.verb} is not allowed for {path}, which takes {', '.join(_verbs(route))}.")


def _verbs(route: Route) -> list[str]:
    return sorted({*route.bindings, "HEAD"} if "GET" in route.bindings else route.bindings)
