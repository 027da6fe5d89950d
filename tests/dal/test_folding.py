"""Caseless matching: which texts Unicode holds to be one."""

import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookstore_grpc.dal.folding import fold_case


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("zola", "ZOLA"),
        ("Émile", "ÉMILE"),
        ("e\u0301mile", "ÉMILE"),
        ("E\u0301MILE", "émile"),
        ("Straße", "STRASSE"),
        ("straẞe", "strasse"),
        ("ΟΔΥΣΣΕΎΣ", "οδυσσεύς"),
        ("σ", "ς"),
        ("Ǆ", "ǅ"),
        ("Ǆ", "ǆ"),
        ("ﬁn", "FIN"),
        ("ŉ", "ʼN"),
        ("\u212a", "k"),  # the sign of Kelvin
        ("\u212b", "å"),  # the sign of Ångström
        ("Ω", "\u2126"),  # the sign of Ohm
        ("ᾳ", "ΑΙ"),
        ("\u1f80", "\u1f88"),
        ("\u0345", "\u0399"),
        ("İ", "i\u0307"),
        ("Я", "я"),
        ("ԱԲ", "աբ"),
        ("\uab70", "\u13a0"),  # Cherokee, which folds to capitals
        ("\U00010400", "\U00010428"),  # Deseret, beyond 16 bits
        ("q\u0323\u0307", "Q\u0307\u0323"),
    ],
)
def test_texts_that_differ_in_case_or_form_are_one(one: str, other: str) -> None:
    assert fold_case(one) == fold_case(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("e", "é"),
        ("i", "ı"),
        ("I", "İ"),
        ("ae", "æ"),
        ("o", "ø"),
        ("ss", "s"),
        ("1", "１"),
        ("ﬁ ", "fi"),
        ("a", "а"),  # Latin and Cyrillic
        ("x\u0301", "x"),
    ],
)
def test_texts_that_differ_in_more_stay_two(one: str, other: str) -> None:
    assert fold_case(one) != fold_case(other)


def test_letter_does_not_match_the_first_half_of_an_accented_one() -> None:
    assert fold_case("e") not in fold_case("E\u0301")


_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(_texts)
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold_case(fold_case(text)) == fold_case(text)


@given(_texts)
def test_folded_text_is_in_normal_form_c(text: str) -> None:
    assert unicodedata.is_normalized("NFC", fold_case(text))


@given(_texts, st.sampled_from(_FORMS))
def test_normal_form_makes_no_difference(text: str, form: Literal["NFC", "NFD"]) -> None:
    assert fold_case(unicodedata.normalize(form, text)) == fold_case(text)


@given(_texts)
def test_fold_is_the_canonical_caseless_match_of_unicode(text: str) -> None:
    """The Unicode Standard, D145."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    assert unicodedata.normalize("NFD", fold_case(text)) == folded


def test_every_single_character_folds_to_a_fixed_point() -> None:
    for code_point in (*range(0xD800), *range(0xE000, 0x30000)):
        folded = fold_case(chr(code_point))
        assert fold_case(folded) == folded, hex(code_point)
