"""`bookstore import` of many rows: batches, many rejected rows, interruptions, and repeated imports."""

import asyncio
import csv
import re
import signal
from pathlib import Path

import pytest

from bookstore_grpc.cli.outage import OutageRetry
from bookstore_grpc.errors import Unavailable
from tests.cli.breaking_line import breaking_line
from tests.cli.conftest import Catalogue, csv_bytes, numbered_rows, run_verb, with_optional_columns
from tests.executable import PATIENCE_SECONDS, end_process, serving, start_bookstore

# Enough of them for the connection to break long before the end.
MANY_ROWS = 6_000
BREAKS_AFTER_BYTES = 250_000


def test_a_repeated_import_stores_nothing_new(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(1_234)))

    first, second = catalogue.run("import", path), catalogue.run("import", path)

    assert first == (0, "", "1,234 books stored, 1,234 of them new; 0 rows rejected.\n")
    assert second == (0, "", "1,234 books stored, 0 of them new; 0 rows rejected.\n")
    assert catalogue.rows() == numbered_rows(1_234)


def test_the_same_content_from_standard_input_is_the_same_import(catalogue: Catalogue, tmp_path: Path) -> None:
    path, content = tmp_path / "books.csv", csv_bytes(numbered_rows(3))
    path.write_bytes(content)

    catalogue.run("import", path)
    again = catalogue.run("import", "-", stdin=content)

    assert "3 books stored, 0 of them new" in again.errors
    assert len(catalogue.rows()) == 3


def test_a_repeated_import_does_not_restore_a_deleted_book(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(3)))
    catalogue.run("import", path)
    book_id = catalogue.succeed("list", "--output", "csv").splitlines()[1].split(",")[0]
    catalogue.succeed("delete", book_id)

    again = catalogue.run("import", path)

    assert again.status == 0
    assert catalogue.rows() == numbered_rows(3)[1:]


