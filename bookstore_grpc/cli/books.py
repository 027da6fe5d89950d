"""The verbs for single books and lists of books, and `health`. They need only the base install."""

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import click

from bookstore_grpc.cli.output import output_option, print_books
from bookstore_grpc.cli.session import connection_options, run_with_client
from bookstore_grpc.limits import PAGE_SIZE_MAX

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import Book

    from bookstore_grpc.client import BookstoreClient

_YEAR = click.IntRange(-(2**31), 2**31 - 1)
_ID = click.IntRange(-(2**63), 2**63 - 1)


@click.command()
@click.option("--name", required=True, help="The title.")
@click.option("--author", required=True, help="The author.")
@click.option("--release-year", type=_YEAR, required=True, help="The year of the first release; negative for BCE.")
@click.option("--request-id", help="Idempotency key (a UUID) that makes a retry safe.  [default: random]")
@output_option
@connection_options
def create(
    *, name: str, author: str, release_year: int, request_id: str | None, output: str, **connection: Any
) -> None:
    """Store a book and print it."""

    async def work(client: "BookstoreClient") -> None:
        book = await client.create_book(name=name, author=author, release_year=release_year, request_id=request_id)
        await print_books(_iterate([book]), output)

    run_with_client(work, **connection)


@click.command()
@click.argument("ids", metavar="ID...", type=_ID, nargs=-1, required=True)
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
        page = await client.list_page(filter=filter, order_by=order_by, page_size=page_size)
        await print_books(_iterate(page.books), output)
        if page.next_page_token:
            click.echo(f"These are the first {len(page.books)} books; use --all or --limit N for more.", err=True)

    run_with_client(work, **connection)


@click.command()
@click.argument("book_id", metavar="ID", type=_ID)
@click.option("--name", help="The new title.")
@click.option("--author", help="The new author.")
@click.option("--release-year", type=_YEAR, help="The new year.")
@click.option("--etag", default="", help="Update the book only if this is its current etag.")
@output_option
@connection_options
def update(
    *,
    book_id: int,
    name: str | None,
    author: str | None,
    release_year: int | None,
    etag: str,
    output: str,
    **connection: Any,
) -> None:
    """Update the given fields of a book and print it."""
    if name is None and author is None and release_year is None:
        raise click.UsageError("Nothing to update: give --name, --author or --release-year.")

    async def work(client: "BookstoreClient") -> None:
        book = await client.update_book(book_id, name=name, author=author, release_year=release_year, etag=etag)
        await print_books(_iterate([book]), output)

    run_with_client(work, **connection)


@click.command()
@click.argument("book_id", metavar="ID", type=_ID)
@click.option("--etag", default="", help="Delete the book only if this is its current etag.")
@connection_options
def delete(*, book_id: int, etag: str, **connection: Any) -> None:
    """Delete a book."""

    async def work(client: "BookstoreClient") -> None:
        await client.delete_book(book_id, etag=etag)
        click.echo(f"Book {book_id} deleted.")

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
