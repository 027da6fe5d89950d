"""The verbs for single books and lists of books, and `health`. They need only the base install."""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from bookstore_grpc.cli.field_options import FieldsCommand
from bookstore_grpc.cli.options import BOOK_ID
from bookstore_grpc.cli.output import output_option, print_books
from bookstore_grpc.cli.session import connection_options, count_with_noun, run_with_client, total_text
from bookstore_grpc.limits import PAGE_SIZE_MAX

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import Book

    from bookstore_grpc.client import BookstoreClient


@click.command(cls=FieldsCommand, is_update=False)
@click.option("--request-id", help="Idempotency key (a UUID) that makes a retry safe.  [default: random]")
@output_option
@connection_options
def create(*, fields: Mapping[str, Any], request_id: str | None, output: str, **connection: Any) -> None:
    """Store a book and print it."""

    async def work(client: "BookstoreClient") -> None:
        book = await client.create_book(**fields, request_id=request_id)
        await print_books(_iterate([book]), output)

    run_with_client(work, **connection)


@click.command()
@click.argument("ids", metavar="ID...", type=BOOK_ID, nargs=-1, required=True)
@output_option
@connection_options
def get(*, ids: tuple[int, ...], output: str, **connection: Any) -> None:
    """Print books in the order of the given ids."""

    async def work(client: "BookstoreClient") -> None:
        await print_books(_iterate(await client.get_books(ids)), output)

    run_with_client(work, **connection)


@click.command("list")
@click.option(
    "--filter", default="", help="List the books that match, such as 'author:zola release_year < 1900' (AIP-160)."
)
@click.option("--order-by", default="", help="The order, such as 'release_year desc, name'.  [default: by id]")
@click.option(
    "--page-size",
    type=int,
    default=0,
    help="Books per call.  [default: 50, or 1000 with --all]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Print at most this many books.")
@click.option("--all", "everything", is_flag=True, help="Print all matching books, not only the first page.")
@output_option
@connection_options
def list_(
    *,
    filter: str,
    order_by: str,
    page_size: int,
    limit: int | None,
    everything: bool,
    output: str,
    **connection: Any,
) -> None:
    """Print books: the first page, up to --limit, or --all."""
    if everything and limit is not None:
        raise click.UsageError("--all and --limit are mutually exclusive.")

    async def work(client: "BookstoreClient") -> None:
        if everything or limit is not None:
            size = page_size or min(limit or PAGE_SIZE_MAX, PAGE_SIZE_MAX)
            books = client.list_books(filter=filter, order_by=order_by, page_size=size)
            await print_books(_first(books, limit), output)
            return
        page = await client.list_page(filter=filter, order_by=order_by, page_size=page_size, include_total=True)
        await print_books(_iterate(page.books), output)
        if page.next_page_token:
            # A server of an earlier version returns no total.
            count = total_text(page.total_size, is_exceeded=page.total_size_exceeded) if page.total_size else ""
            shown = f"{len(page.books)} of {count}" if count else count_with_noun(len(page.books), "book")
            click.echo(f"These are the first {shown}; use --all or --limit N for more.", err=True)

    run_with_client(work, **connection)


@click.command(cls=FieldsCommand, is_update=True)
@click.argument("book_id", metavar="ID", type=BOOK_ID)
@click.option("--etag", default="", help="Update the book only if this is its current etag.")
@output_option
@connection_options
def update(*, book_id: int, fields: Mapping[str, Any], etag: str, output: str, **connection: Any) -> None:
    """Update the given fields of a book and print it."""
    if all(value is None for value in fields.values()):
        *others, last = update.flags()
        raise click.UsageError(f"Nothing to update: give {', '.join(others)} or {last}.")

    async def work(client: "BookstoreClient") -> None:
        book = await client.update_book(book_id, **fields, etag=etag)
        await print_books(_iterate([book]), output)

    run_with_client(work, **connection)


@click.command()
@click.option("--service", default="", help="The service to check.  [default: the server as a whole]")
@connection_options
def health(*, service: str, **connection: Any) -> None:
    """Print the server's health; the exit status is 0 only if it is SERVING."""

    async def work(client: "BookstoreClient") -> None:
        status = await client.health(service)
        click.echo(status)
        if status != "SERVING":
            raise click.exceptions.Exit(1)

    run_with_client(work, **connection)


async def _iterate(books: "Iterable[Book]") -> "AsyncIterator[Book]":
    for book in books:
        yield book


async def _first(books: "AsyncIterator[Book]", limit: int | None) -> "AsyncIterator[Book]":
    count = 0
    async for book in books:
        yield book
        count += 1
        if count == limit:
            return
