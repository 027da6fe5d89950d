"""HTTP requests to messages: path, query, headers and body, each strictly, and none against another."""

from typing import Any
from urllib.parse import quote, urlencode

import orjson
import pytest
from bookstore.v1 import books_pb2
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from bookstore_grpc.errors import InvalidRequest, MalformedMessage
from bookstore_grpc.gateway.bindings import bindings
from bookstore_grpc.gateway.requests import RequestDecoder
from bookstore_grpc.service.servicer import BOOK_SERVICE
from bookstore_grpc.service.validation import Violations
from tests.gateway.shelves import shelf_service

DECODERS = {
    f"{binding.verb} {binding.method.name}": RequestDecoder(binding)
    for service in (BOOK_SERVICE, shelf_service())
    for binding in bindings(service)
}
PATCH, PUT = "PATCH UpdateBook", "PUT UpdateBook"

texts = st.text(max_size=20)


def decode(
    name: str,
    *path_values: str,
    query: str | bytes = b"",
    if_match: str | None = None,
    last_event_id: str | None = None,
    body: Any = b"",
) -> Message:
    violations = Violations()
    request = DECODERS[name].decode(
        path_values=path_values,
        query=query.encode() if isinstance(query, str) else query,
        if_match=if_match,
        last_event_id=last_event_id,
        body=body if isinstance(body, bytes) else orjson.dumps(body),
        violations=violations,
    )
    violations.raise_if_any()
    return request


def violations_of(name: str, *path_values: str, **parts: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        decode(name, *path_values, **parts)
    assert not isinstance(caught.value, MalformedMessage)
    return {violation.field: violation.description for violation in caught.value.violations}


def update(mask: list[str], **book: Any) -> books_pb2.UpdateBookRequest:
    request = books_pb2.UpdateBookRequest(book=books_pb2.Book(**book))
    request.update_mask.paths.extend(mask)
    request.update_mask.SetInParent()
    return request


@given(page_size=st.integers(-(2**31), 2**31 - 1), token=texts, filter=texts, order=texts, keeps_names=st.booleans())
def test_a_query_is_read_as_it_was_in_both_spellings(
    page_size: int, token: str, filter: str, order: str, keeps_names: bool
) -> None:
    request = books_pb2.ListBooksRequest(page_size=page_size, page_token=token, filter=filter, order_by=order)
    written = json_format.MessageToDict(request, preserving_proto_field_name=keeps_names)
    assert decode("GET ListBooks", query=urlencode(written)) == request
    assert decode("GET ListBooks", query=urlencode(written, quote_via=quote)) == request


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_a_list_in_a_query_is_a_parameter_for_each(ids: list[int]) -> None:
    request = books_pb2.BatchGetBooksRequest(ids=ids)
    assert decode("GET BatchGetBooks", query=urlencode([("ids", each) for each in ids])) == request


@pytest.mark.parametrize(
    ("query", "filter"),
    [
        ("filter=a+b", "a b"),
        ("filter=a%2Bb", "a+b"),
        ("filter=%C3%A9%26%3D%25", "é&=%"),
        ("filter=100%", "100%"),
        ("filter=%zz", "%zz"),
        ("filter=a;b", "a;b"),
        ("filter=a=b", "a=b"),
        ("filter=", ""),
        ("filter", ""),
        ("&&filter=a&", "a"),
        ("filter=é", "é"),
    ],
)
def test_a_query_is_parsed_as_that_of_a_form(query: str, filter: str) -> None:
    assert decode("GET ListBooks", query=query) == books_pb2.ListBooksRequest(filter=filter)


def test_all_violations_of_a_query_are_reported_at_once() -> None:
    found = violations_of("GET ListBooks", query="pageSize=x&limit=5&filter=a&filter=b&orderBy=a&order_by=b&=1")
    assert found == {
        "page_size": "must be a whole number",
        "limit": "is not a parameter of ListBooks",
        "filter": "is given more than once",
        "order_by": "is given more than once",
        "": "is not a parameter of ListBooks",
    }


@pytest.mark.parametrize("query", [b"filter=\xff", b"filter=%ff", b"%ff=1", b"filter=%c3%28", b"filter=%ed%a0%80"])
def test_a_query_that_is_not_utf_8_is_malformed(query: bytes) -> None:
    with pytest.raises(MalformedMessage, match="UTF-8"):
        decode("GET ListBooks", query=query)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"name": NaN}', b"{'name': 1}", b"\xff", b'{"name": "\\ud800"}', b"[" * 100_000, b"{}{}", b"\0"],
)
def test_a_body_that_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedMessage, match="the body is not JSON"):
        decode("POST CreateBook", body=body)


