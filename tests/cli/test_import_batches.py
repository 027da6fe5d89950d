"""`bookstore import` of many rows: batches, refusals in bulk, interruptions, and running it again."""

import csv
import signal
import subprocess
from pathlib import Path

import pytest

from bookstore_grpc.cli.outage import OutageRetry
from bookstore_grpc.errors import Unavailable
from tests.cli.breaking_line import breaking_line
from tests.cli.conftest import Catalogue, csv_bytes, numbered_rows
from tests.executable import BOOKSTORE, PATIENCE_SECONDS, environment, run_bookstore, serving

# Enough of them for the line to break long before the end.
MANY_ROWS = 5_000
BREAKS_AFTER_BYTES = 100_000


def test_run_twice_it_adds_none(catalogue: Catalogue, tmp_path: Path) -> None:
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


def test_a_book_deleted_since_is_not_brought_back(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(3)))
    catalogue.run("import", path)
    book_id = catalogue.succeed("list", "--output", "csv").splitlines()[1].split(",")[0]
    catalogue.succeed("delete", book_id)

    again = catalogue.run("import", path)

    assert again.status == 0
    assert catalogue.rows() == numbered_rows(3)[1:]


def test_a_batch_of_nothing_but_bad_rows_is_refused_whole(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes([("N", "A", 10_000)] * 3))

    finished = catalogue.run("import", path)

    assert finished.status == 1
    assert "0 books stored, 0 of them new; 3 rows rejected." in finished.errors
    assert catalogue.rows() == []


def test_of_300_bad_rows_in_a_batch_each_is_refused_once_with_line_and_reason(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """More than the details of one answer can hold, so the server is asked several times."""
    good, bad = numbered_rows(500), [("x" * 501, "", 10_000 + number) for number in range(300)]
    rows = [row for pair in zip(bad, good, strict=False) for row in pair] + good[300:]
    path, rejects = tmp_path / "books.csv", tmp_path / "rejects.csv"
    path.write_bytes(csv_bytes(rows))

    finished = catalogue.run("import", path, "--rejects", rejects)

    assert finished.status == 1
    assert finished.errors == "500 books stored, 500 of them new; 300 rows rejected.\n"
    assert sorted(catalogue.rows()) == sorted(good)
    with rejects.open(newline="", encoding="utf-8") as file:
        refused = list(csv.DictReader(file))
    assert [int(row["line"]) for row in refused] == list(range(2, 602, 2))
    for number, row in enumerate(refused):
        assert row["reason"] == (
            "name: has 501 code points, more than 500; "
            "author: is required and must hold more than white space; "
            f"release_year: is {10_000 + number}, not between -5000 and 9999"
        )
        assert (row["name"], row["author"], row["release_year"]) == (*bad[number][:2], str(10_000 + number))


@pytest.mark.parametrize(
    ("bad_rows", "most_calls", "most_sendings"),
    [
        pytest.param([("N", "", 1)] * 5, 2, 2, id="few, which one answer tells"),
        pytest.param([("N" * 501, "A" * 1_001, 10_000)] * 400, 80, 6, id="many"),
    ],
)
def test_bad_rows_cost_few_calls_and_the_others_are_not_sent_over_and_over(
    tmp_path: Path, bad_rows: list[tuple[str, str, int]], most_calls: int, most_sendings: int
) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes([*bad_rows, *numbered_rows(50)]))

    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log") as server:
        finished = run_bookstore("import", path, variables={"BOOKSTORE_SERVER": server.address})
        server.stop()
        calls = [line for line in server.log_lines() if line.get("method", "").endswith("BatchCreateBooks")]

    assert finished.errors.endswith(f"50 books stored, 50 of them new; {len(bad_rows)} rows rejected.\n")
    assert len(calls) <= most_calls
    row_bytes = 64  # of the id, and of what is around the texts
    size = path.stat().st_size + row_bytes * (len(bad_rows) + 50)
    assert sum(line["request_bytes"] for line in calls) < most_sendings * size


