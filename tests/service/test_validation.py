import unicodedata
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bookstore_grpc.errors import InvalidRequest, Rule, Violation
from bookstore_grpc.service.validation import (
    Broken,
    Violations,
    count_violation,
    id_violation,
    page_size_violation,
    release_year_violation,
    request_id_violation,
    stored_text,
    text_violation,
)

any_text = st.text(st.characters(exclude_categories=["Cs"]))
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


@given(st.integers())
def test_years_from_5000_before_to_9999_pass(year: int) -> None:
    assert (release_year_violation(year) is None) == (-5000 <= year <= 9999)


def test_an_absent_year_is_told_from_the_year_0() -> None:
    assert release_year_violation(None) is not None
    assert release_year_violation(0) is None


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
