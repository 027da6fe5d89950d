"""The JSON API: every HTTP request becomes a call, and goes through the guard that calls of gRPC go through.

What is no call of the service, by its path or its verb, passes the guard too: whoever is not known learns nothing, and
the operator learns of it.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from bookstore_grpc.calls.call import UNKNOWN_METHOD, Call
from bookstore_grpc.errors import (
    HostUnknown,
    MalformedMessage,
    MediaTypeUnsupported,
    MethodUnknown,
    VerbNotAllowed,
    quoted,
)
from bookstore_grpc.gateway.bindings import Binding, Route, Routes, bindings, location_of_new
from bookstore_grpc.gateway.body import Body
from bookstore_grpc.gateway.context import HttpContext
from bookstore_grpc.gateway.requests import RequestDecoder
from bookstore_grpc.gateway.responses import Answer, AnswerEncoder, refusal
from bookstore_grpc.metadata import REQUEST_ID_KEY
from bookstore_grpc.net.address import is_loopback
from bookstore_grpc.net.asgi import Receive, Scope, Send

Guard = Callable[[str, Any], AbstractAsyncContextManager[Call]]


class _Endpoint:
    """One binding, and what it calls."""

    def __init__(self, servicer: Any, binding: Binding, *, location: Binding | None) -> None:
        self.method = binding.call
        self.behaviour: Callable[[Any, Any], Awaitable[Any]] = getattr(servicer, binding.method.name)
        self.decoder = RequestDecoder(binding)
        self.encoder = AnswerEncoder(binding, location=location)


class JsonApi:
    """An ASGI application that answers the calls of a service as its `google.api.http` options say.

    `guard` surrounds a call of a method, given its context (`CallInterceptor.guard`). With `hosts` only requests to
    these names, and to the loopback's, are answered.
    """

    def __init__(
        self,
        servicer: Any,
        service: ServiceDescriptor,
        *,
        guard: Guard,
        max_request_bytes: int,
        hosts: Collection[str] | None = None,
    ) -> None:
        found = bindings(service)
        self._routes = Routes(found)
        self._endpoints = {
            binding: _Endpoint(servicer, binding, location=location_of_new(binding, found)) for binding in found
        }
        self._guard = guard
        self._max_request_bytes = max_request_bytes
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        context = HttpContext(scope)
        body = Body(context, receive, max_bytes=self._max_request_bytes)
        route = self._routes.find(context.path)
        binding = route.bindings.get(context.verb) if route else None
        endpoint = self._endpoints[binding] if binding else None
        answer = None
        with context.ended_with_caller():
            try:
                async with self._guard(endpoint.method if endpoint else UNKNOWN_METHOD, context) as call:
                    self._check_host(context)
                    if route is None or endpoint is None:
                        raise _unknown(context, route)
                    answer = await self._answer(endpoint, route.values, context, body=body, call=call)
            except grpc.aio.AbortError:
                answer = refusal(context.code(), context.status)
                if answer.status == 405 and route:
                    answer = answer.with_header("allow", ", ".join(_verbs(route)))
        if answer is None:
            return  # to nobody
        answer = answer.with_header(REQUEST_ID_KEY, context.request_id)
        if not await body.finish():
            answer = answer.with_header("connection", "close")
        await answer.send(send)

    async def _answer(
        self, endpoint: _Endpoint, path_values: Sequence[str], context: HttpContext, *, body: Body, call: Call
    ) -> Answer:
        data = b""
        # A page of another origin can send a POST unasked, with a body or without, but not with this type.
        if (endpoint.decoder.takes_body or context.verb == "POST") and not context.is_json:
            raise MediaTypeUnsupported
        if endpoint.decoder.takes_body:
            data = await body.read()
            call.request_bytes = len(data)
        elif body.is_announced:
            raise MalformedMessage(endpoint.method, "it has a body, where path and query say all")
        request = endpoint.decoder.decode(
            path_values=path_values, query=context.query, if_match=context.header("if-match"), body=data
        )
        response = await endpoint.behaviour(request, context)
        answer = endpoint.encoder.encode(response, if_none_match=context.header("if-none-match"))
        call.response_bytes = len(answer.body)
        return answer

    def _check_host(self, context: HttpContext) -> None:
        if self._hosts is None:
            return
        host = _host_name(context.header("host") or "")
        if not (is_loopback(host) or host in self._hosts):
            raise HostUnknown(
                f"This server does not go by the name {quoted(host)}; its operator can let it, with --http-hosts."
            )


def _unknown(context: HttpContext, route: Route | None) -> MethodUnknown:
    path = quoted(context.path)
    if route is None:
        return MethodUnknown(f"There is nothing at {path}; /openapi.json lists what there is.")
    return VerbNotAllowed(f"{context.verb} is not for {path}, which takes {', '.join(_verbs(route))}.")


def _verbs(route: Route) -> list[str]:
    return sorted({*route.bindings, "HEAD"} if "GET" in route.bindings else route.bindings)


def _host_name(host: str) -> str:
    """Answer the name in a Host header, without the port and the brackets of an IPv6 address."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).strip("[]").lower()
