import unicodedata
from itertools import chain

import grpc
import pytest

from tests.rpc.calls import Stub, book, books_of, create, create_all, get, refusal

# PropList.txt of the Unicode Character Database, White_Space=yes.
WHITE_SPACE = [chr(code) for code in chain(range(0x09, 0x0E), [0x20, 0x85, 0xA0, 0x1680], range(0x2000, 0x200B))] + [
    "\u2028",
    "\u2029",
    "\u202f",
    "\u205f",
    "\u3000",
]
CONTROL_CHARACTERS = [chr(code) for code in chain(range(0x20), range(0x7F, 0xA0))]
FIELDS = ["name", "author"]
LIMITS = {"name": 500, "author": 1_000}


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\u3000\u2003\xa0\x85"], ids=repr)
async def test_empty_and_blank_text_is_refused(stub: Stub, field: str, text: str) -> None:
    refused = await refusal(create(stub, **{field: text}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == [f"book.{field}"]
    assert "required" in refused.violations[f"book.{field}"]


@pytest.mark.parametrize("character", ["x", "é", "\u4e2d", "😀", "\U0010ffff"], ids=ascii)
@pytest.mark.parametrize("field", FIELDS)
async def test_limits_count_code_points(stub: Stub, field: str, character: str) -> None:
    limit = LIMITS[field]
    longest = character * limit
    made = await create(stub, **{field: longest})
    assert getattr(await get(stub, made.id), field) == longest
    refused = await refusal(create(stub, **{field: longest + character}))
    assert list(refused.violations) == [f"book.{field}"]
    assert f"{limit:,}" in refused.violations[f"book.{field}"]


@pytest.mark.parametrize("field", FIELDS)
async def test_limits_count_after_composing_and_trimming(stub: Stub, field: str) -> None:
    limit = LIMITS[field]
    made = await create(stub, **{field: "\u2003" * limit + "e\u0301" * limit + "\n" * limit})
    assert getattr(made, field) == "é" * limit


@pytest.mark.parametrize("field", FIELDS)
async def test_a_composition_that_grows_counts_as_it_is_stored(stub: Stub, field: str) -> None:
    limit = LIMITS[field]
    grows = "\u0958"  # excluded from composition: two code points in normal form C
    made = await create(stub, **{field: grows * (limit // 2)})
    assert len(getattr(made, field)) == limit
    refused = await refusal(create(stub, **{field: grows * (limit // 2 + 1)}))
    assert list(refused.violations) == [f"book.{field}"]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("E\u0301mile", "Émile"),
        ("A\u030a", "Å"),
        ("\u212b", "Å"),
        ("\u1100\u1161\u11a8", "각"),
        ("q\u0307\u0323", "q\u0323\u0307"),
        ("ﬁ", "ﬁ"),
        ("①", "①"),
        ("\u0301", "\u0301"),
        ("a\u200b", "a\u200b"),
        ("\ufeffa", "\ufeffa"),
    ],
    ids=ascii,
)
async def test_text_is_stored_in_normal_form_c(stub: Stub, sent: str, stored: str) -> None:
    made = await create(stub, sent, sent)
    assert (made.name, made.author) == (stored, stored)
    assert await get(stub, made.id) == made


async def test_white_space_of_every_kind_is_trimmed_at_both_ends_and_kept_inside(stub: Stub) -> None:
    printable = [space for space in WHITE_SPACE if unicodedata.category(space) != "Cc"]
    made = await create_all(stub, [book(f"{space}a b{space}", f"{space}c{space}") for space in WHITE_SPACE])
    assert [(each.name, each.author) for each in made] == [("a b", "c")] * len(WHITE_SPACE)
    inside = await create_all(stub, [book(f"a{space}b") for space in printable])
    assert [each.name for each in inside] == [unicodedata.normalize("NFC", f"a{s}b") for s in printable]
    assert await books_of(stub) == made + inside


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("character", CONTROL_CHARACTERS, ids=lambda character: f"U+{ord(character):04X}")
async def test_control_characters_are_refused(stub: Stub, field: str, character: str) -> None:
    refused = await refusal(create(stub, **{field: f"a{character}b"}))
    assert list(refused.violations) == [f"book.{field}"]
    assert f"U+{ord(character):04X}" in refused.violations[f"book.{field}"]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("character", ["\x1c", "\x1d", "\x1e", "\x1f", "\x00", "\x7f"], ids=ascii)
async def test_control_characters_that_are_no_white_space_are_refused_at_the_ends_too(
    stub: Stub, character: str
) -> None:
    refused = await refusal(create(stub, f"{character}a", f"a{character}"))
    assert list(refused.violations) == ["book.name", "book.author"]


@pytest.mark.parametrize(
    "text",
    [
        "👨‍👩‍👧‍👦 📚 🏳️‍🌈",
        "Robert'); DROP TABLE books;--",
        '" OR ""="',
        "\\' \\\" \\\\ \\0 \\n",
        "%s %(name)s {0} {name} :name $1 ?",
        "`books`; /* */ -- #",
        "100% _like_ [a-z]*",
        "עברית العربية \u202eabc",
        "\ufffe \uffff \U0001fffe",
        "NULL",
        "0",
        "<script>alert(1)</script>",
        "a  b",
        "trailing\u200d",
        "ǅ İ ı ß ẞ ﬃ",
    ],
    ids=ascii,
)
async def test_any_other_text_comes_back_as_it_was(stub: Stub, text: str) -> None:
    made = await create(stub, text, text)
    stored = await get(stub, made.id)
    assert (stored.name, stored.author) == (text, text)
    assert await books_of(stub, order_by="name,author") == [stored]


async def test_text_that_differs_only_by_case_or_accents_or_width_stays_apart(stub: Stub) -> None:
    names = ["a", "A", "á", "Á", "\uff41", "a\u200b", "ａ".upper()]
    made = await create_all(stub, [book(name) for name in names])
    for each in made:
        assert await books_of(stub, filter=f'name = "{each.name}"') == [each]
