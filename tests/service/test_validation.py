import unicodedata
import uuid
from functools import partial
from itertools import chain

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bookstore_grpc.errors import InvalidRequest, Rule, Violation
from bookstore_grpc.service.validation import (
    Broken,
    Violations,
    count_violation,
    id_violation,
    integer_violation,
    page_size_violation,
    request_id_violation,
    stored_text,
    text_violation,
)

year_violation = partial(integer_violation, min_value=-5_000, max_value=9_999)
any_text = st.text(st.characters(exclude_categories=["Cs"]))
# PropList.txt of the Unicode Character Database, White_Space=yes.
WHITE_SPACE = [
    *map(chr, chain(range(0x09, 0x0E), [0x20, 0x85, 0xA0, 0x1680], range(0x2000, 0x200B))),
    *"\u2028\u2029\u202f\u205f\u3000",
]
CONTROL_CHARACTERS = [*map(chr, chain(range(0x20), range(0x7F, 0xA0)))]

texts_with_spaces = st.text(st.sampled_from("aé\u0301e\u1161\u1100 \t\n\u2003\u3000\x85\x1c\u200b\ufeff"))


@given(any_text | texts_with_spaces)
@example("\u0301 ")
@example(" \u0301")
@example("\u2000\u0344\u2001")
def test_stored_text_is_composed_and_trimmed_and_stays_as_it_is(text: str) -> None:
    stored = stored_text(text)
    assert stored_text(stored) == stored
    assert unicodedata.is_normalized("NFC", stored)
    assert unicodedata.normalize("NFC", text).find(stored) >= 0


