"""`bookstore export`: writes all books that match to a file."""

import sys
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from bookstore_grpc.cli.files import atomic_file
from bookstore_grpc.cli.outage import OutageRetry
from bookstore_grpc.cli.rows import FileFormat, book_writer, file_format, format_option
from bookstore_grpc.cli.session import connection_options, count_with_noun, run_with_client
from bookstore_grpc.limits import PAGE_SIZE_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bookstore.v1.books_pb2 import Book

    from bookstore_grpc.client import BookstoreClient


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, writable=True, allow_dash=True))
@click.option("--filter", default="", help="Export the books that match (AIP-160).  [default: all]")
@click.option("--order-by", default="", help="The order of the books.  [default: by id]")
@format_option
@connection_options
def export(*, path: str, filter: str, order_by: str, chosen_format: FileFormat | None, **connection: Any) -> None:
    """Write books to a CSV or JSON Lines file that `import` can read; "-" is standard output.

    FILE appears only when it is complete.
    """
    kind = file_format(path, chosen_format)
    retry = OutageRetry(connection["timeout_seconds"])
    with atomic_file(path) as file:

        async def work(client: "BookstoreClient") -> None:
            count = await _export(_books(client, retry, filter=filter, order_by=order_by), file, kind)
            click.echo(f"{count_with_noun(count, 'book')} exported.", err=True)

        run_with_client(work, **connection)


async def _books(client: "BookstoreClient", retry: OutageRetry, *, filter: str, order_by: str) -> "AsyncIterator[Book]":
    """Yield all books that match. An error of the first page is raised without retries."""
    list_page = partial(client.list_page, filter=filter, order_by=order_by, page_size=PAGE_SIZE_MAX)
    page = await list_page()
    while True:
        for book in page.books:
            yield book
        if not page.next_page_token:
            return
        page = await retry(partial(list_page, page_token=page.next_page_token))


async def _export(books: "AsyncIterator[Book]", file: IO[str], kind: FileFormat) -> int:
    """Write books as they arrive and return their number."""
    write = book_writer(file, kind)
    # The total is unknown, so a terminal shows a count instead of a progress bar.
    is_terminal = sys.stderr.isatty()
    count = 0
    async for book in books:
        write(book)
        count += 1
        if is_terminal and count % 1_000 == 0:
            click.echo(f"\rExporting  {count:,} books", nl=False, err=True)
    if is_terminal:
        click.echo("\r\033[K", nl=False, err=True)
    return count
