"""Filters: from the text of AIP-160 to a SQL expression, in which a caller's text is always a bound parameter.

The grammar is that of AIP-160 without functions and nested fields, of which a Book has none. A sequence of factors
without AND between them means AND.
"""

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NamedTuple, NoReturn

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from sqlalchemy import ColumnElement, Integer, String, and_, false, func, literal, not_, or_, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from bookstore_grpc.dal.casefold import fold_case
from bookstore_grpc.dal.models import COLUMNS, FOLDED_COLUMNS, HEAD_COLUMNS
from bookstore_grpc.dal.records import FIELDS, Field, FieldType
from bookstore_grpc.errors import InvalidFilter, Rule, quoted
from bookstore_grpc.limits import CONTROL_CHARACTER, FILTER_MAX_CODE_POINTS, FILTER_MAX_LEVELS, FILTER_MAX_TERMS

# The lexer is contextual: ARGUMENT is tried only after a comparator, so `-500` is a number there and `-word` a
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

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
_INTEGER_BITS = {FieldType.INT32: 32, FieldType.INT64: 64}

_INTEGER = re.compile(r"-?[0-9]+")
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:[0-5]\d)", re.ASCII
)  # RFC 3339, section 5.6
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Predicate = ColumnElement[bool]


class _Text(NamedTuple):
    """The text of an argument: whole, and as a wildcard pattern its stem and at which ends it has a `*`."""

    whole: str
    stem: str
    open_start: bool
    open_end: bool


def parse_filter(text: str) -> ColumnElement[bool]:
    """Return the condition on `books` that a filter states. Raises `InvalidFilter`, which names the column."""
    if len(text) > FILTER_MAX_CODE_POINTS:
        _reject(
            f"has {len(text):,} characters, more than {FILTER_MAX_CODE_POINTS:,}",
            column=FILTER_MAX_CODE_POINTS + 1,
            rule=Rule.TOO_LONG,
        )
    if not text.strip():
        return true()
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        _reject_syntax(text, error)
    terms = [*tree.find_data("restriction"), *tree.find_data("words")]
    if len(terms) > FILTER_MAX_TERMS:
        first_beyond = sorted(_first_token(term).start_pos or 0 for term in terms)[FILTER_MAX_TERMS]
        _reject(f"has more than {FILTER_MAX_TERMS} terms", column=first_beyond + 1, rule=Rule.TOO_MANY)
    return _expression(tree.children[0], level=0)


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer="contextual")


def _expression(tree: Any, *, level: int) -> _Predicate:
    return and_(*(_factor(factor, level=level) for sequence in tree.children for factor in sequence.children))


def _factor(tree: Any, *, level: int) -> _Predicate:
    return or_(*(_term(term, level=level) for term in tree.children))


def _term(tree: Any, *, level: int) -> _Predicate:
    predicate = _simple(tree.children[-1], level=level)
    return not_(predicate) if len(tree.children) > 1 else predicate


def _simple(tree: Tree[Token], *, level: int) -> _Predicate:
    match tree.data:
        case "composite":
            left, expression, _right = tree.children
            if level == FILTER_MAX_LEVELS:
                _reject(
                    f"has more than {FILTER_MAX_LEVELS} levels of parentheses",
                    column=_column(left),
                    rule=Rule.TOO_MANY,
                )
            return _expression(expression, level=level + 1)
        case "words":
            needle = fold_case(_text_from_token(_first_token(tree)).whole)
            return or_(*(_contains(column, needle) for column in FOLDED_COLUMNS.values()))
        case _:
            field, comparator, argument = tree.children
            return _restriction(field, comparator, argument)  # type: ignore[arg-type]  # these are tokens by the grammar


def _restriction(name: Token, comparator: Token, argument: Token) -> _Predicate:
    field = FIELDS.get(name)
    if field is None:
        _reject(
            f"{quoted(name)} is not a field of a book; there are {', '.join(FIELDS)}",
            column=_column(name),
            rule=Rule.UNKNOWN_FIELD,
        )
    if comparator == ":":
        return _search(field, comparator, argument)
    if field.type is FieldType.TEXT:
        return _text_comparison(field.name, comparator, _text_from_token(argument))
    column = COLUMNS[field.name]
    if field.type is FieldType.TIME:
        return _time_comparison(column, comparator, field, argument)
    return _OPERATORS[comparator](column, _integer_from_token(field, argument))  # type: ignore[no-any-return]


