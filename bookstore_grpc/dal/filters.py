"""Filters: parses AIP-160 text into a SQL expression, in which callers' text is always a bound parameter.

The grammar is that of AIP-160 without functions and nested fields, which a Book does not have. Factors in sequence are
combined by AND.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
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

from bookstore_grpc.dal.folding import fold, fold_case
from bookstore_grpc.dal.models import COLUMNS, FOLDED_COLUMNS, head_column, ordered_column
from bookstore_grpc.dal.records import FIELDS, Field, FieldType
from bookstore_grpc.dal.search_index import Candidates, Indexed, all_of, any_of, needle
from bookstore_grpc.errors import InvalidFilter, Rule, quoted
from bookstore_grpc.limits import CONTROL_CHARACTER, FILTER_MAX_CODE_POINTS, FILTER_MAX_LEVELS, FILTER_MAX_TERMS

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

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
# What people call these fields.
_ALIASES = {"title": "name", "year": "release_year"}
_INTEGER_BITS = {FieldType.INT32: 32, FieldType.INT64: 64}

_INTEGER = re.compile(r"-?[0-9]+")
_YEAR = re.compile(r"[0-9]{4}")
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:[0-5]\d)", re.ASCII
)  # RFC 3339, section 5.6
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Predicate = ColumnElement[bool]


class Filter(NamedTuple):
    """The SQL condition of a filter, and a set of books which has all that meet it; None if no index finds one."""

    condition: ColumnElement[bool]
    candidates: Candidates | None = None


class _Text(NamedTuple):
    """The text of an argument; and for a wildcard pattern, the text without `*`, and at which ends it had one."""

    whole: str
    stem: str
    open_start: bool
    open_end: bool


def parse_filter(text: str, *, dialect: str) -> Filter:
    """Parse a filter. Raises `InvalidFilter`, which has the column of the error."""
    if len(text) > FILTER_MAX_CODE_POINTS:
        _reject(
            f"has {len(text):,} characters, more than {FILTER_MAX_CODE_POINTS:,}",
            column=FILTER_MAX_CODE_POINTS + 1,
            rule=Rule.TOO_LONG,
        )
    if not text.strip():
        return Filter(true())
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        _reject_syntax(text, error)
    terms = [*tree.find_data("restriction"), *tree.find_data("words")]
    if len(terms) > FILTER_MAX_TERMS:
        first_beyond = sorted(_first_token(term).start_pos or 0 for term in terms)[FILTER_MAX_TERMS]
        _reject(f"has more than {FILTER_MAX_TERMS} terms", column=first_beyond + 1, rule=Rule.TOO_MANY)
    return _expression(tree.children[0], level=0, dialect=dialect)


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer="contextual")


def _expression(tree: Any, *, level: int, dialect: str) -> Filter:
    factors = [
        _factor(factor, level=level, dialect=dialect) for sequence in tree.children for factor in sequence.children
    ]
    return Filter(and_(*(each.condition for each in factors)), all_of([each.candidates for each in factors]))


def _factor(tree: Any, *, level: int, dialect: str) -> Filter:
    terms = [_term(term, level=level, dialect=dialect) for term in tree.children]
    return Filter(or_(*(each.condition for each in terms)), any_of([each.candidates for each in terms]))


def _term(tree: Any, *, level: int, dialect: str) -> Filter:
    found = _simple(tree.children[-1], level=level, dialect=dialect)
    return Filter(not_(found.condition)) if len(tree.children) > 1 else found


def _simple(tree: Tree[Token], *, level: int, dialect: str) -> Filter:
    match tree.data:
        case "composite":
            left, expression, _right = tree.children
            if level == FILTER_MAX_LEVELS:
                _reject(
                    f"has more than {FILTER_MAX_LEVELS} levels of parentheses",
                    column=_column(left),
                    rule=Rule.TOO_MANY,
                )
            return _expression(expression, level=level + 1, dialect=dialect)
        case "words":
            return _words(_first_token(tree), dialect=dialect)
        case _:
            field, comparator, argument = map(_token, tree.children)
            return _restriction(field, comparator, argument, dialect=dialect)


def _words(token: Token, *, dialect: str) -> Filter:
    found = _containing(list(FOLDED_COLUMNS.values()), _text_from_token(token).whole, dialect=dialect)
    if not _YEAR.fullmatch(token):
        return found
    is_of_year = COLUMNS["release_year"] == int(token)
    return Filter(or_(found.condition, is_of_year), any_of([found.candidates, Indexed(is_of_year)]))


def _restriction(name: Token, comparator: Token, argument: Token, *, dialect: str) -> Filter:
    field = FIELDS.get(_ALIASES.get(name, name))
    if field is None:
        _reject(
            f"{quoted(name)} is not a field of a book; there are {', '.join(FIELDS)}",
            column=_column(name),
            rule=Rule.UNKNOWN_FIELD,
        )
    if comparator == ":":
        return _search(field, comparator, argument, dialect=dialect)
    if field.type is FieldType.TEXT:
        return _text_comparison(field.name, comparator, _text_from_token(argument), dialect=dialect)
    column = COLUMNS[field.name]
    if field.type is FieldType.TIME:
        return Filter(_time_comparison(column, comparator, field, argument))
    return Filter(_OPERATORS[comparator](column, _integer_from_token(field, argument)))


def _search(field: Field, comparator: Token, argument: Token, *, dialect: str) -> Filter:
    if not field.is_searchable:
        kind = "searched" if field.type is FieldType.TEXT else "text"
        _reject(
            f"':' searches text, and {field.name} is not {kind}; use =",
            column=_column(comparator),
            rule=Rule.INVALID_OPERATOR,
        )
    text = _text_from_token(argument)
    if argument == "*":  # AIP-160: the field is present
        return Filter(COLUMNS[field.name] != "" if field.is_optional else true())
    return _containing([FOLDED_COLUMNS[field.name]], text.whole, dialect=dialect)


def _containing(columns: Sequence[InstrumentedAttribute[str]], text: str, *, dialect: str) -> Filter:
    """Return the filter for texts that contain another, without regard to case and diacritics."""
    # The second is for texts that a server of the previous version has stored, and that are not yet complete.
    needles = dict.fromkeys([fold(text), fold_case(text)])
    return Filter(
        or_(*(_contains(column, each) for each in needles for column in columns)),
        any_of([needle(each, columns, dialect=dialect) for each in needles]),
    )


def _text_comparison(field: str, comparator: str, text: _Text, *, dialect: str) -> Filter:
    if comparator not in ("=", "!="):
        return Filter(_OPERATORS[comparator](ordered_column(field, dialect=dialect), text.whole))
    predicate = _text_equality(field, text, dialect=dialect)
    if comparator == "!=":
        return Filter(not_(predicate))
    return Filter(predicate, _containing_stem(field, text, dialect=dialect) if text.open_start else None)


def _containing_stem(field: str, text: _Text, *, dialect: str) -> Candidates | None:
    folded = fold(text.stem)
    if field not in FOLDED_COLUMNS or any(map(unicodedata.combining, folded)):  # next to other marks it could change
        return None
    return needle(folded, [FOLDED_COLUMNS[field]], dialect=dialect)


def _text_equality(field: str, text: _Text, *, dialect: str) -> _Predicate:
    if text.open_start and text.open_end:
        return _contains(COLUMNS[field], text.stem)
    if text.open_start:
        return _ending(COLUMNS[field], literal(len(text.stem), Integer())) == text.stem
    column, head = ordered_column(field, dialect=dialect), head_column(field, dialect=dialect)
    head_code_points = FIELDS[field].head_code_points
    if text.open_end:  # as a range, which can use an index and is the same on every database
        starts = _range(column, text.stem)
        return starts if head is None else and_(_range(head, text.stem[:head_code_points]), starts)
    equals = column == text.whole
    # The head is implied, and has an index.
    return equals if head is None else and_(head == text.whole[:head_code_points], equals)


def _range(column: InstrumentedAttribute[str], prefix: str) -> _Predicate:
    end = _successor(prefix)
    return column >= prefix if end is None else and_(column >= prefix, column < end)


def _successor(prefix: str) -> str | None:
    """Return the smallest text, by code point, greater than all that start with `prefix`; None if there is none."""
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
    """The position of one text in another, from 1, by exact comparison; 0 if it is absent."""

    type = Integer()
    inherit_cache = True


@compiles(_position)
def _compile_position(element: _position, compiler: SQLCompiler, **options: Any) -> str:
    name = "strpos" if compiler.dialect.name == "postgresql" else "instr"
    return f"{name}({compiler.process(element.clauses, **options)})"


class _ending(FunctionElement[str]):  # noqa: N801  reads as the SQL function it is
    """The given number of code points at the end of a text, or the whole text if it is shorter."""

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
    # Stored times are whole microseconds, so none equals this time, which is between `floor` and `floor + 1`.
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
