"""The operations as calls of our JSON API, if they are compared with the tutorial's."""

import json
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from benchmarks.http_calls import HttpCalls
from benchmarks.operations import Operation

_STEPS = 1_000


class JsonCalls(HttpCalls):
    """The calls of our server over HTTP. Pages use tokens, and updates send the changed fields."""

    _books_path = "/v1/books"
    _update_verb = "PATCH"
    # One time in a thousand omits its last three digits; tokens and the ids of a page differ in length.
    _allowance_bytes = 8

    def _positions(self, operation: Operation) -> list[int]:
        known = list(self._tokens)
        return [max(position for position in known if position <= wanted) for wanted in super()._positions(operation)]

    def _page_path(self, operation: Operation, position: int) -> str:
        return self._path(operation, pageToken=self._tokens[position])

    def _author_path(self, operation: Operation, author: str) -> str:
        return self._path(operation, filter=f'author = "{author}"')

    def _path(self, operation: Operation, **parameters: str) -> str:
        return f"{self._books_path}?{urlencode({'pageSize': operation.page_size, **parameters})}"

    def _books(self, page: Any) -> Any:
        return page["books"]

    def _renaming(self, name: str) -> bytes:
        return json.dumps({"name": name}).encode()

    @cached_property
    def _tokens(self) -> dict[int, str]:
        """Page through the catalogue in a thousand steps, and return the tokens by the number of books before each."""
        step = self._size // _STEPS
        tokens = {0: ""}
        for position in range(step, self._size, step):
            page, _ = self._call("GET", f"{self._books_path}?pageSize={step}&pageToken={tokens[position - step]}")
            tokens[position] = page["nextPageToken"]
        return tokens
