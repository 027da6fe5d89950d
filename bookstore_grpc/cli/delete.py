"""`bookstore delete`: deletes books by their ids, all or none, or all that match a filter."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from bookstore_grpc.cli.options import BOOK_ID
from bookstore_grpc.cli.outage import OutageRetry
from bookstore_grpc.cli.output import print_sample
from bookstore_grpc.cli.session import connection_options, count_with_noun, run_with_client, total_text
from bookstore_grpc.errors import DeadlineExceeded, Unavailable
from bookstore_grpc.limits import BATCH_MAX

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import PurgeBooksResponse

    from bookstore_grpc.client import BookstoreClient

_SAMPLE = 10
# Calls in sequence that delete nothing, although there are books to delete: each has spent its time on finding them.
_IDLE_CALLS_MAX = 3


@click.command()
@click.argument("ids", metavar="[ID...]", type=BOOK_ID, nargs=-1)
@click.option("--etag", default="", help="Delete the book only if this is its current etag.")
@click.option("--filter", help="Delete the books that match, such as 'release_year < 1900' (AIP-160).")
@click.option("--yes", is_flag=True, help="Delete the books that match without asking.")
@connection_options
def delete(*, ids: tuple[int, ...], etag: str, filter: str | None, yes: bool, **connection: Any) -> None:
    """Delete the books with the given ids, all or none, or those that match --filter.

    With --filter the command shows how many books match and some of them, and asks before it deletes any. It is not
    all or none: if it is interrupted, books that it deleted stay deleted, and the same command continues.
    """
    if bool(ids) == (filter is not None):
        raise click.UsageError("Give either the ids of books, or --filter.")
    if filter is None:
        _delete_ids(tuple(dict.fromkeys(ids)), etag, connection)
        return
    if etag:
        raise click.UsageError("--etag is for one ID.")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("--filter asks before it deletes, which takes a terminal; --yes deletes without asking.")
    progress = _Progress()

    async def work(client: "BookstoreClient") -> None:
        found = await client.purge_books(filter)
        if not found.purge_count:
            click.echo("No book matches.")
            return
        if not yes:
            _confirm(found)
        await _purge(client, filter, OutageRetry(connection["timeout_seconds"]), progress, found)
        click.echo(f"{progress.deleted_text.capitalize()} deleted.")

    try:
        run_with_client(work, **connection)
    except (click.ClickException, KeyboardInterrupt):
        if progress.has_begun:
            click.echo(f"Not finished: {progress.deleted_text} deleted. The same command continues.", err=True)
        raise


def _delete_ids(ids: tuple[int, ...], etag: str, connection: dict[str, Any]) -> None:
    if etag and len(ids) > 1:
        raise click.UsageError("--etag is for one ID.")
    if len(ids) > BATCH_MAX:
        raise click.UsageError(f"At most {BATCH_MAX:,} books can be deleted by their ids at once, all or none.")

    async def work(client: "BookstoreClient") -> None:
        if len(ids) == 1:
            await client.delete_book(ids[0], etag=etag)
            click.echo(f"Book {ids[0]} deleted.")
        else:
            await client.delete_books(ids)
            click.echo(f"{count_with_noun(len(ids), 'book')} deleted.")

    run_with_client(work, **connection)


def _confirm(found: "PurgeBooksResponse") -> None:
    """Show what would be deleted, and ask. Raises `click.Abort` unless the user agrees."""
    count = total_text(found.purge_count, is_exceeded=found.more_matching)
    sample = found.purge_sample[:_SAMPLE]
    print_sample(sample)
    if found.purge_count > len(sample):
        click.echo(f"These are the first {len(sample)} of {count}.", err=True)
    click.confirm(f"Delete {count}?", abort=True, err=True)


class _Progress:
    """How many books are deleted so far."""

    def __init__(self) -> None:
        self.has_begun = False
        self.deleted = 0
        self.is_incomplete = False  # the response of a call was lost, with the number of the books that it deleted

    @property
    def deleted_text(self) -> str:
        return f"{'at least ' if self.is_incomplete else ''}{count_with_noun(self.deleted, 'book')}"


async def _purge(
    client: "BookstoreClient", filter: str, retry: OutageRetry, progress: _Progress, found: "PurgeBooksResponse"
) -> None:
    progress.has_begun = True
    purge = partial(_purge_once, client, filter, progress)
    idle_calls = 0
    with _shown(found) as show:
        while idle_calls < _IDLE_CALLS_MAX:
            response = await retry(purge)
            progress.deleted += response.purge_count
            show(progress.deleted)
            if not response.more_matching:
                return
            idle_calls = 0 if response.purge_count else idle_calls + 1
    raise click.ClickException("Finding the books takes the whole time of a call; --timeout-seconds allows more.")


async def _purge_once(client: "BookstoreClient", filter: str, progress: _Progress) -> "PurgeBooksResponse":
    try:
        return await client.purge_books(filter, force=True)
    except (Unavailable, DeadlineExceeded):
        progress.is_incomplete = True
        raise


@contextmanager
def _shown(found: "PurgeBooksResponse") -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many books are deleted: as a bar, or as a count if more match than were counted."""
    is_terminal = sys.stderr.isatty()
    if not found.more_matching:
        with click.progressbar(
            length=found.purge_count, file=sys.stderr, label="Deleting", hidden=not is_terminal
        ) as bar:
            # Books may match by now that did not when they were counted.
            yield lambda deleted: bar.update(min(deleted, found.purge_count) - bar.pos)
        return
    try:
        yield lambda deleted: click.echo(f"\rDeleting  {deleted:,} books", nl=False, err=True) if is_terminal else None
    finally:
        if is_terminal:
            click.echo("\r\033[K", nl=False, err=True)
