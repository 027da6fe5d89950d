"""Caseless matching by the rules of Unicode, for databases whose own rules differ."""

import unicodedata


def fold_case(text: str) -> str:
    """Map texts that differ only in case or in normal form to one text (The Unicode Standard, D145).

    The result is in normal form C, so that a search for "e" does not find the first half of a decomposed "é".
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
