"""Which HTTP requests stand for which RPCs: the `google.api.http` options of a service, as its descriptors have them.

The rules are those of google/api/http.proto. What no RPC here needs is refused when the bindings are read, and not
passed over: `response_body`, and bindings of RPCs that stream.
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
    """One way to make a call: a verb and a path, and which field of the request, if any, or "*", is the body."""

    method: MethodDescriptor
    verb: str
    template: str
    body: str

    @property
    def call(self) -> str:
        """The name that the call has in gRPC, such as `/bookstore.v1.BookService/GetBook`."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields of the request that the path has, such as `book.id`."""
        return tuple(name for name, _ in _VARIABLE.findall(self.template))

    def rewritten(self, variable: Callable[[str, str], str]) -> str:
        """Answer the template with other words for its variables, each given as its field and its pattern."""
        return _VARIABLE.sub(lambda found: variable(found[1], found[2] or "*"), self.template)

    def path(self, values: Mapping[str, str]) -> str:
        """Answer the path with these values of its fields, in percent-encoding."""
        return self.rewritten(lambda field, _pattern: quote(values[field]))


class Route(NamedTuple):
    """What can be done at one path, by verb, and the texts that stand there for variables."""

    bindings: Mapping[str, Binding]
    values: tuple[str, ...] = ()


class Routes:
    """Finds what a path stands for. Bindings may name the variables of one path differently.

    Raises `ValueError` where two bindings stand for the same requests.
    """

    def __init__(self, bindings: tuple[Binding, ...]) -> None:
        by_path: dict[str, dict[str, Binding]] = {}
        for binding in bindings:
            verbs = by_path.setdefault(binding.rewritten(_unnamed), {})
            if binding.verb in verbs:
                raise ValueError(f"{binding.call}: {binding.verb} {binding.template} is another binding's already.")
            verbs[binding.verb] = binding
        self._fixed = {path: Route(found) for path, found in by_path.items() if not _VARIABLE.search(path)}
        # What says more of a path goes first: a variable would take in the `:archive` that another ends with.
        varying = sorted((path for path in by_path if path not in self._fixed), key=_literal_length, reverse=True)
        self._varying = [(_pattern(path), by_path[path]) for path in varying]

    def find(self, path: str) -> Route | None:
        """Answer the route of a path, or None where there is none such."""
        if route := self._fixed.get(path):
            return route
        for pattern, bindings in self._varying:
            if found := pattern.fullmatch(path):
                return Route(bindings, found.groups())
        return None


def bindings(service: ServiceDescriptor) -> tuple[Binding, ...]:
    """Answer the bindings of a service, in the order of its file. Raises `ValueError` for what is not understood."""
    return tuple(binding for method in service.methods for binding in _bindings_of_method(method))


def location_of_new(binding: Binding, all_bindings: Collection[Binding]) -> Binding | None:
    """Answer how the new resource of a create (AIP-133) can be got; None for what is no create."""
    name = binding.method.name
    if binding.verb != "POST" or not name.startswith("Create"):
        return None
    getter = f"Get{name.removeprefix('Create')}"
    return next((other for other in all_bindings if other.method.name == getter), None)


def _bindings_of_method(method: MethodDescriptor) -> Iterator[Binding]:
    rule: HttpRule = method.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]  # its stubs do not know what extends what
    for each in (rule, *rule.additional_bindings):
        kind = each.WhichOneof("pattern")
        if kind is None:
            continue  # an RPC for gRPC alone
        if each.response_body or method.client_streaming or method.server_streaming:
            raise ValueError(f"{method.full_name}: neither response_body nor a stream has a form in JSON here.")
        verb, path = (each.custom.kind, each.custom.path) if kind == "custom" else (kind.upper(), getattr(each, kind))
        yield Binding(method, verb, path, each.body)


def _literal_length(path: str) -> int:
    return len(_VARIABLE.sub(lambda variable: variable[2].replace("*", ""), path))


def _unnamed(_field: str, pattern: str) -> str:
    return f"{{_={pattern}}}"


def _pattern(template: str) -> re.Pattern[str]:
    """Make what recognizes the paths of a template; each variable is a group."""
    parts: list[str] = []
    end = 0
    for variable in _VARIABLE.finditer(template):
        parts += [_segments(template[end : variable.start()]), f"({_segments(variable[2])})"]
        end = variable.end()
    return re.compile("".join([*parts, _segments(template[end:])]))


def _segments(template: str) -> str:
    return "".join(_WILDCARDS.get(part) or re.escape(part) for part in re.split(r"(\*\*?)", template))
