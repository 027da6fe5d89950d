"""Filters: parses AIP-160 text into a condition, and the values of its parameters.

The grammar is that of AIP-160 without functions and nested fields, which a Book does not have. Factors in sequence are
combined by AND.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, NamedTuple, NoReturn, TypeVar

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from bookstore_grpc.dal.conditions import (
    ALWAYS,
    NEVER,
    Compares,
    Condition,
    Contains,
    EndsWith,
    IsPresent,
    Not,
    Values,
    all_of,
    any_of,
)
from bookstore_grpc.dal.folding import fold, fold_case
from bookstore_grpc.dal.models import FOLDED_COLUMNS, head_column, ordered_column
from bookstore_grpc.dal.records import FIELDS, Field, FieldType
from bookstore_grpc.dal.search_index import Candidates, Indexed, Lookup, in_all, in_any, lookup, needle
from bookstore_grpc.errors import InvalidFilter, Rule, quoted
from bookstore_grpc.limits import (
    CACHED_VALUES_MAX,
    CONTROL_CHARACTER,
    FILTER_MAX_CODE_POINTS,
    FILTER_MAX_LEVELS,
    FILTER_MAX_TERMS,
)

F = TypeVar("F", bound=Callable[..., object])

# The lexer is contextual: ARGUMENT is matched only after a comparator, so `-500` is a number there and `-word` is a
# negation elsewhere.
_GRAMMAR = r"""
start: expression
expression: sequence (_AND sequence)*
sequence: factor+
factor: term (_OR term)*
term: (NOT | MINUS)? _simple
_simple: restriction | words | composite
restriction: WORD COMPARATOR (ARGUMENT | STRING)
words: WORD | STRING
composite: LEFT expression RIGHT

