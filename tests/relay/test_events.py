"""Changes as CloudEvents in both content modes of the NATS binding."""

import json
from urllib.parse import unquote

import pytest
from bookstore.v1.books_pb2 import BookChange

from bookstore_grpc.relay.events import event_from_change
from tests.client.watched_service import DELETED, EXISTING, UPDATED, a_book, a_change


def test_an_event_as_json_has_the_change_of_the_http_api_as_data() -> None:
    change = a_change(7, UPDATED, book=a_book(3, "é"), previous_book=a_book(3))

    event = event_from_change(change, source="/a", event_format="json")

    envelope = json.loads(event.payload)
    data = envelope.pop("data")
    assert event.headers == {"Content-Type": "application/cloudevents+json"}
    assert envelope == {
        "specversion": "1.0",
        "id": "7",
        "source": "/a",
        "type": "bookstore.v1.book.updated",
        "subject": "books/3",
        "time": "2027-01-15T08:00:07Z",
        "datacontenttype": "application/json",
    }
    assert (data["type"], data["number"], data["book"]["name"]) == ("UPDATED", "7", "é")
    assert data["previousBook"]["releaseYear"] == 1903


def test_an_event_as_protobuf_has_its_attributes_in_headers_and_the_change_as_data() -> None:
    change = a_change(7, DELETED)

    event = event_from_change(change, source='/é "1" 100%', event_format="protobuf")

    assert event.headers["ce-source"] == "/%C3%A9%20%221%22%20100%25"
    assert {name: unquote(value) for name, value in event.headers.items()} == {
        "ce-specversion": "1.0",
        "ce-id": "7",
        "ce-source": '/é "1" 100%',
        "ce-type": "bookstore.v1.book.deleted",
        "ce-subject": "books/7",
        "ce-time": "2027-01-15T08:00:07Z",
        "ce-datacontenttype": "application/protobuf",
    }
    assert event.headers["ce-time"] == "2027-01-15T08:00:07Z"
    assert BookChange.FromString(event.payload) == change


def test_states_of_existing_books_have_ids_of_their_own() -> None:
    book, changed = a_book(3), a_book(3)
    book.etag, changed.etag = "a", "b"
    events = [
        json.loads(event_from_change(BookChange(type=EXISTING, book=each), source="/", event_format="json").payload)
        for each in (book, changed)
    ]

    assert [event["id"] for event in events] == ["existing/3/a", "existing/3/b"]
    assert events[0]["time"] == book.update_time.ToJsonString()


@pytest.mark.parametrize("kind", [each for each in BookChange.Type.values() if each])
def test_every_type_of_change_has_a_subject(kind: BookChange.Type.ValueType) -> None:
    event = event_from_change(a_change(1, kind), source="/", event_format="json")

    assert event.subject_token == BookChange.Type.Name(kind).lower()
