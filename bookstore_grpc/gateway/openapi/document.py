"""The OpenAPI 3.1 document of the JSON API, derived from the same bindings as the API and from the contract's comments.

The requests, responses and errors of an RPC are documented in the contract; only what HTTP adds to all is here.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from typing import Any

import orjson
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import status_pb2

from bookstore_grpc.auth.authentication import SCOPES_BY_METHOD
from bookstore_grpc.errors import (
    CallInterrupted,
    DatabaseUnavailable,
    DeadlineExceeded,
    HostUnknown,
    InternalError,
    InvalidRequest,
    MalformedMessage,
    MediaTypeUnsupported,
    RequestTooLarge,
    ResourceExhausted,
    ScopeMissing,
    ServerDraining,
    TokenInvalid,
    TokenMissing,
)
from bookstore_grpc.gateway.bindings import Binding, bindings, location_of_new
from bookstore_grpc.gateway.event_stream import KEEP_ALIVE_SECONDS, MEDIA_TYPE
from bookstore_grpc.gateway.openapi.comments import Comments, comments_of_contract
from bookstore_grpc.gateway.openapi.field_details import FAILURE_DETAILS, FIELD_DETAILS
from bookstore_grpc.gateway.openapi.schemas import Schemas, is_required
from bookstore_grpc.gateway.requests import etag_path, field_path, is_mask, is_resumable, query_parameters
from bookstore_grpc.gateway.responses import STATUSES, STATUSES_BY_REASON
from bookstore_grpc.limits import HTTP_HEAD_MAX_BYTES, REQUEST_ID_MAX_CHARACTERS
from bookstore_grpc.service.servicer import BOOK_SERVICE

_Json = dict[str, Any]

_TITLE = "Bookstore"
_VERBS = ("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE")  # OpenAPI has no others
_PARAMETER = re.compile(r"\{.*?\}")
_REASON = re.compile("`([A-Z_]+)`")
_WILDCARD = re.compile(r"\*\*?")
_DESCRIPTION = """\
This is the same service as over gRPC, called as the `google.api.http` options of its contract say, in
[JSON by the rules of proto3](https://protobuf.dev/programming-guides/json/):

* Responses spell fields in `lowerCamelCase`; requests may spell them as the contract does as well.
* A field that has its default (empty, zero) is left out of a response, unless it is `optional`, as `releaseYear` is.
  64-bit integers are strings.
* Unknown fields and parameters are rejected, with all other violations of a request in one response.
* A failure of a call is a `google.rpc.Status`. Programs look at the `reason` of its `ErrorInfo`; its `RequestInfo` has
  the id of the call. A malformed HTTP request is 400, and one with too long headers 431, both without a body.
* The etag of a book is also its `ETag`. `If-Match` makes a change conditional, as `etag` does (optimistic concurrency):
  a mismatch is 409 `ETAG_MISMATCH`.
* With `If-None-Match` the response for an unchanged book is 304 without a body.

<details><summary>What the contract says of every RPC, in terms of gRPC</summary>

{contract}

</details>
"""

# What the events of a stream are, in addition to the message that is the data of each.
_EVENTS = (
    "[Server-Sent Events](https://html.spec.whatwg.org/multipage/server-sent-events.html). The `data` of each is this "
    "message as JSON in one line, and its `id` is the `resumeToken`, if the message has one. An event named `status` "
    "has a `google.rpc.Status`, as the body of an error response, and ends the stream. After "
    f"{KEEP_ALIVE_SECONDS} seconds without an event a comment is sent."
)

_HEADERS: Mapping[str, _Json] = {
    "ETag": {"description": "Identifies this state of the resource.", "schema": {"type": "string"}},
    "Location": {"description": "Where the new resource is.", "schema": {"type": "string", "format": "uri-reference"}},
    "Retry-After": {"description": "When to try again, in seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string", "const": "Bearer"}},
    "X-Request-Id": {
        "description": "Identifies the call, also in the server's log: the id that was sent, or a generated one.",
        "schema": {"type": "string"},
    },
}
_HEADERS_BY_STATUS: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
_PARAMETERS: Mapping[str, _Json] = {
    "If-Match": {
        "description": "An etag in double quotes: the call is made only if the resource is still in that state.",
        "schema": {"type": "string"},
    },
    "If-None-Match": {
        "description": "Etags in double quotes: the response is 304 while the resource is in one of these states.",
        "schema": {"type": "string"},
    },
    "Last-Event-ID": {
        "description": "The `id` of the last event of an earlier response: the stream continues after it. It is the "
        "`resumeToken`, and has precedence over the query's. A browser's EventSource sends it when it connects again.",
        "schema": {"type": "string"},
    },
    "X-Request-Id": {
        "description": "Identifies the call, also in the server's log: letters, digits and `._-`, at most "
        f"{REQUEST_ID_MAX_CHARACTERS} of them.",
        "schema": {"type": "string"},
    },
}
# The failures that any call can have, besides those in its RPC's comment, by status.
_FAILURES: tuple[tuple[int, str], ...] = (
    (400, f"`{InvalidRequest.reason}`: a field or a parameter is unknown, or its value is of another type."),
    (400, f"`{MalformedMessage.reason}`: the body is not JSON, or there is one where none is expected."),
    (
        401,
        f"`{TokenMissing.reason}`, `{TokenInvalid.reason}`: the server requires a valid token.",
    ),
    (403, f"`{ScopeMissing.reason}`: the caller lacks the scope that the call needs."),
    (403, f"`{HostUnknown.reason}`: the request was meant for another host than this server."),
    (429, f"`{ResourceExhausted.reason}`: a limit of calls is reached, which `limit` in the metadata names."),
    (500, f"`{InternalError.reason}`: a defect of the service. Its log has the cause under the request id."),
    (
        503,
        f"`{DatabaseUnavailable.reason}`, `{ServerDraining.reason}`, `{CallInterrupted.reason}`: try again later.",
    ),
    (504, f"`{DeadlineExceeded.reason}`: the call took longer than the server allows."),
)
_FAILURES_OF_BODIES: tuple[tuple[int, str], ...] = (
    (413, f"`{RequestTooLarge.reason}`: the body is longer than the server accepts, 8 MiB unless set otherwise."),
    (415, f"`{MediaTypeUnsupported.reason}`: the body is not declared as `application/json`."),
)


@cache
def openapi_document(*, needs_token: bool) -> bytes:
    """Return the document as JSON, for a server with or without authentication. It is made once."""
    return orjson.dumps(document_of(BOOK_SERVICE, comments_of_contract(), needs_token=needs_token))


def document_of(service: ServiceDescriptor, comments: Comments, *, needs_token: bool) -> _Json:
    """Return the document of a service."""
    return _Document(service, comments, needs_token=needs_token).document


class _Document:
    def __init__(self, service: ServiceDescriptor, comments: Comments, *, needs_token: bool) -> None:
        self._bindings = bindings(service)
        self._comments = comments
        self._needs_token = needs_token
        self._schemas = Schemas(service, comments, details=FIELD_DETAILS)
        self._failure = self._schemas.of_response(_descriptor(status_pb2.Status))
        for detail in FAILURE_DETAILS:
            self._schemas.of_response(_descriptor(detail))
        of_file, of_service = comments.of(""), comments.of(service.full_name)
        self.document: _Json = {
            "openapi": "3.1.0",
            "info": {
                "title": _TITLE,
                "version": metadata.version("bookstore-grpc"),
                "summary": of_file.summary,
                "description": _DESCRIPTION.format(contract=of_file.description),
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "tags": [{"name": service.name, "description": of_service.description}],
            "paths": self._paths(),
            "components": {
                "schemas": dict(sorted(self._schemas.components.items())),
                "headers": _HEADERS,
                "parameters": {
                    name: {"name": name, "in": "header", **parameter} for name, parameter in _PARAMETERS.items()
                },
            },
        }
        if needs_token:
            self.document["components"]["securitySchemes"] = {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token (JWT) with the scope that the operation names.",
                }
            }

    def _paths(self) -> _Json:
        paths: dict[str, _Json] = {}
        # In OpenAPI two paths that differ only in the names of their parameters are the same.
        firsts: dict[str, tuple[str, list[_Json]]] = {}
        for binding in self._bindings:
            if binding.verb not in _VERBS:
                continue
            path, fields = _path(binding)
            parameters = [self._parameter(binding, field, "path", name) for name, field in fields.items()]
            path, parameters = firsts.setdefault(_PARAMETER.sub("{}", path), (path, parameters))
            paths.setdefault(path, {})[binding.verb.lower()] = self._operation(binding, parameters)
        return paths

    def _operation(self, binding: Binding, path_parameters: list[_Json]) -> _Json:
        method = binding.method
        comment = self._comments.of(method.full_name)
        is_first = binding == next(other for other in self._bindings if other.method is method)
        operation: _Json = {
            "operationId": method.name if is_first else f"{method.name}By{binding.verb.capitalize()}",
            "tags": [method.containing_service.name],
            "summary": comment.summary.removesuffix("."),
            "description": comment.description,
            "parameters": [*path_parameters, *self._parameters(binding)],
            "responses": self._responses(binding),
        }
        if binding.body:
            operation["requestBody"] = self._body(binding)
        if self._needs_token:
            scope = SCOPES_BY_METHOD.get(binding.call)
            operation["security"] = [{"token": [scope] if scope else []}]
            if scope:
                operation["description"] += f"\n\nNeeds a token with the scope `{scope}`."
        return operation

    def _parameters(self, binding: Binding) -> Iterator[_Json]:
        for path in query_parameters(binding):
            if binding.verb != "PUT" or not is_mask(path[-1]):  # which replaces everything
                name = ".".join(field.json_name for field in path)
                yield self._parameter(binding, ".".join(field.name for field in path), "query", name)
        if binding.verb != "POST" and etag_path(binding):
            yield _parameter_reference("If-Match")
        if _returns_etag(binding) and binding.verb == "GET":
            yield _parameter_reference("If-None-Match")
        if is_resumable(binding):
            yield _parameter_reference("Last-Event-ID")
        yield _parameter_reference("X-Request-Id")

    def _parameter(self, binding: Binding, field_name: str, place: str, name: str) -> _Json:
        field = field_path(binding.method.input_type, field_name)[-1]
        schema = self._schemas.of_parameter(field)
        parameter: _Json = {"name": name, "in": place, "description": schema.pop("description", "")}
        if place == "path" or is_required(field):
            parameter["required"] = True
            if examples := schema.pop("examples", None):
                parameter["example"] = examples[0]
        return parameter | {"schema": schema}

    def _body(self, binding: Binding) -> _Json:
        message: Any = binding.method.input_type
        description = ""
        if binding.body != "*":
            field = message.fields_by_name[binding.body]
            message, description = field.message_type, self._comments.of(field.full_name).description
        content: _Json = {"schema": self._schemas.of_body(message, is_partial=binding.verb == "PATCH")}
        if example := self._schemas.example(message):
            content["example"] = example
        return {"description": description, "required": True, "content": {"application/json": content}}

    def _responses(self, binding: Binding) -> _Json:
        is_create = location_of_new(binding, self._bindings) is not None
        headers = ["ETag"] if _returns_etag(binding) else []
        message = binding.method.output_type
        description = self._comments.of(message.full_name).description or "The call has succeeded."
        media_type = MEDIA_TYPE if binding.is_stream else "application/json"
        success = {
            "description": f"{description}\n\n{_EVENTS}" if binding.is_stream else description,
            "headers": _header_references(*headers, *(["Location"] if is_create else [])),
            "content": {media_type: {"schema": self._schemas.of_response(message)}},
        }
        responses: dict[int, _Json] = {201 if is_create else 200: success}
        if headers and binding.verb == "GET":
            unchanged = "The resource is still in a state that `If-None-Match` names."
            responses[304] = {"description": unchanged, "headers": _header_references(*headers)}
        kibibytes = HTTP_HEAD_MAX_BYTES // 1024
        responses[431] = {"description": f"The path, the query and the headers are longer than {kibibytes} KiB."}
        for status, lines in self._failures(binding).items():
            responses[status] = {
                "description": "\n".join(f"* {line}" for line in lines),
                "headers": _header_references(*_HEADERS_BY_STATUS.get(status, ())),
                "content": {"application/json": {"schema": self._failure}},
            }
        return {str(status): response for status, response in sorted(responses.items())}

    def _failures(self, binding: Binding) -> Mapping[int, list[str]]:
        failures: defaultdict[int, list[str]] = defaultdict(list)
        for code, line in self._comments.of(binding.method.full_name).errors:
            reason = _REASON.match(line)
            failures[STATUSES_BY_REASON.get(reason[1] if reason else "", STATUSES[code])].append(line)
        for status, line in (*_FAILURES, *(_FAILURES_OF_BODIES if binding.body else ())):
            failures[status].append(line)
        return failures


def _path(binding: Binding) -> tuple[str, Mapping[str, str]]:
    """Return a path as OpenAPI writes it, and the fields of its parameters.

    A variable with slashes becomes several, one for each wildcard.
    """
    fields: dict[str, str] = {}

    def parameter(field: str) -> str:
        name = field if field not in fields else f"{field}{len(fields) + 1}"
        fields[name] = field
        return f"{{{name}}}"

    path = binding.rewritten(lambda field, pattern: _WILDCARD.sub(lambda _: parameter(field), pattern))
    return path, fields


def _descriptor(message: type[Message]) -> Any:
    return message.DESCRIPTOR


def _returns_etag(binding: Binding) -> bool:
    return "etag" in binding.method.output_type.fields_by_name


def _header_references(*names: str) -> _Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, "X-Request-Id")}


def _parameter_reference(name: str) -> _Json:
    return {"$ref": f"#/components/parameters/{name}"}