_AND.2: /AND(?![^\s()"'])/
_OR.2: /OR(?![^\s()"'])/
NOT.2: /NOT(?![^\s()"'])/
MINUS: "-"
LEFT: "("
RIGHT: ")"
COMPARATOR: /<=|>=|!=|[=<>:]/
STRING: /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/s
WORD: /(?!(?:AND|OR|NOT)(?![^\s()"']))(?:[^\s()"'<>=!:\-]|!(?!=))(?:[^\s()"<>=!:]|!(?!=))*/
ARGUMENT: /(?:[^\s()"'<>=!:]|!(?!=))(?:[^\s()"<>=!]|!(?!=))*/
%ignore /\s+/
"""

# What people call these fields.
_ALIASES = {"title": "name", "year": "release_year"}
_INTEGER_BITS = {FieldType.INT32: 32, FieldType.INT64: 64}

_INTEGER = re.compile(r"-?[0-9]+")
_YEAR = re.compile(r"[0-9]{4}")
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:[0-5]\d)", re.ASCII
)  # RFC 3339, section 5.6
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Filter(NamedTuple):
    """The condition of a filter, and how indexes find candidates for it, or None if none does.

    Without values, so that all filters that differ only in these share their statements.
    """

    condition: Condition
    lookup: Lookup | None = None
    is_large: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether every book meets the condition."""
        return self.condition == ALWAYS


def for_filter(cached: F, filter: Filter) -> F:
    """Return a cached function of a filter, for a large one without its cache."""
    return cached.__wrapped__ if filter.is_large else cached  # type: ignore[attr-defined]


class _Found(NamedTuple):
    """The condition of a part of a filter, and a set with all books that meet it, or None if no index finds one."""

    condition: Condition
    candidates: Candidates | None = None


class _Text(NamedTuple):
    """The text of an argument; and for a wildcard pattern, the text without `*`, and at which ends it had one."""

    whole: str
    stem: str
    open_start: bool
    open_end: bool


@lru_cache(maxsize=128)
def parse_filter(text: str, *, dialect: str) -> tuple[Filter, Mapping[str, object]]:
    """Return a filter, and the values of its parameters. Raises `InvalidFilter`, which has the column of the error."""
    if len(text) > FILTER_MAX_CODE_POINTS:
        _reject(
            f"has {len(text):,} characters, more than {FILTER_MAX_CODE_POINTS:,}",
            column=FILTER_MAX_CODE_POINTS + 1,
            rule=Rule.TOO_LONG,
        )
    if not text.strip():
        return Filter(ALWAYS), {}
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        _reject_syntax(text, error)
    if len(text) > FILTER_MAX_TERMS:  # each term has a character or more
        _require_few_terms(tree)
    translator = _Translator(dialect)
    condition, candidates = translator.expression(tree.children[0], level=0)
    values = translator.values
    found_by = lookup(candidates, values, dialect=dialect)
    return Filter(condition, found_by, is_large=len(values) > CACHED_VALUES_MAX), values


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer="contextual")


def _require_few_terms(tree: Tree[Token]) -> None:
    terms = [*tree.find_data("restriction"), *tree.find_data("words")]
    if len(terms) > FILTER_MAX_TERMS:
        first_beyond = sorted(_first_token(term).start_pos or 0 for term in terms)[FILTER_MAX_TERMS]
        _reject(f"has more than {FILTER_MAX_TERMS} terms", column=first_beyond + 1, rule=Rule.TOO_MANY)


class _Translator:
    """Translates a syntax tree into a condition, and collects its `values`."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self.values = Values()

    def expression(self, tree: Any, *, level: int) -> _Found:
        """Translate what is in parentheses, or the whole filter. Raises `InvalidFilter`."""
        factors = [self._factor(factor, level=level) for sequence in tree.children for factor in sequence.children]
        return _Found(all_of([each.condition for each in factors]), in_all([each.candidates for each in factors]))

    def _factor(self, tree: Any, *, level: int) -> _Found:
        terms = [self._term(term, level=level) for term in tree.children]
        return _Found(any_of([each.condition for each in terms]), in_any([each.candidates for each in terms]))

    def _term(self, tree: Any, *, level: int) -> _Found:
        found = self._simple(tree.children[-1], level=level)
        return _Found(Not(found.condition)) if len(tree.children) > 1 else found

    def _simple(self, tree: Tree[Token], *, level: int) -> _Found:
        match tree.data:
            case "composite":
                left, expression, _right = tree.children
                if level == FILTER_MAX_LEVELS:
                    _reject(
                        f"has more than {FILTER_MAX_LEVELS} levels of parentheses",
                        column=_column(left),
                        rule=Rule.TOO_MANY,
                    )
                return self.expression(expression, level=level + 1)
            case "words":
                return self._words(_first_token(tree))
            case _:
                field, comparator, argument = map(_token, tree.children)
                return self._restriction(field, comparator, argument)

    def _words(self, token: Token) -> _Found:
        found = self._containing(list(FOLDED_COLUMNS), _text_from_token(token).whole)
        if not _YEAR.fullmatch(token):
            return found
        is_of_year = self._compares("release_year", "=", int(token))
        return _Found(any_of([found.condition, is_of_year]), in_any([found.candidates, Indexed(is_of_year)]))

    def _restriction(self, name: Token, comparator: Token, argument: Token) -> _Found:
        field = FIELDS.get(_ALIASES.get(name, name))
        if field is None:
            _reject(
                f"{quoted(name)} is not a field of a book; there are {', '.join(FIELDS)}",
                column=_column(name),
                rule=Rule.UNKNOWN_FIELD,
            )
        if comparator == ":":
            return self._search(field, comparator, argument)
        if field.type is FieldType.TEXT:
            return self._text_comparison(field, comparator, _text_from_token(argument))
        if field.type is FieldType.TIME:
            return _Found(self._time_comparison(field, comparator, argument))
        condition = self._compares(field.name, comparator, _integer_from_token(field, argument))
        return _Found(condition, Indexed(condition) if comparator == "=" else None)

    def _search(self, field: Field, comparator: Token, argument: Token) -> _Found:
        if not field.is_searchable:
            kind = "searched" if field.type is FieldType.TEXT else "text"
            _reject(
                f"':' searches text, and {field.name} is not {kind}; use =",
                column=_column(comparator),
                rule=Rule.INVALID_OPERATOR,
            )
        text = _text_from_token(argument)
        if argument == "*":  # AIP-160: the field is present
            return _Found(IsPresent(field.name) if field.is_optional else ALWAYS)
        return self._containing([field.name], text.whole)

    def _containing(self, fields: Sequence[str], text: str) -> _Found:
        """Find texts that contain another, without regard to case and diacritics."""
        if not text:
            return _Found(ALWAYS)
        columns = [FOLDED_COLUMNS[field].key for field in fields]
        # The second is for texts that a server of the previous version has stored, and that are not yet complete.
        needles = list(dict.fromkeys([fold(text), fold_case(text)]))
        values = [self.values.add(each) for each in needles]
        return _Found(
            any_of([Contains(column, value) for value in values for column in columns]),
            in_any([needle(each, dialect=self._dialect) for each in needles]),
        )

    def _text_comparison(self, field: Field, comparator: str, text: _Text) -> _Found:
        if comparator not in ("=", "!="):
            return _Found(self._compares(self._ordered_column(field), comparator, text.whole))
        condition = self._text_equality(field, text)
        if comparator == "!=":
            return _Found(Not(condition))
        return _Found(condition, self._containing_stem(field, text) if text.open_start else Indexed(condition))

    def _containing_stem(self, field: Field, text: _Text) -> Candidates | None:
        folded = fold(text.stem)
        if not field.is_searchable or any(map(unicodedata.combining, folded)):  # next to other marks it could change
            return None
        return needle(folded, dialect=self._dialect)

    def _text_equality(self, field: Field, text: _Text) -> Condition:
        if not (text.open_start or text.open_end):
            equals = self._compares(self._ordered_column(field), "=", text.whole)
            head = self._head_column(field)
            # The head is implied, and has an index.
            return all_of([self._compares(head, "=", text.whole[: field.head_code_points]), equals]) if head else equals
        if not text.stem:
            return ALWAYS
        if not text.open_start:
            return self._starts_with(field, text.stem)
        stem = self.values.add(text.stem)
        if text.open_end:
            return Contains(field.name, stem)
        return EndsWith(field.name, stem, self.values.add(len(text.stem)))

    def _starts_with(self, field: Field, prefix: str) -> Condition:
        """As a range, which can use an index and is the same on every database."""
        starts = self._range(self._ordered_column(field), prefix)
        head = self._head_column(field)
        return all_of([*(self._range(head, prefix[: field.head_code_points]) if head else ()), *starts])

    def _range(self, column: str, prefix: str) -> list[Condition]:
        end = _successor(prefix)
        starts = self._compares(column, ">=", prefix)
        return [starts] if end is None else [starts, self._compares(column, "<", end)]

    def _time_comparison(self, field: Field, comparator: str, argument: Token) -> Condition:
        nanoseconds = _nanoseconds_from_token(field, argument)
        floor, rest = divmod(nanoseconds, 1_000)
        if not rest:
            return self._compares(field.name, comparator, floor)
        # Stored times are whole microseconds, so none equals this time, which is between `floor` and `floor + 1`.
        match comparator:
            case "=":
                return NEVER
            case "!=":
                return ALWAYS
            case "<" | "<=":
                return self._compares(field.name, "<=", floor)
            case _:
                return self._compares(field.name, ">", floor)

    def _compares(self, column: str, operator: str, value: str | int) -> Condition:
        return Compares(column, operator, self.values.add(value))

    def _ordered_column(self, field: Field) -> str:
        return ordered_column(field.name, dialect=self._dialect).key

    def _head_column(self, field: Field) -> str | None:
        head = head_column(field.name, dialect=self._dialect)
        return None if head is None else head.key


def _successor(prefix: str) -> str | None:
    """Return the smallest text, by code point, greater than all that start with `prefix`; None if there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are not characters
        following = 0xE000
    return stem[:-1] + chr(following)


def _integer_from_token(field: Field, argument: Token) -> int:
    bits = _INTEGER_BITS[field.type]
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if not _INTEGER.fullmatch(argument):
        _reject(
            f"{field.name} takes a whole number, not {quoted(argument)}",
            column=_column(argument),
            rule=Rule.INVALID_TYPE,
        )
    value = int(argument)
    if not least <= value <= most:
        _reject(f"{field.name} takes a number from {least} to {most}", column=_column(argument), rule=Rule.OUT_OF_RANGE)
    return value


def _nanoseconds_from_token(field: Field, argument: Token) -> int:
    text = _text_from_token(argument).whole
    try:
        date, time, fraction, zone = _TIME.fullmatch(text).groups()  # type: ignore[union-attr]  # None is handled below
        moment = datetime.fromisoformat(f"{date}T{time}{zone.upper().replace('Z', '+00:00')}")
    except (AttributeError, ValueError):
        _reject(
            f'{field.name} takes a time such as "2026-01-31T12:00:00Z", not {quoted(argument)}',
            column=_column(argument),
            rule=Rule.INVALID_TYPE,
        )
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def _text_from_token(token: Token) -> _Text:
    characters = _unescaped(token[1:-1]) if token.type == "STRING" else [(character, False) for character in token]
    text = "".join(character for character, _ in characters)
    if CONTROL_CHARACTER.search(text):
        _reject(
            "the text contains a control character, which no book does",
            column=_column(token),
            rule=Rule.CONTROL_CHARACTER,
        )
    open_start = characters[:1] == [("*", False)]
    open_end = characters[-1:] == [("*", False)]
    stem = text[open_start : len(text) - open_end]
    return _Text(unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", stem), open_start, open_end)


def _unescaped(text: str) -> list[tuple[str, bool]]:
    r"""Return the characters of a quoted text, each with whether it was escaped by `\`."""
    characters = []
    rest = iter(text)
    for character in rest:
        characters.append((next(rest), True) if character == "\\" else (character, False))
    return characters


def _first_token(tree: Tree[Token]) -> Token:
    return _token(tree.children[0])


def _token(token: Token | Tree[Token]) -> Token:
    assert isinstance(token, Token)  # noqa: S101  guaranteed by the grammar; for the type checker
    return token


def _column(token: Any) -> int:
    return (token.start_pos or 0) + 1


def _reject(description: str, *, column: int, rule: Rule, cause: Exception | None = None) -> NoReturn:
    raise InvalidFilter(f"{description} (column {column})", column=column, rule=rule) from cause


def _reject_syntax(text: str, error: UnexpectedInput) -> NoReturn:
    position = error.pos_in_stream
    if (isinstance(error, UnexpectedToken) and error.token.type == "$END") or position is None:
        _reject("ends where more is expected", column=len(text) + 1, rule=Rule.INVALID_SYNTAX, cause=error)
    if isinstance(error, UnexpectedCharacters) and text[position] in "\"'":
        _reject("has a quote that is not closed", column=position + 1, rule=Rule.INVALID_SYNTAX, cause=error)
    word = error.token if isinstance(error, UnexpectedToken) else text[position]
    _reject(f"has an unexpected {quoted(word)}", column=position + 1, rule=Rule.INVALID_SYNTAX, cause=error)