def test_rejected_rows_are_reported_in_the_order_of_the_file_whichever_batch_ends_first(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    path, rows = tmp_path / "books.csv", [*numbered_rows(2_400)]
    # In the first batch for the server to reject, in later ones also for the command.
    bad = {3: ("", "A", 1), 600: ("N", "A", "x"), 700: ("N", "", 1), 1_200: ("", "", 1), 2_000: ("N", "A", "y")}
    stored = [row for index, row in enumerate(rows) if index not in bad]
    path.write_bytes(csv_bytes([bad.get(index, row) for index, row in enumerate(rows)]))

    finished = catalogue.run("import", path)

    assert finished.status == 1
    *reported, summary = finished.errors.splitlines()
    assert [line.split(":")[0] for line in reported] == [f"Line {index + 2}" for index in bad]
    assert summary == "2,395 books stored, 2,395 of them new; 5 rows rejected."
    assert sorted(catalogue.rows()) == stored


def test_the_batches_before_a_line_that_is_no_text_are_stored_and_their_rejected_rows_reported(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes([("", "A", 1), *numbered_rows(2_999)]) + b"\xff,A,1\n")

    finished = catalogue.run("import", path)

    assert finished.status == 1
    assert finished.errors.startswith("Line 2: name: is required")
    assert "Error: The file is not UTF-8 text" in finished.errors
    assert len(catalogue.rows()) >= 2_000


def test_a_batch_of_invalid_rows_only_stores_nothing(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes([("N", "A", 10_000)] * 3))

    finished = catalogue.run("import", path)

    assert finished.status == 1
    assert "0 books stored, 0 of them new; 3 rows rejected." in finished.errors
    assert catalogue.rows() == []


def test_each_of_300_invalid_rows_in_a_batch_is_rejected_once_with_line_and_reason(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """More than the details of one response can hold, so several calls are needed."""
    good, bad = numbered_rows(500), [("x" * 501, "", 10_000 + number) for number in range(300)]
    rows = [row for pair in zip(bad, good, strict=False) for row in pair] + good[300:]
    path, rejects = tmp_path / "books.csv", tmp_path / "rejects.csv"
    path.write_bytes(csv_bytes(rows))

    finished = catalogue.run("import", path, "--rejects", rejects)

    assert finished.status == 1
    assert finished.errors == "500 books stored, 500 of them new; 300 rows rejected.\n"
    assert sorted(catalogue.rows()) == sorted(good)
    with rejects.open(newline="", encoding="utf-8") as file:
        rejected = list(csv.DictReader(file))
    assert [int(row["line"]) for row in rejected] == list(range(2, 602, 2))
    for number, row in enumerate(rejected):
        assert row["reason"] == (
            "name: has 501 code points, more than 500; "
            "author: is required and must hold more than white space; "
            f"release_year: is {10_000 + number}, not between -5000 and 9999"
        )
        assert (row["name"], row["author"], row["release_year"]) == (*bad[number][:2], str(10_000 + number))


@pytest.mark.parametrize(
    ("bad_rows", "most_calls", "most_sendings"),
    [
        pytest.param([("N", "", 1)] * 5, 2, 2, id="few, which one response lists"),
        pytest.param([("N" * 501, "A" * 1_001, 10_000)] * 400, 80, 6, id="many"),
    ],
)
def test_invalid_rows_cost_few_calls_and_valid_rows_are_not_sent_many_times(
    tmp_path: Path, bad_rows: list[tuple[str, str, int]], most_calls: int, most_sendings: int
) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes([*bad_rows, *numbered_rows(50)]))

    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log") as server:
        finished = run_verb("import", path, variables={"BOOKSTORE_SERVER": server.address})
        server.stop()
        calls = [line for line in server.log_lines() if line.get("method", "").endswith("BatchCreateBooks")]

    assert finished.errors.endswith(f"50 books stored, 50 of them new; {len(bad_rows)} rows rejected.\n")
    assert len(calls) <= most_calls
    row_bytes = 64  # of the id, and of what is around the texts
    size = path.stat().st_size + row_bytes * (len(bad_rows) + 50)
    assert sum(line["request_bytes"] for line in calls) < most_sendings * size


def test_the_rejects_file_can_be_corrected_and_imported(catalogue: Catalogue, tmp_path: Path) -> None:
    path, rejects = tmp_path / "books.csv", tmp_path / "rejects.csv"
    path.write_bytes('name,author,release_year\nN,A,1\n"Ünë, ""q""","B\nC",soon\n,A,3\n'.encode())

    finished = catalogue.run("import", path, "--rejects", rejects)

    assert finished.errors == "1 book stored, 1 of them new; 2 rows rejected.\n"
    assert rejects.read_bytes().decode() == with_optional_columns(
        "line,reason,name,author,release_year\r\n"
        '3,"release_year: is \'soon\', not a whole number","Ünë, ""q""","B\nC",soon\r\n'
        "5,name: is required and must hold more than white space,,A,3\r\n"
    )
    rejects.write_bytes(rejects.read_bytes().replace(b"B\nC", b"B").replace(b",soon", b",2"))
    again = catalogue.run("import", rejects)
    assert "1 book stored, 1 of them new; 1 row rejected." in again.errors
    assert catalogue.rows() == [("N", "A", 1), ('Ünë, "q"', "B", 2)]


def test_without_rejected_rows_the_rejects_file_is_a_header(catalogue: Catalogue, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"

    finished = catalogue.run("import", "-", "--rejects", rejects, stdin=csv_bytes(numbered_rows(1)))

    assert finished.status == 0
    assert rejects.read_text() == with_optional_columns("line,reason,name,author,release_year\n", end="\n")


def test_without_a_rejects_file_only_the_first_rejected_rows_are_shown(catalogue: Catalogue) -> None:
    finished = catalogue.run("import", "-", stdin=csv_bytes([("N", "A", "x")] * 30))

    lines = finished.errors.splitlines()
    assert [line.split(":")[0] for line in lines[:20]] == [f"Line {number}" for number in range(2, 22)]
    assert lines[20] == "More rows were rejected; --rejects FILE lists all of them."
    assert lines[21:] == ["0 books stored, 0 of them new; 30 rows rejected."]


def test_the_imported_file_cannot_be_the_rejects_file(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(3)))

    finished = catalogue.run("import", path, "--rejects", path)

    assert finished.status in (1, 2)
    assert path.read_bytes() == csv_bytes(numbered_rows(3))


def test_a_rejects_file_that_cannot_be_written_is_an_error_before_anything_is_stored(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    finished = catalogue.run(
        "import", "-", "--rejects", tmp_path / "none/rejects.csv", stdin=csv_bytes(numbered_rows(3))
    )

    assert finished.status in (1, 2)
    assert "Error: " in finished.errors
    assert catalogue.rows() == []


def test_of_a_batch_only_the_row_that_is_larger_than_a_message_is_rejected(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    path, rejects = tmp_path / "books.csv", tmp_path / "rejects.csv"
    path.write_bytes(csv_bytes([("First", "A", 1), ("x" * (9 * 1024 * 1024), "A", 2), ("Last", "A", 3)]))

    finished = catalogue.run("import", path, "--rejects", rejects)

    assert finished.status == 1
    assert "2 books stored, 2 of them new; 1 row rejected." in finished.errors
    assert catalogue.rows() == [("First", "A", 1), ("Last", "A", 3)]
    assert rejects.read_text().splitlines()[1].startswith("3,")


def test_batches_become_smaller_for_a_server_with_a_low_message_limit(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"
    rows = [*numbered_rows(600), ("x" * 500, "y" * 1_000, 1), *numbered_rows(10)]
    limit = ("--max-message-bytes", "1200")
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log", *limit) as server:
        limited = Catalogue(server.address, tmp_path / "bookstore.db")
        finished = limited.run("import", "-", "--rejects", rejects, stdin=csv_bytes(rows))
        server.stop()
        calls = [line for line in server.log_lines() if line.get("method", "").endswith("BatchCreateBooks")]

    assert finished.errors == "610 books stored, 610 of them new; 1 row rejected.\n"
    assert sorted(limited.rows()) == sorted(numbered_rows(600) + numbered_rows(10))
    assert rejects.read_text().splitlines()[1].startswith("602,The request is longer than the server's limit of 1200")
    assert len([line for line in calls if line["status"] != "OK"]) < 20


def test_long_texts_are_sent_in_smaller_batches(catalogue: Catalogue, tmp_path: Path) -> None:
    rows = [("漢" * 500, "字" * 1_000, number) for number in range(1_000)]
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(rows))

    assert catalogue.run("import", path).status == 0
    assert catalogue.rows() == rows


@pytest.mark.parametrize(
    ("signal_number", "status"), [(signal.SIGINT, 1), (signal.SIGKILL, -9)], ids=["SIGINT", "SIGKILL"]
)
def test_an_interrupted_import_can_be_resumed_and_stores_every_row_once(
    catalogue: Catalogue, tmp_path: Path, signal_number: signal.Signals, status: int
) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(MANY_ROWS)))
    error_file = tmp_path / "errors"
    with (
        breaking_line(catalogue.address, after_bytes=BREAKS_AFTER_BYTES, then="stall") as line,
        error_file.open("wb") as file,
    ):
        variables = {"BOOKSTORE_SERVER": line.address, "BOOKSTORE_TIMEOUT_SECONDS": "600"}
        process = start_bookstore("import", path, stdout=file, stderr=file, variables=variables)
        try:
            assert line.is_broken.wait(PATIENCE_SECONDS)
            process.send_signal(signal_number)
            assert process.wait(PATIENCE_SECONDS) == status
        finally:
            end_process(process)
    errors = error_file.read_text()
    stored = len(catalogue.rows())

    again = catalogue.run("import", path)

    assert 0 < stored < MANY_ROWS
    assert "Traceback" not in errors
    if signal_number is signal.SIGINT:
        assert "Not finished. Run the same command again to continue; nothing is stored twice." in errors
    assert again.status == 0
    summary = re.match(rf"{MANY_ROWS:,} books stored, ([\d,]+) of them new", again.errors)
    assert summary is not None
    # What was in flight may have been stored after the count.
    assert 0 < int(summary[1].replace(",", "")) <= MANY_ROWS - stored
    assert sorted(catalogue.rows()) == numbered_rows(MANY_ROWS)


def test_a_server_that_stops_during_an_import_is_reported_and_the_import_can_be_resumed(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(MANY_ROWS)))
    with breaking_line(catalogue.address, after_bytes=BREAKS_AFTER_BYTES, then="hang up") as line:
        server = ("--server", line.address, "--timeout-seconds", 0.7)
        finished = catalogue.run("import", path, *server)
        address = line.address
    stored = len(catalogue.rows())

    again = catalogue.run("import", path)

    assert finished.status == 1
    assert "The service is not responding; retrying for 4.2 s." in finished.errors
    assert f"Could not connect to {address}" in finished.errors
    assert finished.errors.count("retrying") == 1
    assert re.search(r"The rows from line [\d,]+ to line [\d,]+ could not be stored\.", finished.errors)
    assert "Not finished. Run the same command again to continue; nothing is stored twice." in finished.errors
    assert 0 < stored < MANY_ROWS
    assert again.status == 0
    assert sorted(catalogue.rows()) == numbered_rows(MANY_ROWS)


