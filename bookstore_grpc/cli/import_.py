"""`bookstore import`: stores the books of a file in batches, with idempotency keys derived from the file."""

import asyncio
import csv
import os
import re
import sys
import uuid
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from hashlib import file_digest
from io import TextIOWrapper
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

from bookstore_grpc.cli.files import SeekableFile, rejects_file, seekable_file
from bookstore_grpc.cli.outage import OutageRetry
from bookstore_grpc.cli.rows import FileFormat, Row, book_from_row, column_names, file_format, format_option, read_rows
from bookstore_grpc.cli.session import connection_options, count_with_noun, run_with_client
from bookstore_grpc.errors import BookstoreError, InvalidRequest, RequestTooLarge, ResourceExhausted

if TYPE_CHECKING:
    from bookstore.v1.books_pb2 import Book

    from bookstore_grpc.client import BookstoreClient

# Larger batches gain nothing, since the database dominates, and lose more when interrupted.
_BATCH_ROWS = 500
# While the server commits two of them together, two more are on their way or read from the file.
_BATCHES_IN_FLIGHT = 4
# Well below the server's limit, so that a batch of long texts fits.
_BATCH_BYTES = 2 * 1024 * 1024
_REJECTS_SHOWN = 20

# The UUID namespace of the idempotency keys. Changing it would make every repeated import store its books again.
_NAMESPACE = uuid.UUID("5d0dbb0e-6d0c-4c53-8d4c-2f1f2bd4d9a7")
_VIOLATED_ROW = re.compile(r"requests\[(\d+)\]\.(?:book\.)?(.+)")


@click.command("import")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--rejects", type=click.Path(dir_okay=False, writable=True), help="Write rejected rows to this CSV file.")
@format_option
@connection_options
def import_(*, path: str, rejects: str | None, chosen_format: FileFormat | None, **connection: Any) -> None:
    """Store the books of a CSV or JSON Lines file; "-" is standard input.

    A CSV file starts with a header that names name, author and release_year; columns that are no field of a book are
    ignored. Invalid rows are rejected one by one, and all others are stored. If the server restarts, the import waits
    for it. Importing the same file again, after an interruption for example, stores nothing twice (for at least 24
    hours). The exit status is 1 if any row was rejected.
    """
    kind = file_format(path, chosen_format)
    if rejects and os.path.exists(rejects) and os.path.exists(path) and os.path.samefile(rejects, path):
        raise click.UsageError("--rejects would overwrite the imported file.")
    with seekable_file(path) as file, rejects_file(rejects) as report:
        rejected = _Rejects(report)

        async def work(client: "BookstoreClient") -> None:
            await _import(client, OutageRetry(connection["timeout_seconds"]), file, kind, rejected)

        try:
            run_with_client(work, **connection)
        except (click.ClickException, KeyboardInterrupt):
            click.echo("Not finished. Run the same command again to continue; nothing is stored twice.", err=True)
            raise
    if rejected.count:
        raise click.exceptions.Exit(1)


class _Entry(NamedTuple):
    """A row to store, with the idempotency key that makes retries safe."""

    row: Row
    book: "Book"
    request_id: str


class _Rejected(NamedTuple):
    """A rejected row, and why."""

    row: Row
    reason: str


class _Batch(NamedTuple):
    """Rows to store in one call, those before and among them that cannot be sent, and where the file continues."""

    entries: list[_Entry]
    rejected: list[_Rejected]
    end: int


class _Rejects:
    """Counts the rejected rows and reports each with its line and reason."""

    def __init__(self, report: IO[str] | None) -> None:
        self.count = 0
        self._columns = column_names()
        self._writer = csv.writer(report) if report else None
        if self._writer:
            self._writer.writerow(["line", "reason", *self._columns])

    def add(self, rejected: _Rejected) -> None:
        row, reason = rejected
        self.count += 1
        if self._writer:
            self._writer.writerow([row.line, reason, *(row.values.get(name, "") for name in self._columns)])
        elif self.count <= _REJECTS_SHOWN:
            click.echo(f"Line {row.line}: {reason}.", err=True)
        elif self.count == _REJECTS_SHOWN + 1:
            click.echo("More rows were rejected; --rejects FILE lists all of them.", err=True)


async def _import(
    client: "BookstoreClient", retry: OutageRetry, file: SeekableFile, kind: FileFormat, rejects: _Rejects
) -> None:
    highest_id = await _highest_id(client)
    digest = file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    stored = new = 0
    with (
        closing(_entries(file, kind, digest)) as rows,
        click.progressbar(length=size, file=sys.stderr, label="Importing", hidden=not sys.stderr.isatty()) as bar,
    ):
        async for batch, books in _stored_in_order(client, retry, _batches(file, rows)):
            for rejected in sorted(batch.rejected, key=lambda each: each.row.line):
                rejects.add(rejected)
            stored += len(books)
            new += sum(book.id > highest_id for book in books)
            bar.update(batch.end - bar.pos)
        bar.update(size - bar.pos)
    click.echo(
        f"{count_with_noun(stored, 'book')} stored, {new:,} of them new; "
        f"{count_with_noun(rejects.count, 'row')} rejected.",
        err=True,
    )


