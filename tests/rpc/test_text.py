"""The rules of texts over the wire. All cases: `tests/service/test_validation.py`, `tests/dal/test_stored_text.py`."""

import grpc
import pytest

from tests.rpc.calls import Stub, books_of, create, get, rejection

LIMITS = {"name": 500, "author": 1_000}


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("field", LIMITS)
async def test_blank_text_is_rejected(stub: Stub, field: str) -> None:
    for text in ("", "\u3000\u2003\xa0\x85"):
        rejected = await rejection(create(stub, **{field: text}))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert list(rejected.violations) == [f"book.{field}"]
        assert "required" in rejected.violations[f"book.{field}"]


@pytest.mark.parametrize("field", LIMITS)
async def test_limits_count_code_points(stub: Stub, field: str) -> None:
    limit = LIMITS[field]
    longest = "\U0010ffff" * limit
    made = await create(stub, **{field: longest})
    assert getattr(await get(stub, made.id), field) == longest
    rejected = await rejection(create(stub, **{field: longest + "x"}))
    assert list(rejected.violations) == [f"book.{field}"]
    assert f"{limit:,}" in rejected.violations[f"book.{field}"]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("field", LIMITS)
async def test_limits_count_after_composing_and_trimming(stub: Stub, field: str) -> None:
    limit = LIMITS[field]
    made = await create(stub, **{field: "\u2003" * limit + "e\u0301" * limit + "\n" * limit})
    assert getattr(made, field) == "é" * limit
    grows = "\u0958"  # excluded from composition: two code points in normal form C
    made = await create(stub, **{field: grows * (limit // 2)})
    assert len(getattr(made, field)) == limit
    rejected = await rejection(create(stub, **{field: grows * (limit // 2 + 1)}))
    assert list(rejected.violations) == [f"book.{field}"]


async def test_text_is_stored_in_normal_form_c_without_white_space_at_its_ends(stub: Stub) -> None:
    made = await create(stub, "\u2003E\u0301mile\n", "\x85 q\u0307\u0323 a\u3000b ")
    assert (made.name, made.author) == ("Émile", "q\u0323\u0307 a\u3000b")
    assert await get(stub, made.id) == made
    assert await books_of(stub) == [made]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("field", LIMITS)
async def test_control_characters_are_rejected(stub: Stub, field: str) -> None:
    for text, named in (("a\x07b", "U+0007"), ("a\x85b", "U+0085"), ("\x1ca", "U+001C"), ("a\x00", "U+0000")):
        rejected = await rejection(create(stub, **{field: text}))
        assert list(rejected.violations) == [f"book.{field}"]
        assert named in rejected.violations[f"book.{field}"]


async def test_any_other_text_is_returned_unchanged(stub: Stub) -> None:
    text = "👨‍👩‍👧‍👦 Robert'); DROP TABLE books;-- %s {0} :name עברית \u202e \ufffe ǅ ẞ"
    made = await create(stub, text, text)
    stored = await get(stub, made.id)
    assert (stored.name, stored.author) == (text, text)
    assert await books_of(stub, order_by="name,author") == [stored]
