"""`bookstore import` and `bookstore export`: many books at once, from files and to them."""

import asyncio
import csv
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import file_digest
from io import BufferedRandom, BufferedReader, TextIOWrapper
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from bookstore_grpc.cli.rows import (
    FIELDS,
    FileFormat,
    Row,
    book_from_row,
    book_writer,
    file_format,
    read_rows,
)
from bookstore_grpc.cli.session import connection_options, run_with_client, shown_count
from bookstore_grpc.errors import DeadlineExceeded, InvalidRequest, RequestTooLarge, ResourceExhausted, Unavailable
from bookstore_grpc.limits import PAGE_SIZE_MAX

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import Book

    from bookstore_grpc.client import BookstoreClient

# Batches of this size already spend their time in the database; smaller ones lose less to an interruption.
_BATCH_ROWS = 500
# Well under what the server accepts, so that a batch of long texts is no larger than it may be.
_BATCH_BYTES = 2 * 1024 * 1024
_REFUSALS_SHOWN = 20
# A minute by default. What takes longer wants somebody to look.
_OUTAGE_TIMEOUTS = 6
_OUTAGE_WAIT_SECONDS = 1

# The namespace of the request ids that imports derive; changing it would make every import a new one.
_NAMESPACE = uuid.UUID("5d0dbb0e-6d0c-4c53-8d4c-2f1f2bd4d9a7")
_VIOLATED_ROW = re.compile(r"requests\[(\d+)\]\.(?:book\.)?(.+)")

_Answer = TypeVar("_Answer")
_Bytes = BufferedReader | BufferedRandom

_format_option = click.option(
    "--format",
    "chosen_format",
    type=click.Choice(["csv", "jsonl"]),
    help="The format.  [default: by the file's name]",
)


class _Entry(NamedTuple):
    """A row on its way into the catalogue, with the id that makes sending it again safe."""

    row: Row
    book: "Book"
    request_id: str


class _Refusals:
    """Counts the rows that were refused, and writes them down with line and reason."""

    def __init__(self, report: IO[str] | None) -> None:
        self.count = 0
        self._writer = csv.writer(report) if report else None
        if self._writer:
            self._writer.writerow(["line", "reason", *FIELDS])

    def add(self, row: Row, reason: str) -> None:
        self.count += 1
        if self._writer:
            self._writer.writerow([row.line, reason, *(row.values.get(field, "") for field in FIELDS)])
        elif self.count <= _REFUSALS_SHOWN:
            click.echo(f"Line {row.line}: {reason}.", err=True)
        elif self.count == _REFUSALS_SHOWN + 1:
            click.echo("More rows are refused; --rejects FILE lists them all.", err=True)


class _Patience:
    """Lets an import or export that has begun outlast a restart of the server, its host or its database.

    `timeout_seconds` is what the client gives each call; an outage may take `_OUTAGE_TIMEOUTS` times as long, and at
    least so long that there is another try.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._outage_seconds = max(_OUTAGE_TIMEOUTS * timeout_seconds, 2 * _OUTAGE_WAIT_SECONDS)

    async def __call__(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Make a call that may be sent any number of times. Raises what ends it when the outage is too long."""
        give_up_at: float | None = None
        while True:
            began = time.monotonic()
            try:
                return await call()
            except (Unavailable, DeadlineExceeded):
                if give_up_at is None:
                    give_up_at = began + self._outage_seconds
                    shown = f"{self._outage_seconds:,.1f}".removesuffix(".0")
                    click.echo(f"The service does not answer; trying for {shown} s.", err=True)
                if time.monotonic() + _OUTAGE_WAIT_SECONDS >= give_up_at:
                    raise
            await asyncio.sleep(_OUTAGE_WAIT_SECONDS)