@given(any_text)
def test_texts_that_are_canonically_equal_are_stored_alike(text: str) -> None:
    forms = {stored_text(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert forms == {stored_text(text)}


@given(any_text | texts_with_spaces, st.integers(min_value=1, max_value=20))
def test_a_text_passes_if_it_is_neither_empty_nor_too_long_nor_holds_a_control_character(text: str, most: int) -> None:
    stored = stored_text(text)
    controls = any(unicodedata.category(character) == "Cc" for character in stored)
    passes = text_violation(stored, max_code_points=most) is None
    assert passes == (0 < len(stored) <= most and not controls)


def test_white_space_of_every_kind_is_trimmed_at_both_ends_and_kept_inside() -> None:
    for space in WHITE_SPACE:
        assert stored_text(f"{space}a b{space}") == "a b", ascii(space)
        assert stored_text(f"a{space}b") == unicodedata.normalize("NFC", f"a{space}b"), ascii(space)


def test_empty_and_blank_text_is_required() -> None:
    for text in ("", " ", "\t\r\n", "\u3000\u2003\xa0\x85", *WHITE_SPACE):
        violation = text_violation(stored_text(text), max_code_points=5)
        assert violation is not None, ascii(text)
        assert violation.rule is Rule.REQUIRED
        assert "required" in violation.description


def test_control_characters_are_rejected() -> None:
    for character in CONTROL_CHARACTERS:
        violation = text_violation(stored_text(f"a{character}b"), max_code_points=5)
        assert violation is not None, ascii(character)
        assert violation.rule is Rule.CONTROL_CHARACTER
        assert f"U+{ord(character):04X}" in violation.description


def test_control_characters_that_are_not_white_space_are_rejected_at_the_ends_too() -> None:
    for character in set(CONTROL_CHARACTERS) - set(WHITE_SPACE):
        for text in (f"{character}a", f"a{character}"):
            violation = text_violation(stored_text(text), max_code_points=5)
            assert violation is not None, ascii(text)
            assert violation.rule is Rule.CONTROL_CHARACTER


def test_limits_count_the_code_points_of_the_stored_text() -> None:
    for character in ("x", "é", "\u4e2d", "😀", "\U0010ffff", " \u0301 e"):
        text = "e" + character * 500
        length = len(stored_text(text))
        assert text_violation(stored_text(text), max_code_points=length) is None
        violation = text_violation(stored_text(text), max_code_points=length - 1)
        assert violation is not None
        assert violation.rule is Rule.TOO_LONG
        assert f"{length - 1:,}" in violation.description
    assert len(stored_text("\u2003" * 9 + "e\u0301" * 9 + "\n" * 9)) == 9
    assert len(stored_text("\u0958" * 9)) == 18  # excluded from composition: two code points in normal form C


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
def test_text_is_stored_in_normal_form_c(sent: str, stored: str) -> None:
    assert stored_text(sent) == stored


@given(st.integers())
def test_years_from_5000_before_to_9999_pass(year: int) -> None:
    assert (year_violation(year) is None) == (-5000 <= year <= 9999)


def test_an_absent_year_is_distinguished_from_the_year_0() -> None:
    assert year_violation(None) is not None
    assert year_violation(0) is None


@given(st.integers())
def test_positive_ids_pass(book_id: int) -> None:
    assert (id_violation(book_id) is None) == (book_id >= 1)


@given(st.integers())
def test_page_sizes_that_are_not_negative_pass(page_size: int) -> None:
    assert (page_size_violation(page_size) is None) == (page_size >= 0)


@given(st.integers(min_value=0, max_value=5_000), st.integers(min_value=1, max_value=2_000))
def test_counts_from_1_to_the_most_pass(count: int, most: int) -> None:
    assert (count_violation(count, most=most) is None) == (1 <= count <= most)


@given(st.uuids(allow_nil=False))
def test_every_uuid_passes_in_its_usual_form_alone(request_id: uuid.UUID) -> None:
    assert request_id_violation(str(request_id)) is None
    assert request_id_violation(str(request_id).upper()) is None
    assert request_id_violation(request_id.hex) is not None
    assert request_id_violation(f"{request_id}\n") is not None


@pytest.mark.parametrize(
    "request_id",
    [
        "1",
        " ",
        "not-a-uuid",
        "6f1e4c2a58b14d0b9c570e1f2a3b4c5d",
        "{6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d}",
        "urn:uuid:6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d",
        "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5",
        "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5dd",
        "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5g",
        " 6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d",
        "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d\n",
        "٦f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d",
        "00000000-0000-0000-0000-000000000000",
    ],
    ids=repr,
)
def test_a_request_id_that_is_not_a_uuid_or_is_the_nil_uuid_is_rejected(request_id: str) -> None:
    violation = request_id_violation(request_id)
    assert violation is not None
    assert violation.rule is Rule.INVALID_UUID


@given(any_text)
def test_a_request_id_that_passes_is_empty_or_a_uuid(text: str) -> None:
    if request_id_violation(text) is None:
        assert text == "" or str(uuid.UUID(text)) == text.lower()


def test_violations_are_raised_all_together_and_only_if_there_are_any() -> None:
    violations = Violations()
    violations.check("a", None)
    violations.raise_if_any()
    violations.check("b", Broken(Rule.TOO_LONG, "is wrong"))
    violations.add("c", Rule.REQUIRED, "is wrong too")
    with pytest.raises(InvalidRequest) as caught:
        violations.raise_if_any()
    assert caught.value.violations == (
        Violation("b", "is wrong", Rule.TOO_LONG),
        Violation("c", "is wrong too", Rule.REQUIRED),
    )


def test_a_field_that_has_a_violation_gets_no_other_nor_do_its_parts() -> None:
    violations = Violations()
    violations.add("requests[1].book", Rule.INVALID_TYPE, "is to be a JSON object")
    violations.add("ids[2]", Rule.INVALID_TYPE, "is to be a whole number")
    added = ["requests[0].book", "requests[1].request_id", "requests[11].book", "requests", "ids[3]", "request"]
    known = ["requests[1].book", "requests[1].book.name", "ids[2]"]
    violations.add_for_other_fields([Violation(field, "is required", Rule.REQUIRED) for field in (*known, *added)])
    with pytest.raises(InvalidRequest) as caught:
        violations.raise_if_any()
    assert [violation.field for violation in caught.value.violations] == ["requests[1].book", "ids[2]", *added]