def _search(field: Field, comparator: Token, argument: Token) -> _Predicate:
    if not field.is_searchable:
        kind = "searched" if field.type is FieldType.TEXT else "text"
        _reject(
            f"':' searches text, and {field.name} is not {kind}; use =",
            column=_column(comparator),
            rule=Rule.INVALID_OPERATOR,
        )
    text = _text_from_token(argument)
    if argument == "*":  # AIP-160: the field is present
        return COLUMNS[field.name] != "" if field.is_optional else true()
    return _contains(FOLDED_COLUMNS[field.name], fold_case(text.whole))


def _text_comparison(field: str, comparator: str, text: _Text) -> _Predicate:
    if comparator not in ("=", "!="):
        return _OPERATORS[comparator](COLUMNS[field], text.whole)  # type: ignore[no-any-return]
    predicate = _text_equality(field, text)
    return predicate if comparator == "=" else not_(predicate)


def _text_equality(field: str, text: _Text) -> _Predicate:
    column = COLUMNS[field]
    if text.open_start and text.open_end:
        return _contains(column, text.stem)
    if text.open_start:
        return _ending(column, literal(len(text.stem), Integer())) == text.stem
    if text.open_end:
        return _starts_with(field, text.stem)
    if field in HEAD_COLUMNS:
        # Implied by the equality, and what the index holds.
        return and_(HEAD_COLUMNS[field] == text.whole[: FIELDS[field].head_code_points], column == text.whole)
    return column == text.whole


def _starts_with(field: str, prefix: str) -> _Predicate:
    """Return "starts with" as a range, which can use an index and means the same on every database."""
    if field in HEAD_COLUMNS:
        head = prefix[: FIELDS[field].head_code_points]
        return and_(_range(HEAD_COLUMNS[field], head), _range(COLUMNS[field], prefix))
    return _range(COLUMNS[field], prefix)


def _range(column: InstrumentedAttribute[str], prefix: str) -> _Predicate:
    end = _successor(prefix)
    return column >= prefix if end is None else and_(column >= prefix, column < end)


def _successor(prefix: str) -> str | None:
    """Return the least text, by code point, above every text that starts with `prefix`; None if there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are not characters
        following = 0xE000
    return stem[:-1] + chr(following)


def _contains(column: InstrumentedAttribute[str], needle: str) -> _Predicate:
    return _position(column, literal(needle, String())) > 0 if needle else true()


class _position(FunctionElement[int]):  # noqa: N801  reads as the SQL function it is
    """The position, from 1, of one text in another, compared exactly; 0 if it is not there."""

    type = Integer()
    inherit_cache = True


@compiles(_position)
def _compile_position(element: _position, compiler: SQLCompiler, **options: Any) -> str:
    name = "strpos" if compiler.dialect.name == "postgresql" else "instr"
    return f"{name}({compiler.process(element.clauses, **options)})"


class _ending(FunctionElement[str]):  # noqa: N801  reads as the SQL function it is
    """The last so many code points of a text, or all of a shorter text."""

    type = String()
    inherit_cache = True


@compiles(_ending)
def _compile_ending(element: _ending, compiler: SQLCompiler, **options: Any) -> str:
    return f"right({compiler.process(element.clauses, **options)})"


@compiles(_ending, "sqlite")
def _compile_ending_for_sqlite(element: _ending, compiler: SQLCompiler, **options: Any) -> str:
    column, length = element.clauses
    return compiler.process(func.substr(column, -length), **options)


def _time_comparison(column: InstrumentedAttribute[int], comparator: str, field: Field, argument: Token) -> _Predicate:
    nanoseconds = _nanoseconds_from_token(field, argument)
    floor, rest = divmod(nanoseconds, 1_000)
    if not rest:
        return _OPERATORS[comparator](column, floor)  # type: ignore[no-any-return]
    # Stored times are whole microseconds: none equals this time, which lies between `floor` and the next.
    match comparator:
        case "=":
            return false()
        case "!=":
            return true()
        case "<" | "<=":
            return column <= floor
        case _:
            return column > floor


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
            "the text holds a control character, which no book does",
            column=_column(token),
            rule=Rule.CONTROL_CHARACTER,
        )
    open_start = characters[:1] == [("*", False)]
    open_end = characters[-1:] == [("*", False)]
    stem = text[open_start : len(text) - open_end]
    return _Text(unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", stem), open_start, open_end)


def _unescaped(text: str) -> list[tuple[str, bool]]:
    r"""Return the characters of a quoted text, each with whether a `\` escapes it."""
    characters = []
    rest = iter(text)
    for character in rest:
        characters.append((next(rest), True) if character == "\\" else (character, False))
    return characters


def _first_token(tree: Tree[Token]) -> Token:
    token = tree.children[0]
    assert isinstance(token, Token)  # noqa: S101  so the grammar ensures; this is for the type checker
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