async def _stored_in_order(
    client: "BookstoreClient", retry: OutageRetry, batches: Iterator[_Batch]
) -> "AsyncIterator[tuple[_Batch, Sequence[Book]]]":
    """Store batches, several at a time, and yield each in the order of the file with its books.

    If the file ends with an error, that is raised after the batches before it.
    """
    in_flight: deque[tuple[_Batch, asyncio.Task[list[Book]]]] = deque()
    unreadable: click.ClickException | None = None
    try:
        while True:
            try:
                batch = next(batches, None)
            except click.ClickException as error:
                batch, unreadable = None, error
            if batch is not None:
                in_flight.append((batch, asyncio.create_task(_store(client, retry, batch))))
                await asyncio.sleep(0)  # so that the call is sent before the next batch is read
            if batch is None and not in_flight:
                break
            if batch is None or len(in_flight) == _BATCHES_IN_FLIGHT:
                oldest, task = in_flight.popleft()
                yield oldest, await _result(oldest, task)
        if unreadable is not None:
            raise unreadable
    finally:
        for _, task in in_flight:
            task.cancel()
        await asyncio.gather(*(task for _, task in in_flight), return_exceptions=True)


async def _result(batch: _Batch, task: "asyncio.Task[list[Book]]") -> "list[Book]":
    try:
        return await task
    except BookstoreError:
        first, last = batch.entries[0].row.line, batch.entries[-1].row.line
        click.echo(f"The rows from line {first:,} to line {last:,} could not be stored.", err=True)
        raise


async def _highest_id(client: "BookstoreClient") -> int:
    """Return the highest id so far. Books stored from now on have higher ids."""
    page = await client.list_page(order_by="id desc", page_size=1)
    return page.books[0].id if page.books else 0


def _entries(file: SeekableFile, kind: FileFormat, digest: str) -> Generator[_Entry | _Rejected, None, None]:
    lines = TextIOWrapper(file, encoding="utf-8-sig", newline="" if kind == "csv" else None)
    try:
        for number, row in enumerate(read_rows(lines, kind)):
            try:
                if row.problem:
                    raise ValueError(row.problem)
                book = book_from_row(row)
            except ValueError as error:
                yield _Rejected(row, str(error))
            else:
                yield _Entry(row, book, str(uuid.uuid5(_NAMESPACE, f"{digest}:{number}")))
    except UnicodeDecodeError as error:
        raise click.ClickException(f"The file is not UTF-8 text: {error.reason} in it.") from error
    finally:
        lines.detach()


def _batches(file: SeekableFile, rows: Iterator[_Entry | _Rejected]) -> Iterator[_Batch]:
    entries: list[_Entry] = []
    rejected: list[_Rejected] = []
    size = 0
    for row in rows:
        if isinstance(row, _Rejected):
            rejected.append(row)
            if len(rejected) == _BATCH_ROWS:
                yield _Batch(entries, rejected, file.tell())
                entries, rejected, size = [], [], 0
            continue
        entry_size = row.book.ByteSize()
        if entries and (len(entries) == _BATCH_ROWS or size + entry_size > _BATCH_BYTES):
            yield _Batch(entries, rejected, file.tell())
            entries, rejected, size = [], [], 0
        entries.append(row)
        size += entry_size
    if entries or rejected:
        yield _Batch(entries, rejected, file.tell())


async def _store(client: "BookstoreClient", retry: OutageRetry, batch: _Batch) -> "list[Book]":
    """Store a batch. Rows that the server rejects are added to the rejected ones, and the others are sent again."""
    entries = batch.entries
    stored: list[Book] = []
    size = size_max = len(entries)
    while entries:
        part = entries[:size]
        try:
            # Idempotent: repeating it never stores a book twice.
            create = partial(
                client.create_books, [entry.book for entry in part], request_ids=[entry.request_id for entry in part]
            )
            stored += await retry(create)
            entries = entries[size:]
            size = min(2 * size, size_max)
        except (RequestTooLarge, ResourceExhausted) as error:
            # With a reason, ResourceExhausted is a limit on calls. Without one, the message was too long for gRPC
            # itself.
            if isinstance(error, ResourceExhausted) and error.reason:
                raise
            if len(part) > 1:
                size = size_max = len(part) // 2
                continue
            # A single row that exceeds the server's limit.
            batch.rejected.append(_Rejected(entries[0].row, error.message.rstrip(".")))
            entries = entries[1:]
        except InvalidRequest as error:
            reasons = _reasons_by_index(error)
            if not reasons:
                raise
            if error.omitted_count:
                # With many invalid rows send fewer in one call: a response has room for the first violations only.
                size = max(1, size // 2)
                if len(reasons) > 1:
                    # The last row may have more violations than the response lists: send it again.
                    del reasons[max(reasons)]
            batch.rejected.extend(_Rejected(entries[index].row, reason) for index, reason in reasons.items())
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
