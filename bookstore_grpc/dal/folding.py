"""Folding of texts for searches by the rules of Unicode, because those of the databases differ."""

import re
import unicodedata

# The blocks of combining diacritical marks. Marks of other blocks are letters or vowels of their scripts.
_DIACRITICS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
#: Between the parts of a stored text. Books contain no control characters, so no needle is found across it.
SEPARATOR = "\n"


def fold_case(text: str) -> str:
    """Return the same text for all texts that differ only in case or normal form (The Unicode Standard, D145).

    The result is in normal form C.
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def fold(text: str) -> str:
    """Return the same text for all texts that differ only in case, normal form or diacritics.

    A diacritic is what canonical decomposition separates from its letter: "é" folds to "e", "й" to "и". Letters that do
    not decompose stay as they are ("ø", "ł", "æ"), and "ß" folds to "ss" as it does without regard to case.
    """
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFC", _DIACRITICS.sub("", decomposed))


def searchable_text(text: str) -> str:
    """Return the stored form of a text, which contains every folded needle that the folded text contains.

    A folded text with letters beyond ASCII is followed by the same text without diacritics, or by nothing if it has
    none. Servers of the previous version store, and search, only what comes first.
    """
    folded = fold_case(text)
    if folded.isascii():
        return folded
    plain = fold(text)
    return f"{folded}{SEPARATOR}{plain if plain != folded else ''}"