def test_rejects_are_a_csv_file_that_can_be_mended_and_imported(catalogue: Catalogue, tmp_path: Path) -> None:
    path, rejects = tmp_path / "books.csv", tmp_path / "rejects.csv"
    path.write_bytes('name,author,release_year\nN,A,1\n"Ünë, ""q""","B\nC",soon\n,A,3\n'.encode())

    finished = catalogue.run("import", path, "--rejects", rejects)

    assert finished.errors == "1 book stored, 1 of them new; 2 rows rejected.\n"
    assert rejects.read_bytes().decode() == (
        "line,reason,name,author,release_year\r\n"
        '3,"release_year: is \'soon\', not a whole number","Ünë, ""q""","B\nC",soon\r\n'
        "5,name: is required and must hold more than white space,,A,3\r\n"
    )
    rejects.write_bytes(rejects.read_bytes().replace(b"B\nC", b"B").replace(b",soon", b",2"))
    again = catalogue.run("import", rejects)
    assert "1 book stored, 1 of them new; 1 row rejected." in again.errors
    assert catalogue.rows() == [("N", "A", 1), ('Ünë, "q"', "B", 2)]


def test_without_refusals_the_rejects_have_a_header_only(catalogue: Catalogue, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"

    finished = catalogue.run("import", "-", "--rejects", rejects, stdin=csv_bytes(numbered_rows(1)))

    assert finished.status == 0
    assert rejects.read_text() == "line,reason,name,author,release_year\n"


def test_only_the_first_refusals_are_shown_without_a_file_for_them(catalogue: Catalogue) -> None:
    finished = catalogue.run("import", "-", stdin=csv_bytes([("N", "A", "x")] * 30))

    lines = finished.errors.splitlines()
    assert [line.split(":")[0] for line in lines[:20]] == [f"Line {number}" for number in range(2, 22)]
    assert lines[20] == "More rows were rejected; --rejects FILE lists all of them."
    assert lines[21:] == ["0 books stored, 0 of them new; 30 rows rejected."]


def test_the_file_itself_cannot_take_its_rejects(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(3)))

    finished = catalogue.run("import", path, "--rejects", path)

    assert finished.status in (1, 2)
    assert path.read_bytes() == csv_bytes(numbered_rows(3))