@click.command("import")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--rejects", type=click.Path(dir_okay=False, writable=True), help="Write refused rows to this CSV file.")
@_format_option
@connection_options
def import_(*, path: str, rejects: str | None, chosen_format: FileFormat | None, **where: Any) -> None:
    """Store the books of a CSV or JSON Lines file; "-" is standard input.

    CSV starts with a header that names name, author and release_year; other columns are left aside. Rows that
    break a rule are refused one by one, all others are stored. A server that restarts meanwhile is waited for. Running
    the same file again, after an interruption for instance, stores nothing twice (for at least 24 hours). Exit status 1
    when rows were refused.
    """
    kind = file_format(path, chosen_format)
    if rejects and os.path.exists(rejects) and os.path.exists(path) and os.path.samefile(rejects, path):
        raise click.UsageError("--rejects would overwrite the file that is imported.")
    with _seekable(path) as file, _report(rejects) as report:
        refusals = _Refusals(report)

        async def work(client: "BookstoreClient") -> None:
            await _import(client, _Patience(where["timeout_seconds"]), file, kind, refusals)

        try:
            run_with_client(work, **where)
        except (click.ClickException, KeyboardInterrupt):
            click.echo("Not finished. Run the same command again to go on; nothing is stored twice.", err=True)
            raise
    if refusals.count:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, writable=True, allow_dash=True))
@click.option("--filter", default="", help="Which books (AIP-160).  [default: all]")
@click.option("--order-by", default="", help="The order.  [default: by id]")
@_format_option
@connection_options
def export(*, path: str, filter: str, order_by: str, chosen_format: FileFormat | None, **where: Any) -> None:
    """Write the books, as `import` reads them, to a CSV or JSON Lines file; "-" is standard output.

    The file appears only when it is whole.
    """
    kind = file_format(path, chosen_format)
    outlast = _Patience(where["timeout_seconds"])
    with _whole_file(path) as file:

        async def work(client: "BookstoreClient") -> None:
            count = await _export(_books(client, outlast, filter=filter, order_by=order_by), file, kind)
            click.echo(f"{shown_count(count, 'book')} exported.", err=True)

        run_with_client(work, **where)


async def _import(
    client: "BookstoreClient", outlast: _Patience, file: _Bytes, kind: FileFormat, refusals: _Refusals
) -> None:
    highest_id = await _highest_id(client)
    digest = file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    stored = new = 0
    with click.progressbar(length=size, file=sys.stderr, label="Importing", hidden=not sys.stderr.isatty()) as bar:
        for entries in _batches(_entries(file, kind, digest, refusals)):
            books = await _store(client, outlast, entries, refusals)
            stored += len(books)
            new += sum(book.id > highest_id for book in books)
            bar.update(file.tell() - bar.pos)
        bar.update(size - bar.pos)
    click.echo(
        f"{shown_count(stored, 'book')} stored, {new:,} of them new; {shown_count(refusals.count, 'row')} refused.",
        err=True,
    )


async def _highest_id(client: "BookstoreClient") -> int:
    """Answer an id that every book stored from now on is above."""
    page = await client.list_page(order_by="id desc", page_size=1)
    return page.books[0].id if page.books else 0


def _entries(file: _Bytes, kind: FileFormat, digest: str, refusals: _Refusals) -> Iterator[_Entry]:
    lines = TextIOWrapper(file, encoding="utf-8-sig", newline="" if kind == "csv" else None)
    try:
        for number, row in enumerate(read_rows(lines, kind)):
            try:
                if row.problem:
                    raise ValueError(row.problem)
                book = book_from_row(row)
            except ValueError as error:
                refusals.add(row, str(error))
            else:
                yield _Entry(row, book, str(uuid.uuid5(_NAMESPACE, f"{digest}:{number}")))
    except UnicodeDecodeError as error:
        raise click.ClickException(f"The file is not UTF-8 text: {error.reason} in it.") from error
    finally:
        lines.detach()


