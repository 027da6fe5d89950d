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

#: Titles and widths in terminal columns.
BOOK_COLUMNS = (("ID", 8), ("NAME", 44), ("AUTHOR", 30), ("YEAR", 6))


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
        _print_row([title for title, _ in BOOK_COLUMNS])
        async for book in books:
            _print_row(book_cells(book))


def print_sample(books: "Iterable[Book]") -> None:
    """Print some books as a table on standard error."""
    _print_row([title for title, _ in BOOK_COLUMNS], is_error=True)
    for book in books:
        _print_row(book_cells(book), is_error=True)


def book_cells(book: "Book") -> list[str]:
    """Return the cells of a book's row, for `BOOK_COLUMNS`."""
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
    click.echo(row_text(values, BOOK_COLUMNS), err=is_error)


def row_text(values: Iterable[str], columns: Iterable[tuple[str, int]]) -> str:
    """Return a row of a table, each cell padded or truncated to its column."""
    cells = [cell_text(value, width) for value, (_, width) in zip(values, columns, strict=True)]
    return "  ".join(cells).rstrip()


def cell_text(text: str, width: int) -> str:
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
