"""`bookstore watch`: prints the changes of books as they are committed, until it is stopped."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from bookstore_grpc.cli.output import BOOK_COLUMNS, book_cells, cell_text, row_text
from bookstore_grpc.cli.session import (
    connection_options,
    discard_output,
    message_from_error,
    report_outage,
    run_with_client,
)
from bookstore_grpc.errors import BookstoreError, ResumeTokenExpired

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import Book

    from bookstore_grpc.client import BookstoreClient, BookWatch, WatchedChange

_COLUMNS = (("TIME", 20), ("TYPE", 8), *BOOK_COLUMNS)
_OLD_VALUE_COLUMNS = 44
# Fields that differ after every update.
_ALWAYS_CHANGED = ("update_time", "etag")
# The exit status of a shell for a command that a signal has ended.
_SIGNAL_STATUS = 128


@click.command()
@click.option("--filter", default="", help="Watch the books that match, before or after a change (AIP-160).")
@click.option("--since", metavar="TOKEN", help="Continue after the change that had this resume token.")
@click.option("--existing", is_flag=True, help="First print the books that exist, as changes of the type EXISTING.")
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="The format: a table (long texts truncated), or JSON Lines with the resume token of each change.",
)
@connection_options
def watch(*, filter: str, since: str | None, existing: bool, output: str, **connection: Any) -> None:
    """Print the changes of books as they are committed, until Ctrl-C.

    Through restarts of servers and lost connections it goes on without missing or repeating a change. At its end it
    prints how to continue later. --timeout-seconds is the time that connecting may take at first.

    \b
    Examples:
      bookstore watch --filter 'author:zola'
      bookstore watch --existing --output json | jq .book.name
      bookstore watch --since TOKEN
    """  # noqa: D301  a mark for click, which keeps the lines that follow
    if since is not None and existing:
        raise click.UsageError("--since and --existing are mutually exclusive.")
    if since is not None and not since.strip():
        raise click.UsageError("--since is empty: give it a token, or leave it out.")
    print_change = _print_json if output == "json" else _print_row

    async def work(client: "BookstoreClient") -> None:
        changes = client.watch_books(
            filter=filter,
            resume_token=since or "",
            start="existing" if existing else "now",
            on_outage=report_outage,
        )
        if output == "table":
            click.echo(row_text((title for title, _ in (*_COLUMNS, ("CHANGED", 0))), (*_COLUMNS, ("CHANGED", 7))))
        with _closed_by_signals(changes) as received:
            try:
                async for change in changes:
                    print_change(change)
            except ResumeTokenExpired as error:
                raise click.ClickException(_expired_text(error, server=client.server)) from error
            except BookstoreError:
                _print_how_to_continue(changes, since)
                raise
        if signal.SIGPIPE not in received:
            _print_how_to_continue(changes, since)
        raise click.exceptions.Exit(_SIGNAL_STATUS + received[0])

    try:
        run_with_client(work, **connection)
    except BrokenPipeError:  # printing was faster than `_closed_by_signals`
        discard_output()
        raise click.exceptions.Exit(_SIGNAL_STATUS + signal.SIGPIPE) from None


@contextmanager
def _closed_by_signals(changes: "BookWatch") -> Iterator[list[int]]:
    """Let SIGINT, SIGTERM and the end of the pipe's reader end the watch. Yields a list for the signal.

    Without a change a closed pipe would not be noticed, and `bookstore watch | head -1` would not end.
    """
    loop, received = asyncio.get_running_loop(), list[int]()
    closing: set[asyncio.Task[None]] = set()  # which the event loop does not keep alive

    def close(number: int) -> None:
        received.append(number)
        closing.add(loop.create_task(changes.aclose()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, close, number)
    pipe = _pipe_of_output()
    if pipe is not None:
        loop.add_reader(pipe, close, signal.SIGPIPE)
    try:
        yield received
    finally:
        if pipe is not None:
            loop.remove_reader(pipe)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _pipe_of_output() -> int | None:
    """Return the descriptor of standard output if that is a pipe. It becomes readable when its reader has closed it."""
    try:
        descriptor = sys.stdout.fileno()
        return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):  # replaced by a buffer
        return None


def _print_json(change: "WatchedChange") -> None:
    from google.protobuf.json_format import MessageToDict

    fields = {**MessageToDict(change.message), "resumeToken": change.resume_token}
    click.echo(json.dumps(fields, ensure_ascii=False))


def _print_row(change: "WatchedChange") -> None:
    from bookstore.v1.books_pb2 import BookChange

    at = f"{change.change_time.ToDatetime():%Y-%m-%dT%H:%M:%SZ}" if change.change_time else ""
    row = row_text([at, BookChange.Type.Name(change.type), *book_cells(change.book)], _COLUMNS)
    if change.previous_book is not None:
        width = sum(width + 2 for _, width in _COLUMNS)
        row = f"{cell_text(row, width)}{_changed_text(change.previous_book, change.book)}"
    click.echo(row.rstrip())


def _changed_text(before: "Book", after: "Book") -> str:
    """Return which fields an update changed, with their values before it."""
    changed = [
        field.name
        for field in after.DESCRIPTOR.fields
        if field.name not in _ALWAYS_CHANGED and getattr(before, field.name) != getattr(after, field.name)
    ]
    old_values = (cell_text(str(getattr(before, name)), _OLD_VALUE_COLUMNS).rstrip() for name in changed)
    return "; ".join(f"{name} was {value}" for name, value in zip(changed, old_values, strict=True))


def _expired_text(error: ResumeTokenExpired, *, server: str) -> str:
    return f"{message_from_error(error, server=server)} Leave out --since; --existing prints all books first."


def _print_how_to_continue(changes: "BookWatch", since: str | None) -> None:
    if changes.resume_token and changes.resume_token != since:
        click.echo(f"To continue: --since {changes.resume_token}", err=True)