def _batches(entries: Iterator[_Entry]) -> Iterator[list[_Entry]]:
    batch: list[_Entry] = []
    size = 0
    for entry in entries:
        entry_size = entry.book.ByteSize()
        if batch and (len(batch) == _BATCH_ROWS or size + entry_size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry_size
    if batch:
        yield batch


async def _store(
    client: "BookstoreClient", outlast: _Patience, entries: list[_Entry], refusals: _Refusals
) -> "Sequence[Book]":
    """Store a batch: what the server refuses is noted and left out, and the rest is sent again."""
    stored: list[Book] = []
    size = size_max = len(entries)
    while entries:
        part = entries[:size]
        try:
            # Never stored twice, however often it is sent.
            create = partial(
                client.create_books, [entry.book for entry in part], request_ids=[entry.request_id for entry in part]
            )
            stored += await outlast(create)
            entries = entries[size:]
            size = min(2 * size, size_max)
        except (RequestTooLarge, ResourceExhausted) as error:
            # A reason of the latter would tell of a limit on calls; without one gRPC itself found the message too long.
            if isinstance(error, ResourceExhausted) and error.reason:
                raise
            if len(part) > 1:
                size = size_max = len(part) // 2
                continue
            # It is this row that the server does not take.
            refusals.add(entries[0].row, error.message.rstrip("."))
            entries = entries[1:]
        except InvalidRequest as error:
            reasons = _reasons_by_index(error)
            if not reasons:
                raise
            if error.omitted_count:
                # Where bad rows are many, fewer are sent at once: an answer tells only of the first ones anyway.
                size = max(1, size // 2)
                if len(reasons) > 1:
                    # What is told of the last one may not be all: ask again.
                    del reasons[max(reasons)]
            for index, reason in sorted(reasons.items()):
                refusals.add(entries[index].row, reason)
            entries = [entry for index, entry in enumerate(entries) if index not in reasons]
    return stored


def _reasons_by_index(error: InvalidRequest) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for field, description, _ in error.violations:
        if found := _VIOLATED_ROW.fullmatch(field):
            index = int(found[1])
            before = f"{reasons[index]}; " if index in reasons else ""
            reasons[index] = f"{before}{found[2]}: {description}"
    return reasons


async def _books(client: "BookstoreClient", outlast: _Patience, *, filter: str, order_by: str) -> "AsyncIterator[Book]":
    """Walk over all books that match. What keeps the first page away ends the walk at once."""
    ask = partial(client.list_page, filter=filter, order_by=order_by, page_size=PAGE_SIZE_MAX)
    page = await ask()
    while True:
        for book in page.books:
            yield book
        if not page.next_page_token:
            return
        page = await outlast(partial(ask, page_token=page.next_page_token))


async def _export(books: "AsyncIterator[Book]", file: IO[str], kind: FileFormat) -> int:
    """Write books as they come and answer how many they were."""
    write = book_writer(file, kind)
    # How far it is to the end the server does not say, so a terminal is shown how far it has come.
    is_shown = sys.stderr.isatty()
    count = 0
    async for book in books:
        write(book)
        count += 1
        if is_shown and count % 1_000 == 0:
            click.echo(f"\rExporting  {count:,} books", nl=False, err=True)
    if is_shown:
        click.echo("\r\033[K", nl=False, err=True)
    return count


@contextmanager
def _seekable(path: str) -> Iterator[_Bytes]:
    """Open a file that is read twice: once for its digest, once for its rows."""
    if path != "-":
        with open(path, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.seek(0)
        yield spool


@contextmanager
def _report(path: str | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    # What a message cannot hold, half of a surrogate pair, must not end the import when it is reported.
    with _writable(path, errors="backslashreplace") as file:
        yield file


@contextmanager
def _whole_file(path: str) -> Iterator[IO[str]]:
    """Open a file that takes its name, and the place of an older one, only when it is whole."""
    if path == "-":
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]  # a TextIOWrapper in a command
        yield sys.stdout
        sys.stdout.flush()
        return
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with _writable(target) as file:  # a device or a pipe
            yield file
        return
    part = f"{target}.part"
    try:
        with _writable(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise


def _writable(path: str, *, errors: str = "strict") -> IO[str]:
    try:
        return open(path, "w", encoding="utf-8", newline="", errors=errors)
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror}.") from error
