import base64
import json
import string

import grpc
import pytest

from tests.rpc.calls import Stub, book, create_all, list_page, rejection

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
async def test_a_token_needs_no_quoting_in_a_url(token: str) -> None:
    assert set(token) <= URL_SAFE


async def test_a_token_returns_the_same_page_every_time(stub: Stub, token: str) -> None:
    fields = {"filter": "release_year >= 0", "order_by": "author,release_year desc", "page_token": token}
    first = await list_page(stub, **fields)
    assert len(first.books) == 2
    assert await list_page(stub, **fields) == first


@pytest.mark.databases("sqlite")
async def test_a_token_belongs_to_its_filter_and_order(stub: Stub, token: str) -> None:
    for changes in (
        {"filter": ""},
        {"filter": "release_year >= 1"},
        {"filter": "release_year>=0"},
        {"order_by": ""},
        {"order_by": "author"},
        {"order_by": "author,release_year"},
        {"order_by": "name,release_year desc"},
        {"order_by": "author,release_year desc,id desc"},
    ):
        fields = {"filter": "release_year >= 0", "order_by": "author,release_year desc", **changes}
        rejected = await rejection(list_page(stub, page_token=token, **fields))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"), changes
        assert list(rejected.violations) == ["page_token"]


@pytest.mark.databases("sqlite")
async def test_a_changed_token_is_rejected(stub: Stub, token: str) -> None:
    fields = {"filter": "release_year >= 0", "order_by": "author,release_year desc"}
    for changed in (token[:-1], token + "=", token + "\0", token[:5] + "\n" + token[5:]):
        rejected = await rejection(list_page(stub, page_token=changed, **fields))
        assert rejected.reason == "INVALID_PAGE_TOKEN", changed


@pytest.mark.databases("sqlite")
async def test_an_invented_token_is_rejected(stub: Stub) -> None:
    for token in (
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
    ):
        rejected = await rejection(list_page(stub, page_token=token))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"), token[:20]
