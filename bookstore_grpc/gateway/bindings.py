"""Bindings of HTTP requests to RPCs for transcoding, from the `google.api.http` options in a service's descriptors.

The rules are those of google/api/http.proto. Options that no RPC here needs are an error instead of being ignored:
`response_body`, and bindings of RPCs whose requests are a stream.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

_VARIABLE = re.compile(r"\{([^=}]+)(?:=([^}]+))?\}")
_WILDCARDS = {"*": "[^/]+", "**": ".+"}


class Binding(NamedTuple):
    """One HTTP form of an RPC. `body` is the request field that the HTTP body holds: "*" for all, "" for none."""

    method: MethodDescriptor
    verb: str
    template: str
    body: str

    @property
    def call(self) -> str:
        """The full name of the gRPC method, such as `/bookstore.v1.BookService/GetBook`."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def is_stream(self) -> bool:
        """Whether the RPC returns a stream of responses."""
        return self.method.server_streaming

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields of the request that are in the path, such as `book.id`."""
        return tuple(name for name, _ in _VARIABLE.findall(self.template))

    def rewritten(self, variable: Callable[[str, str], str]) -> str:
        """Return the template with each variable replaced by `variable(field, pattern)`."""
        return _VARIABLE.sub(lambda found: variable(found[1], found[2] or "*"), self.template)

    def path(self, values: Mapping[str, str]) -> str:
        """Return the path with these values of its fields, which are percent-encoded."""
        return self.rewritten(lambda field, _pattern: quote(values[field]))


class Route(NamedTuple):
    """The bindings of a path, by verb, and the values of its variables."""

    bindings: Mapping[str, Binding]
    values: tuple[str, ...] = ()


class Routes:
    """Finds the route of a path. Bindings of the same path may name its variables differently.

    Raises `ValueError` if two bindings have the same verb and path.
    """

    def __init__(self, bindings: tuple[Binding, ...]) -> None:
        by_path: dict[str, dict[str, Binding]] = {}
        for binding in bindings:
            verbs = by_path.setdefault(binding.rewritten(_unnamed), {})
            if binding.verb in verbs:
                raise ValueError(f"{binding.call}: another binding already has {binding.verb} {binding.template}.")
            verbs[binding.verb] = binding
        self._fixed = {path: Route(found) for path, found in by_path.items() if not _VARIABLE.search(path)}
        # The most specific path first, because a variable would also match the `:archive` at the end of another path.
        varying = sorted((path for path in by_path if path not in self._fixed), key=_literal_length, reverse=True)
        self._varying = [(_pattern(path), by_path[path]) for path in varying]

    def find(self, path: str) -> Route | None:
        """Return the route of a path, or None."""
        if route := self._fixed.get(path):
            return route
        for pattern, bindings in self._varying:
            if found := pattern.fullmatch(path):
                return Route(bindings, found.groups())
        return None


def bindings(service: ServiceDescriptor) -> tuple[Binding, ...]:
    """Return the bindings of a service in the order of its file. Raises `ValueError` for unsupported options."""
    return tuple(binding for method in service.methods for binding in _bindings_of_method(method))


def location_of_new(binding: Binding, all_bindings: Collection[Binding]) -> Binding | None:
    """Return the binding of the Get method for the new resource of a create (AIP-133), or None for other methods."""
    name = binding.method.name
    if binding.verb != "POST" or not name.startswith("Create"):
        return None
    getter = f"Get{name.removeprefix('Create')}"
    return next((other for other in all_bindings if other.method.name == getter), None)


def _bindings_of_method(method: MethodDescriptor) -> Iterator[Binding]:
    rule: HttpRule = method.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]  # the stubs do not know the types of extensions
    for each in (rule, *rule.additional_bindings):
        kind = each.WhichOneof("pattern")
        if kind is None:
            continue  # an RPC without an HTTP form
        if each.response_body or method.client_streaming:
            raise ValueError(f"{method.full_name}: neither response_body nor a stream of requests is supported.")
        verb, path = (each.custom.kind, each.custom.path) if kind == "custom" else (kind.upper(), getattr(each, kind))
        yield Binding(method, verb, path, each.body)


def _literal_length(path: str) -> int:
    return len(_VARIABLE.sub(lambda variable: variable[2].replace("*", ""), path))


def _unnamed(_field: str, pattern: str) -> str:
    return f"{{_={pattern}}}"


def _pattern(template: str) -> re.Pattern[str]:
    """Return a pattern that matches the paths of a template, with a group for each variable."""
    parts: list[str] = []
    end = 0
    for variable in _VARIABLE.finditer(template):
        parts += [_segments(template[end : variable.start()]), f"({_segments(variable[2])})"]
        end = variable.end()
    return re.compile("".join([*parts, _segments(template[end:])]))


def _segments(template: str) -> str:
    return "".join(_WILDCARDS.get(part) or re.escape(part) for part in re.split(r"(\*\*?)", template))
