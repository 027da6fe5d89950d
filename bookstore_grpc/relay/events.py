"""Changes as CloudEvents 1.0, in the two content modes of the NATS protocol binding.

https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md: in structured mode the
payload is the event as JSON, and in binary mode the attributes are headers and the payload is the data.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from bookstore.v1.books_pb2 import BookChange
from google.protobuf.json_format import MessageToDict

EventFormat = Literal["json", "protobuf"]

#: The last token of a message's subject, by the type of its change.
SUBJECT_TOKENS: Mapping[int, str] = {
    number: name.lower() for name, number in BookChange.Type.items() if number != BookChange.TYPE_UNSPECIFIED
}

_CONTENT_TYPE = "Content-Type"
# Printable ASCII without what the binding wants percent-encoded: space, `"` and `%`.
_UNQUOTED = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


class Event(NamedTuple):
    """A message to publish: the last token of its subject, its headers and its payload."""

    subject_token: str
    headers: dict[str, str]
    payload: bytes


def event_from_change(change: BookChange, *, source: str, event_format: EventFormat) -> Event:
    """Return a change as a message for NATS."""
    token = SUBJECT_TOKENS[change.type]
    is_json = event_format == "json"
    attributes = {
        "specversion": "1.0",
        "id": _event_id(change),
        "source": source,
        "type": f"bookstore.v1.book.{token}",
        "subject": f"books/{change.book.id}",
        "time": (change.change_time if change.HasField("change_time") else change.book.update_time).ToJsonString(),
        "datacontenttype": "application/json" if is_json else "application/protobuf",
    }
    if is_json:
        event: dict[str, Any] = {**attributes, "data": MessageToDict(change)}
        payload = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
        return Event(token, {_CONTENT_TYPE: "application/cloudevents+json"}, payload)
    headers = {f"ce-{name}": quote(value, safe=_UNQUOTED) for name, value in attributes.items()}
    return Event(token, headers, change.SerializeToString())


def _event_id(change: BookChange) -> str:
    """Return what identifies the event among those of its source: the number, or a state of an existing book."""
    return str(change.number) if change.number else f"existing/{change.book.id}/{change.book.etag}"
