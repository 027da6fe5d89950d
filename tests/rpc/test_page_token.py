import base64
import json
import string

import grpc
import pytest

from tests.rpc.calls import Stub, book, create_all, list_page, refusal

URL_SAFE = set(string.ascii_letters + string.digits + "-_.~")


@pytest.fixture
async def token(stub: Stub) -> str:
    """The token of a walk by author and year over Unicode names, filtered."""
    names = ["Ωμέγα", "Šišić", "😀", "Dune"]
    await create_all(stub, [book(name, f"{name} / {name}?", year) for year, name in enumerate(names)])
    page = await list_page(stub, filter="release_year >= 0", order_by="author,release_year desc", page_size=2)
    assert page.next_page_token
    return page.next_page_token


@pytest.mark.databases("sqlite")
async def test_a_token_goes_unquoted_into_a_url(token: str) -> None:
    assert set(token) <= URL_SAFE


async def test_a_token_answers_the_same_page_again_and_again(stub: Stub, token: str) -> None:
    fields = {"filter": "release_year >= 0", "order_by": "author,release_year desc", "page_token": token}
    first = await list_page(stub, **fields)
    assert len(first.books) == 2
    assert await list_page(stub, **fields) == first


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    "changes",
    [
        {"filter": ""},
        {"filter": "release_year >= 1"},
        {"filter": "release_year>=0"},
        {"order_by": ""},
        {"order_by": "author"},
        {"order_by": "author,release_year"},
        {"order_by": "name,release_year desc"},
        {"order_by": "author,release_year desc,id desc"},
    ],
    ids=str,
)
async def test_a_token_belongs_to_its_filter_and_order(stub: Stub, token: str, changes: dict[str, str]) -> None:
    fields = {"filter": "release_year >= 0", "order_by": "author,release_year desc", **changes}
    refused = await refusal(list_page(stub, page_token=token, **fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
    assert list(refused.violations) == ["page_token"]


@pytest.mark.databases("sqlite")
async def test_a_token_with_any_character_changed_dropped_or_added_is_refused(stub: Stub, token: str) -> None:
    fields = {"filter": "release_year >= 0", "order_by": "author,release_year desc"}
    damaged = {token + extra for extra in ("A", "=", "==", " ", "\n", "é", "\0")}
    for index in range(0, len(token), 3):
        other = "A" if token[index] != "A" else "B"
        damaged.add(token[:index] + other + token[index + 1 :])
        damaged.add(token[:index] + token[index + 1 :])
        damaged.add(token[:index] + "\n" + token[index:])
    damaged.discard("")
    for each in damaged:
        refused = await refusal(list_page(stub, page_token=each, **fields))
        assert refused.reason == "INVALID_PAGE_TOKEN", each


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    "token",
    [
        "x",
        "0",
        " ",
        "null",
        "' OR 1=1 --",
        "AAAA",
        "A" * 16_384,
        "A" * 1_000_000,
        "٣",
        base64.urlsafe_b64encode(json.dumps([1]).encode()).decode(),
        base64.urlsafe_b64encode(b"[" * 9_000).decode(),
    ],
    ids=lambda token: repr(token[:20]),
)
async def test_an_invented_token_is_refused(stub: Stub, token: str) -> None:
    refused = await refusal(list_page(stub, page_token=token))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
