"""Prints books as a table, JSON or CSV."""

import csv
import json
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import Book

_COLUMNS = (("ID", 8), ("NAME", 44), ("AUTHOR", 30), ("YEAR", 6))


def output_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option --output to a verb."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json", "csv"]),
        default="table",
        show_default=True,
        help="The format: a table (long texts truncated), a JSON array, or CSV with a header.",
    )(command)


async def print_books(books: "AsyncIterator[Book]", output: str) -> None:
    """Print books as they arrive."""
    if output == "json":
        await _print_json(books)
    elif output == "csv":
        from bookstore_grpc.client.book_fields import FIELDS

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(field.name for field in FIELDS)
        async for book in books:
            writer.writerow(_values_from_book(book).values())
    else:
        _print_row([title for title, _ in _COLUMNS])
        async for book in books:
            _print_row(_cells(book))


def print_sample(books: "Iterable[Book]") -> None:
    """Print some books as a table on standard error."""
    _print_row([title for title, _ in _COLUMNS], is_error=True)
    for book in books:
        _print_row(_cells(book), is_error=True)


def _cells(book: "Book") -> list[str]:
    return [str(book.id), book.name, book.author, str(book.release_year)]


def _values_from_book(book: "Book") -> dict[str, Any]:
    from bookstore_grpc.client.book_fields import FIELDS

    # The fields that are messages are times.
    return {
        field.name: getattr(book, field.name).ToJsonString() if field.message_type else getattr(book, field.name)
        for field in FIELDS
    }


async def _print_json(books: "AsyncIterator[Book]") -> None:
    separator = "[\n"
    async for book in books:
        click.echo(separator + json.dumps(_values_from_book(book), ensure_ascii=False), nl=False)
        separator = ",\n"
    click.echo("[]" if separator == "[\n" else "\n]")


def _print_row(values: list[str], *, is_error: bool = False) -> None:
    cells = [_cell(value, width) for value, (_, width) in zip(values, _COLUMNS, strict=True)]
    click.echo("  ".join(cells).rstrip(), err=is_error)


def _cell(text: str, width: int) -> str:
    """Return text truncated or padded to a width in terminal columns."""
    shown, used = "", 0
    for character in text:
        columns = _columns(character)
        if used + columns > width:
            while used > width - 1:
                used -= _columns(shown[-1])
                shown = shown[:-1]
            return shown + "…" + " " * (width - used - 1)
        shown, used = shown + character, used + columns
    return shown + " " * (width - used)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