@pytest.mark.parametrize("text", ["x", "1.5", "1_0", "true", "", "1e3", "0x1", "²", "9" * 21], ids=repr)
def test_an_id_in_a_path_is_a_whole_number(text: str) -> None:
    assert violations_of("GET GetBook", text) == {"id": "must be a whole number"}


def test_an_impossible_id_in_a_path_is_rejected() -> None:
    assert "does not fit" in violations_of("GET GetBook", str(2**63))["id"]
    assert decode("GET GetBook", "-1") == books_pb2.GetBookRequest(id=-1)


def test_fields_of_path_and_body_are_not_query_parameters() -> None:
    assert violations_of("GET GetBook", "1", query="id=1") == {"id": "is not a parameter of GetBook"}
    found = violations_of(PATCH, "1", query="book.id=1&book.name=x&name=y", body={})
    assert found.keys() == {"book.id", "book.name", "name"}
    assert violations_of("POST BatchCreateBooks", query="requestId=1", body={}).keys() == {"requestId"}


def test_different_ids_in_path_and_body_are_rejected() -> None:
    assert decode(PATCH, "5", body={"id": "5", "name": "N"}) == update(["id", "name"], id=5, name="N")
    assert violations_of(PATCH, "5", body={"id": 6}) == {"book.id": "is 6 in the body and 5 in the path"}
    assert violations_of(PUT, "5", body={"id": "6"}) == {"book.id": "is 6 in the body and 5 in the path"}


def test_patch_changes_what_the_body_has_null_and_empty_text_among_it() -> None:
    body = {"name": "N", "author": "", "releaseYear": None}
    assert decode(PATCH, "5", body=body) == update(["name", "author", "release_year"], id=5, name="N")
    assert decode(PATCH, "5", body={}) == update([], id=5)


@pytest.mark.parametrize(
    ("query", "mask"),
    [
        ("updateMask=name", ["name"]),
        ("update_mask=name,author", ["name", "author"]),
        ("updateMask=releaseYear", ["release_year"]),
        ("updateMask=release_year,name", ["release_year", "name"]),
        ("updateMask=*", ["*"]),
        ("updateMask=%2A", ["*"]),
        ("updateMask=shelf", ["shelf"]),
        ("updateMask=", ["author"]),  # as though there were none
    ],
)
def test_a_mask_says_what_patch_changes_in_both_spellings(query: str, mask: list[str]) -> None:
    assert decode(PATCH, "5", query=query, body={"author": "A"}) == update(mask, id=5, author="A")


def test_an_invalid_mask_is_rejected() -> None:
    assert violations_of(PATCH, "5", query="updateMask=a__b", body={}) == {"update_mask": "is not a valid FieldMask"}
    found = violations_of(PATCH, "5", query="updateMask=name&update_mask=author", body={})
    assert found == {"update_mask": "is given more than once"}


@pytest.mark.parametrize("query", ["", "updateMask=*", "update_mask=*"])
def test_put_replaces_everything(query: str) -> None:
    assert decode(PUT, "5", query=query, body={"name": "N"}) == update(["*"], id=5, name="N")


@pytest.mark.parametrize("query", ["updateMask=name", "update_mask=name,author"])
def test_put_with_a_partial_mask_is_rejected(query: str) -> None:
    assert "PATCH" in violations_of(PUT, "5", query=query, body={"name": "N"})["update_mask"]


@pytest.mark.parametrize(
    ("header", "etag"),
    [('"abc"', "abc"), ("abc", "abc"), ('W/"abc"', "abc"), (' "abc" ', "abc"), ("*", "")],
)
def test_if_match_is_the_etag_of_what_is_changed(header: str, etag: str) -> None:
    assert decode("DELETE DeleteBook", "5", if_match=header) == books_pb2.DeleteBookRequest(id=5, etag=etag)
    assert decode(PATCH, "5", if_match=header, body={}) == update([], id=5, etag=etag)
    assert decode(PUT, "5", if_match=header, body={}) == update(["*"], id=5, etag=etag)


@pytest.mark.parametrize("header", ['""', 'W/""', '" "', ""], ids=repr)
def test_an_empty_if_match_does_not_pass_for_none(header: str) -> None:
    assert violations_of("DELETE DeleteBook", "5", if_match=header).keys() == {"etag"}
    assert violations_of(PUT, "5", if_match=header, body={}).keys() == {"book.etag"}


