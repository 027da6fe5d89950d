"""Case folding by the rules of Unicode, because those of the databases differ."""

import unicodedata


def fold_case(text: str) -> str:
    """Return the same text for all texts that differ only in case or normal form (The Unicode Standard, D145).

    The result is in normal form C, so that a search for "e" does not find the first half of a decomposed "é".
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
