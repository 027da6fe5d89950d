"""An optional field `isbn`, added to a copy of the project by the recipe of CONTRIBUTING.md."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bookstore_grpc.dal import migrations
from tests.executable import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
_BEFORE = migrations.newest_revision()
_ADDED = f"{int(_BEFORE) + 1:04}"


#: The files that the recipe writes by hand, and those that `make generate` writes.
WRITTEN = {
    "protos/bookstore/v1/books.proto",
    "bookstore_grpc/dal/records.py",
    f"bookstore_grpc/dal/migrations/versions/{_ADDED}_isbn.py",
}
GENERATED = {f"generated/bookstore/v1/{name}" for name in ("books.binpb", "books_pb2.py", "books_pb2.pyi")}

_IN_CONTRACT = """
  // The ISBN, at most 17 code points; empty if it is unknown.
  string isbn = 8 [(google.api.field_behavior) = OPTIONAL];
"""

# What is inserted into dal/records.py, each before the first occurrence of the other.
_IN_TABLE = [
    (
        '        Field("create_time"',
        '        Field("isbn", FieldType.TEXT, 17, example="978-X", is_settable=True, '
        "is_optional=True, is_searchable=True),\n",
    ),
    ("\n\nclass BookRecord(", '    isbn: str = ""\n'),
    ("\n    @property\n    def etag", '    isbn: str = ""\n'),
    ("\n\nclass BookUpdate(", "    isbn: str | None = None\n"),
]

_MIGRATION = '''
"""ISBNs."""

import sqlalchemy as sa
from alembic import op

from bookstore_grpc.dal.migrations.search_index import extend_search_index
from bookstore_grpc.dal.models import exact_string, exact_text

revision, down_revision = "ADDED", "BEFORE"

_SEARCHED = ("name_folded", "author_folded", "isbn_folded")


def upgrade() -> None:
    op.add_column("books", sa.Column("isbn", exact_string(17), nullable=False, server_default=""))
    op.add_column("books", sa.Column("isbn_folded", exact_text(), nullable=False, server_default=""))
    op.create_index("ix_books_isbn", "books", ["isbn", "id"])
    extend_search_index(op.execute, _SEARCHED, dialect=op.get_context().dialect.name)
    replace_trigger("new.entry IS old.entry OR new.entry_fields < 7 AND new.isbn <> ''")


def replace_trigger(condition: str) -> None:
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER books_outdated_entry")
        op.execute(
            "CREATE TRIGGER books_outdated_entry AFTER UPDATE ON books "
            f"WHEN new.entry IS NOT NULL AND ({condition}) "
            "BEGIN UPDATE books SET entry = NULL WHERE id = new.id; END"
        )


def downgrade() -> None:
    replace_trigger("new.entry IS old.entry")
    extend_search_index(op.execute, _SEARCHED[:-1], dialect=op.get_context().dialect.name)
    op.drop_index("ix_books_isbn", "books")
    op.drop_column("books", "isbn_folded")
    op.drop_column("books", "isbn")
'''


def copied(target: Path, *names: str) -> Path:
    """Copy files and folders of the project, and return the folder that holds them."""
    target.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def run_in(copy: Path, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the folder of a copy to its end."""
    return subprocess.run(
        command,
        cwd=copy,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def add_to_contract(copy: Path) -> None:
    """Add the field to the contract, and generate the code as `make generate` does."""
    _insert(copy / "protos/bookstore/v1/books.proto", "}\n\n// The request of CreateBook.", _IN_CONTRACT)
    (copy / ".venv").symlink_to(sys.prefix)
    made = run_in(copy, "make", "--assume-old=.venv/.dev", "generate")
    assert made.returncode == 0, made.stderr


def add_to_table(copy: Path) -> None:
    """Add the field to the table of fields and the named tuples below it, and write the migration."""
    records = copy / "bookstore_grpc/dal/records.py"
    for before, inserted in _IN_TABLE:
        _insert(records, before, inserted)
    migration = _MIGRATION.lstrip().replace("ADDED", _ADDED).replace("BEFORE", _BEFORE)
    (copy / f"bookstore_grpc/dal/migrations/versions/{_ADDED}_isbn.py").write_text(migration)


def changed_files(copy: Path, *names: str) -> set[str]:
    """Return the files in folders of a copy that the project does not have, or not as they are there."""
    files = {
        path.relative_to(root).as_posix()
        for root in (copy, ROOT)
        for name in names
        for path in (root / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    return {file for file in files if _content(copy / file) != _content(ROOT / file)}


def _insert(path: Path, before: str, inserted: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, inserted + before, 1))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