def test_a_list_of_etags_is_rejected() -> None:
    found = violations_of("DELETE DeleteBook", "5", if_match='"a", W/"b"')
    assert found == {"etag": "is a list of etags in If-Match, which takes only one"}


def test_two_different_etags_are_rejected_and_a_star_is_no_etag() -> None:
    assert violations_of(PATCH, "5", if_match='"a"', body={"etag": "b"}) == {
        "book.etag": "differs from the one in If-Match"
    }
    assert violations_of("DELETE DeleteBook", "5", if_match='"a"', query="etag=b").keys() == {"etag"}
    assert decode("DELETE DeleteBook", "5", if_match='"a"', query="etag=a") == books_pb2.DeleteBookRequest(
        id=5, etag="a"
    )
    assert decode("DELETE DeleteBook", "5", if_match="*", query="etag=a") == books_pb2.DeleteBookRequest(id=5, etag="a")


def test_violations_in_path_query_header_and_body_are_reported_at_once() -> None:
    found = violations_of(PATCH, "x", query="dryRun=1", if_match='"a"', body={"etag": "b", "name": 5, "shelf": 1})
    assert found.keys() == {"book.id", "dryRun", "book.etag", "book.name", "book.shelf"}


def test_a_request_of_another_service_may_have_its_fields_in_the_query() -> None:
    request = decode("LOCK LockShelf", "shelves/top", query="gently=true&times=3")
    assert json_format.MessageToDict(request) == {"name": "shelves/top", "gently": True, "times": "3"}
    assert violations_of("LOCK LockShelf", "shelves/top", query="gently=yes") == {"gently": "must be true or false"}


def test_a_body_without_a_mask_in_the_request_sets_none() -> None:
    assert decode("POST CreateBook", body={"name": "N"}, query="requestId=r") == books_pb2.CreateBookRequest(
        book=books_pb2.Book(name="N"), request_id="r"
    )


@pytest.mark.parametrize(
    "query",
    [
        "filter=id+%3E+1&start=EXISTING&checkpointInterval=1.5s",
        "filter=id+%3E+1&start=3&checkpoint_interval=1.500s",
    ],
)
def test_an_enum_and_a_duration_may_be_in_a_query(query: str) -> None:
    expected = books_pb2.WatchBooksRequest(filter="id > 1", start=books_pb2.WatchBooksRequest.EXISTING)
    expected.checkpoint_interval.FromMilliseconds(1_500)
    assert decode("GET WatchBooks", query=query) == expected


def test_an_unknown_value_of_an_enum_is_rejected_with_those_that_are_known() -> None:
    for unknown in ("existing", "", "7", "-1", "1.5", "NOW,EARLIEST"):
        assert violations_of("GET WatchBooks", query=urlencode({"start": unknown})) == {
            "start": "must be one of START_UNSPECIFIED, NOW, EARLIEST, EXISTING"
        }


@pytest.mark.parametrize("text", ["10", "", "s", "10 s", "1_0s", "10m", "PT10S", "1.0000000001s", "+1s", "1e3s"])
def test_text_that_is_not_a_duration_is_rejected_with_an_example(text: str) -> None:
    found = violations_of("GET WatchBooks", query=urlencode({"checkpointInterval": text}))
    assert found == {"checkpoint_interval": "must be a duration in seconds, such as 1.5s"}


def test_a_duration_too_long_for_its_type_is_rejected() -> None:
    found = violations_of("GET WatchBooks", query=f"checkpointInterval={10**12}s")
    assert "does not fit into its type" in found["checkpoint_interval"]


def test_the_last_event_of_a_browser_is_the_token_to_resume_with_before_that_of_the_query() -> None:
    for query in ("", "resumeToken=of-the-query", "resume_token=of-the-query"):
        request = decode("GET WatchBooks", query=query, last_event_id="of-the-event")
        assert request == books_pb2.WatchBooksRequest(resume_token="of-the-event")
    request = decode("GET WatchBooks", query="resumeToken=of-the-query", last_event_id="")
    assert request == books_pb2.WatchBooksRequest(resume_token="of-the-query")


def test_the_last_event_means_nothing_to_what_is_no_stream() -> None:
    assert decode("GET ListBooks", last_event_id="1") == books_pb2.ListBooksRequest()
    assert json_format.MessageToDict(decode("GET CountShelves", last_event_id="1")) == {}
