"""Reads and writes the rows of CSV and JSON Lines files."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import click

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import Book

FileFormat = Literal["csv", "jsonl"]

_SUFFIXES: dict[str, FileFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
format_option = click.option(
    "--format",
    "chosen_format",
    type=click.Choice(["csv", "jsonl"]),
    help="The file's format.  [default: by its suffix]",
)

_INTEGER = re.compile(r"[+-]?[0-9]+")
_INT32 = range(-(2**31), 2**31)
# Let the server reject a long field with a reason for its row; csv's default limit would fail the whole import.
_FIELD_MAX_BYTES = 64 * 1024 * 1024


class Row(NamedTuple):
    """A row of a file: the line it starts at, its raw values, and the problem if it cannot be read."""

    line: int
    values: dict[str, Any]
    problem: str | None = None


def file_format(path: str, chosen: FileFormat | None) -> FileFormat:
    """Return the chosen format, or else the one of the file's suffix; CSV for a standard stream."""
    if chosen:
        return chosen
    if path == "-":
        return "csv"
    for suffix, known in _SUFFIXES.items():
        if path.lower().endswith(suffix):
            return known
    raise click.UsageError(
        f"Cannot tell the format of {path}: use a suffix of {', '.join(_SUFFIXES)}, or give --format."
    )


def read_rows(lines: Iterable[str], file_format: FileFormat) -> Iterator[Row]:
    """Yield rows; an unreadable row has a `problem`. Raises `click.ClickException` if the file itself is invalid."""
    return _read_csv(lines) if file_format == "csv" else _read_json_lines(lines)


def book_from_row(row: Row) -> "Book":
    """Return a row as a message. Raises `ValueError` with a description for values that a message cannot hold.

    Absent fields stay absent: the server decides which are required.
    """
    from bookstore.v1.books_pb2 import Book

    from bookstore_grpc.client.book_fields import SETTABLE_FIELDS

    book = Book()
    for field in SETTABLE_FIELDS:
        value = row.values.get(field.name)
        if field.is_text:
            _set_text(book, field.name, value)
        elif value not in (None, ""):
            setattr(book, field.name, _integer(field.name, value))
    return book


def column_names() -> list[str]:
    """Return the columns of a file: the settable fields of a book."""
    from bookstore_grpc.client.book_fields import SETTABLE_FIELDS

    return [field.name for field in SETTABLE_FIELDS]


def book_writer(file: IO[str], file_format: FileFormat) -> "Callable[[Book], object]":
    """Write the header of a file, if any, and return a function that writes one book."""
    names = column_names()
    if file_format == "jsonl":
        return lambda book: file.write(json.dumps(_values(book, names), ensure_ascii=False) + "\n")
    writer = csv.writer(file)  # RFC 4180: lines end with CRLF
    writer.writerow(names)
    return lambda book: writer.writerow(_values(book, names).values())


def _values(book: "Book", names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(book, name) for name in names}


def _set_text(book: "Book", field: str, value: Any) -> None:
    if not isinstance(value, str | None):
        raise ValueError(f"{field}: is not text")
    try:
        setattr(book, field, value or "")
    except ValueError:
        raise ValueError(f"{field}: contains half of a surrogate pair") from None


def _integer(field: str, value: Any) -> int:
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, bool) or not (isinstance(text, int) or (isinstance(text, str) and _INTEGER.fullmatch(text))):
        raise ValueError(f"{field}: is {str(value)[:40]!r}, not a whole number")
    # Python refuses to parse very long numbers.
    if len(str(text)) > 20 or int(text) not in _INT32:
        raise ValueError(f"{field}: is {str(text)[:20]}, out of range")
    return int(text)


def _required_columns() -> list[str]:
    from bookstore_grpc.client.book_fields import SETTABLE_FIELDS

    return [field.name for field in SETTABLE_FIELDS if field.is_required]


def _read_csv(lines: Iterable[str]) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_MAX_BYTES)
    reader = csv.reader(lines)
    try:
        header = [title.strip().lower() for title in next(reader, [])]
        required = _required_columns()
        if missing := [name for name in required if name not in header]:
            raise click.ClickException(
                f"The first line must name the columns {', '.join(required)}; missing: {', '.join(missing)}."
            )
        line = reader.line_num + 1
        for cells in reader:
            values = dict(zip(header, cells, strict=False))
            if len(cells) > len(header):
                yield Row(line, values, f"has {len(cells)} columns, more than the header's {len(header)}")
            elif cells:
                yield Row(line, values)
            line = reader.line_num + 1
    except csv.Error as error:
        raise click.ClickException(f"Line {reader.line_num} is not CSV: {error}.") from error


def _read_json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            yield Row(line, {}, "is not JSON")
            continue
        yield Row(line, values) if isinstance(values, dict) else Row(line, {}, "is not a JSON object")