async def test_an_outage_is_reported_with_the_seconds_that_it_may_take(capsys: pytest.CaptureFixture[str]) -> None:
    async def response_after_an_outage(timeout_seconds: float) -> str:
        failures = iter([Unavailable("away")])

        async def call() -> str:
            for failure in failures:
                raise failure
            return "response"

        return await OutageRetry(timeout_seconds)(call)

    responses = await asyncio.gather(*map(response_after_an_outage, (0.001, 0.7, 10.0, 1e6)))

    assert responses == ["response"] * 4
    assert capsys.readouterr().err.splitlines() == [
        f"The service is not responding; retrying for {shown} s." for shown in ("2", "4.2", "60", "6,000,000")
    ]


def test_without_a_server_no_row_is_reported_as_stored(tmp_path: Path, catalogue: Catalogue) -> None:
    finished = catalogue.run(
        "import", "-", stdin=csv_bytes(numbered_rows(3)), variables={"BOOKSTORE_SERVER": "127.0.0.1:1"}
    )

    assert finished.status == 1
    assert "127.0.0.1:1" in finished.errors
    assert "books stored, " not in finished.errors


@pytest.mark.parametrize("rows", [1, 1_234])
def test_a_rate_limit_delays_an_import_and_no_row_is_left_out(tmp_path: Path, rows: int) -> None:
    limits = ("--rate-limit-per-second", "4", "--rate-limit-burst", "1")
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log", *limits) as server:
        limited = Catalogue(server.address, tmp_path / "bookstore.db")
        limited.run("list")
        finished = limited.run("import", "-", stdin=csv_bytes(numbered_rows(rows)))
        assert (finished.status, sorted(limited.rows())) == (0, numbered_rows(rows))


def test_a_rate_limit_that_is_not_waited_for_ends_an_import_without_rejected_rows(tmp_path: Path) -> None:
    limits = ("--rate-limit-per-second", "0.01", "--rate-limit-burst", "1")
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log", *limits) as server:
        limited = Catalogue(server.address, tmp_path / "bookstore.db")
        limited.run("list")
        finished = limited.run("import", "-", stdin=csv_bytes(numbered_rows(1)))
        assert finished.status == 1
        assert "[TOO_MANY_REQUESTS]" in finished.errors
        assert "rejected" not in finished.errors
