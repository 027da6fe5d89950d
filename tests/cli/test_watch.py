"""`bookstore watch` in a process of its own: what it prints, and how it ends."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from bookstore_grpc.errors import InvalidFilter, ResumeTokenExpired
from tests.cli.conftest import Catalogue, run_verb
from tests.client.watched_service import (
    DELETED,
    EXISTING,
    UPDATED,
    WatchedService,
    a_book,
    a_change,
    address,
    service,
    serving_watches,
)
from tests.executable import PATIENCE_SECONDS, Process, end_process, start_bookstore

__all__ = ["address", "service"]  # fixtures


class Watching:
    """The command in a process, whose output and errors go to files."""

    def __init__(self, folder: Path, address: str, *arguments: str) -> None:
        self._output, self._errors = folder / "output", folder / "errors"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process: Process = start_bookstore(
                "watch", *arguments, stdout=output, stderr=errors, variables={"BOOKSTORE_SERVER": address}
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                assert self.process.poll() is None, self.errors
                await asyncio.sleep(0.01)

    async def status(self) -> int:
        return await asyncio.to_thread(self.process.wait, PATIENCE_SECONDS)


Watch = Callable[..., Watching]


@pytest.fixture
def watch(tmp_path: Path, address: str) -> Iterator[Watch]:
    started: list[Watching] = []

    def start(*arguments: str, server: str = address) -> Watching:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Watching(folder, server, *arguments))
        return started[-1]

    yield start
    for each in started:
        end_process(each.process)


async def test_the_changes_of_a_real_server_are_printed(catalogue: Catalogue, watch: Watch) -> None:
    book = await asyncio.to_thread(catalogue.create, "Emma", "Jane Austen", 1815)
    watching = watch("--existing", "--output", "json", server=catalogue.address)
    await watching.until(lambda: "EXISTING" in watching.output)
    await asyncio.to_thread(catalogue.succeed, "update", book["id"], "--release-year", 1816)
    await asyncio.to_thread(catalogue.succeed, "delete", book["id"])
    await watching.until(lambda: "DELETED" in watching.output)

    existing, updated, deleted = map(json.loads, watching.output.splitlines())
    assert (existing["book"]["name"], updated["previousBook"]["releaseYear"]) == ("Emma", 1815)
    assert updated["book"] == deleted["book"]
    continued = watch("--since", updated["resumeToken"], "--output", "json", server=catalogue.address)
    await continued.until(lambda: "\n" in continued.output)
    assert json.loads(continued.output) == deleted


async def test_each_change_is_a_row_at_once_and_an_update_says_what_changed(
    service: WatchedService, watch: Watch
) -> None:
    watching = watch("--filter", "author:anon")
    await service.until(lambda: service.watching == 1)
    await service.send(a_change(7))
    await watching.until(lambda: watching.output.count("\n") == 2)
    updated = a_book(7, "漢" * 30)
    updated.release_year = 0
    await service.send(a_change(8, UPDATED, book=updated, previous_book=a_book(7)), a_change(9, DELETED, book=updated))
    await watching.until(lambda: watching.output.count("\n") == 4)

    header, *rows = watching.output.splitlines()
    assert service.requests[0].filter == "author:anon"
    assert header.split() == ["TIME", "TYPE", "ID", "NAME", "AUTHOR", "YEAR", "CHANGED"]
    assert [row.split()[:3] for row in rows] == [
        ["2027-01-15T08:00:07Z", "CREATED", "7"],
        ["2027-01-15T08:00:08Z", "UPDATED", "7"],
        ["2027-01-15T08:00:09Z", "DELETED", "7"],
    ]
    assert rows[0].endswith("Anon                            1907")
    assert rows[1].endswith("0       name was Book 7; release_year was 1907")
    # Wide characters take two columns.
    assert header.index("CHANGED") == rows[1].index("name was") + 21


async def test_json_has_one_object_in_each_line_as_the_http_api_has_it(service: WatchedService, watch: Watch) -> None:
    existing = a_change(0, EXISTING, book=a_book(1))
    existing.ClearField("change_time")
    await service.send(existing)
    watching = watch("--existing", "--output", "json")
    await service.send(a_change(12, UPDATED, book=a_book(1, "é"), previous_book=a_book(1)))
    await watching.until(lambda: watching.output.count("\n") == 2)

    first, second = map(json.loads, watching.output.splitlines())
    book = {
        "id": "1",
        "name": "Book 1",
        "author": "Anon",
        "releaseYear": 1901,
        "createTime": "2023-11-14T22:13:20Z",
        "updateTime": "2023-11-14T22:13:21Z",
    }
    assert first == {"type": "EXISTING", "book": book, "resumeToken": "t1"}
    assert second == {
        "type": "UPDATED",
        "book": {**book, "name": "é"},
        "previousBook": book,
        "changeTime": second["changeTime"],
        "number": "12",
        "resumeToken": "t2",
    }
    assert "é" in watching.output


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_stopped_watch_says_how_to_continue_and_continues_there(
    service: WatchedService, watch: Watch, number: signal.Signals, status: int
) -> None:
    stopped = watch()
    await service.until(lambda: service.watching == 1)
    await service.send(a_change(1))
    await stopped.until(lambda: "Book 1" in stopped.output)
    stopped.process.send_signal(number)

    assert await stopped.status() == status
    assert stopped.errors == "To continue: --since t1\n"

    await service.send(a_change(2))
    continued = watch("--since", "t1", "--output", "json")
    await continued.until(lambda: "\n" in continued.output)
    assert json.loads(continued.output)["number"] == "2"


async def test_a_closed_pipe_ends_a_watch_without_a_change_and_without_a_message(
    service: WatchedService, address: str, tmp_path: Path
) -> None:
    with (tmp_path / "errors").open("wb") as errors:
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as pipe:
            variables = {"BOOKSTORE_SERVER": address}
            process = start_bookstore("watch", stdout=pipe, stderr=errors, variables=variables)
        try:
            await service.until(lambda: service.watching == 1)
            os.close(reading)
            assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 141
        finally:
            end_process(process)

    assert (tmp_path / "errors").read_text() == ""


async def test_printing_to_a_closed_pipe_ends_a_watch_in_the_same_way(address: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe, (tmp_path / "errors").open("wb") as errors:
        process = start_bookstore("watch", stdout=pipe, stderr=errors, variables={"BOOKSTORE_SERVER": address})
    try:
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 141
    finally:
        end_process(process)

    assert (tmp_path / "errors").read_text() == ""


async def test_an_outage_is_reported_and_survived(service: WatchedService, watch: Watch) -> None:
    async with serving_watches(service) as address:
        watching = watch(server=address)
        await service.until(lambda: service.watching == 1)
        await service.send(a_change(1))
        await watching.until(lambda: "Book 1" in watching.output)
    await watching.until(lambda: watching.errors)
    await service.send(a_change(2))
    async with serving_watches(service, address):
        await watching.until(lambda: "Book 2" in watching.output)

    assert watching.errors.startswith(
        "The service is not responding; reconnecting.\nThe service is responding again.\n"
    )


async def test_a_drain_is_no_outage(service: WatchedService, watch: Watch) -> None:
    watching = watch()
    await service.until(lambda: service.watching == 1)
    await service.cut_off(grpc.StatusCode.UNAVAILABLE)
    await service.until(lambda: len(service.requests) == 2)
    await service.send(a_change(1))
    await watching.until(lambda: "Book 1" in watching.output)

    assert watching.errors == ""


async def test_an_expired_token_is_reported_with_what_to_do(service: WatchedService, watch: Watch) -> None:
    service.failures = [ResumeTokenExpired()]
    watching = watch("--since", "t0")

    assert await watching.status() == 1
    assert watching.errors.startswith("Error: ")
    assert "[RESUME_TOKEN_EXPIRED] (request id " in watching.errors
    assert watching.errors.endswith("Leave out --since; --existing prints all books first.\n")


async def test_an_error_in_the_middle_says_how_to_continue(service: WatchedService, watch: Watch) -> None:
    watching = watch()
    await service.until(lambda: service.watching == 1)
    await service.send(a_change(1))
    await watching.until(lambda: "Book 1" in watching.output)
    await service.cut_off(InvalidFilter("is wrong", column=3))

    assert await watching.status() == 1
    assert watching.errors.startswith("To continue: --since t1\nError: filter: is wrong.")


@pytest.mark.parametrize("arguments", [("--since", "t1", "--existing"), ("--since", " ")])
def test_wrong_use_is_status_2(arguments: tuple[str, ...]) -> None:
    finished = run_verb("watch", *arguments)

    assert finished.status == 2
    assert "--since" in finished.errors


def test_without_a_server_it_is_reported_at_once() -> None:
    finished = run_verb("watch", "--server", "127.0.0.1:1")

    assert finished.status == 1
    assert "Could not connect to 127.0.0.1:1" in finished.errors


def test_help_has_examples() -> None:
    finished = run_verb("watch", "--help")

    assert "\n    bookstore watch --filter 'author:zola'\n" in finished.output
    assert finished.status == 0