def test_rejects_that_cannot_be_written_are_told_before_anything_is_stored(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    finished = catalogue.run(
        "import", "-", "--rejects", tmp_path / "none/rejects.csv", stdin=csv_bytes(numbered_rows(3))
    )

    assert finished.status in (1, 2)
    assert "Error: " in finished.errors
    assert catalogue.rows() == []


def test_a_row_larger_than_a_message_is_refused_alone(catalogue: Catalogue, tmp_path: Path) -> None:
    path, rejects = tmp_path / "books.csv", tmp_path / "rejects.csv"
    path.write_bytes(csv_bytes([("First", "A", 1), ("x" * (9 * 1024 * 1024), "A", 2), ("Last", "A", 3)]))

    finished = catalogue.run("import", path, "--rejects", rejects)

    assert finished.status == 1
    assert "2 books stored, 2 of them new; 1 row rejected." in finished.errors
    assert catalogue.rows() == [("First", "A", 1), ("Last", "A", 3)]
    assert rejects.read_text().splitlines()[1].startswith("3,")


def test_a_server_that_takes_short_messages_only_gets_smaller_batches(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"
    rows = [*numbered_rows(600), ("x" * 500, "y" * 1_000, 1), *numbered_rows(10)]
    limit = ("--max-message-bytes", "1200")
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log", *limit) as server:
        limited = Catalogue(server.address, tmp_path / "bookstore.db")
        finished = limited.run("import", "-", "--rejects", rejects, stdin=csv_bytes(rows))
        server.stop()
        calls = [line for line in server.log_lines() if line.get("method", "").endswith("BatchCreateBooks")]

    assert finished.errors == "610 books stored, 610 of them new; 1 row rejected.\n"
    assert limited.rows() == numbered_rows(600) + numbered_rows(10)
    assert rejects.read_text().splitlines()[1].startswith("602,The request is longer than the server's limit of 1200")
    assert len([line for line in calls if line["status"] != "OK"]) < 20


def test_long_texts_travel_in_smaller_batches(catalogue: Catalogue, tmp_path: Path) -> None:
    rows = [("漢" * 500, "字" * 1_000, number) for number in range(1_000)]
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(rows))

    assert catalogue.run("import", path).status == 0
    assert catalogue.rows() == rows


@pytest.mark.parametrize(
    ("signal_number", "status"), [(signal.SIGINT, 1), (signal.SIGKILL, -9)], ids=["SIGINT", "SIGKILL"]
)
def test_interrupted_and_run_again_it_stores_every_row_once(
    catalogue: Catalogue, tmp_path: Path, signal_number: signal.Signals, status: int
) -> None:
    path = tmp_path / "books.csv"
    path.write_bytes(csv_bytes(numbered_rows(MANY_ROWS)))
    with breaking_line(catalogue.address, after_bytes=BREAKS_AFTER_BYTES, then="stall") as line:
        process = subprocess.Popen(
            [BOOKSTORE, "import", path],
            stderr=subprocess.PIPE,
            env=environment(BOOKSTORE_SERVER=line.address, BOOKSTORE_TIMEOUT_SECONDS="600"),
        )
        try:
            assert line.is_broken.wait(PATIENCE_SECONDS)
            process.send_signal(signal_number)
            errors = process.communicate(timeout=PATIENCE_SECONDS)[1].decode()
        finally:
            process.kill()
    stored = len(catalogue.rows())

    again = catalogue.run("import", path)

    assert process.returncode == status
    assert 0 < stored < MANY_ROWS
    assert "Traceback" not in errors
    if signal_number is signal.SIGINT:
        assert "Not finished. Run the same command again to continue; nothing is stored twice." in errors
    assert again.status == 0
    assert f"{MANY_ROWS:,} books stored, {MANY_ROWS - stored:,} of them new" in again.errors
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
    assert "Not finished. Run the same command again to continue; nothing is stored twice." in finished.errors
    assert 0 < stored < MANY_ROWS
    assert again.status == 0
    assert sorted(catalogue.rows()) == numbered_rows(MANY_ROWS)


@pytest.mark.parametrize(("timeout_seconds", "shown"), [(0.001, "2"), (0.7, "4.2"), (10.0, "60"), (1e6, "6,000,000")])
async def test_how_long_an_outage_may_take_is_told_in_seconds(
    timeout_seconds: float, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = iter([Unavailable("away")])

    async def call() -> str:
        for failure in failures:
            raise failure
        return "answered"

    assert await OutageRetry(timeout_seconds)(call) == "answered"
    assert capsys.readouterr().err == f"The service is not responding; retrying for {shown} s.\n"


def test_without_a_server_nothing_is_said_to_be_stored(tmp_path: Path, catalogue: Catalogue) -> None:
    finished = catalogue.run(
        "import", "-", stdin=csv_bytes(numbered_rows(3)), variables={"BOOKSTORE_SERVER": "127.0.0.1:1"}
    )

    assert finished.status == 1
    assert "127.0.0.1:1" in finished.errors
    assert "books stored, " not in finished.errors


@pytest.mark.parametrize("rows", [1, 1_234])
def test_a_limit_delays_an_import_and_no_row_is_left_out(tmp_path: Path, rows: int) -> None:
    limits = ("--rate-limit-per-second", "4", "--rate-limit-burst", "1")
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log", *limits) as server:
        limited = Catalogue(server.address, tmp_path / "bookstore.db")
        limited.run("list")
        finished = limited.run("import", "-", stdin=csv_bytes(numbered_rows(rows)))
        assert (finished.status, limited.rows()) == (0, numbered_rows(rows))


def test_a_limit_that_is_not_waited_for_ends_an_import_and_is_no_refusal_of_a_row(tmp_path: Path) -> None:
    limits = ("--rate-limit-per-second", "0.01", "--rate-limit-burst", "1")
    with serving(f"sqlite+aiosqlite:///{tmp_path}/bookstore.db", tmp_path / "log", *limits) as server:
        limited = Catalogue(server.address, tmp_path / "bookstore.db")
        limited.run("list")
        finished = limited.run("import", "-", stdin=csv_bytes(numbered_rows(1)))
        assert finished.status == 1
        assert "[TOO_MANY_REQUESTS]" in finished.errors
        assert "rejected" not in finished.errors
