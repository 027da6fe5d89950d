"""The search index of SQLite and PostgreSQL, for migrations: trigrams of the columns that `:` and bare words search.

SQLite has an FTS5 table, which triggers keep in step with the books. It has no copy of the texts, so a deletion names
the text that was indexed. PostgreSQL has an index of an expression, which needs the extension pg_trgm.
"""

from collections.abc import Callable, Iterator, Sequence

Execute = Callable[[str], object]

# The filter's condition decides whether a book matches, so the index need not know the column and the position of a
# trigram: `detail=none` takes less than half the space.
_CREATE_TABLE = (
    "CREATE VIRTUAL TABLE books_search USING fts5(text, content='', columnsize=0, detail=none, "
    "tokenize='trigram case_sensitive 1')"
)
_INSERT = "INSERT INTO books_search (rowid, text)"
_DELETE = "INSERT INTO books_search (books_search, rowid, text)"
# One line for each statement, so that any program can execute the printed SQL.
_CREATE_EXTENSION = (
    "DO $$ BEGIN CREATE EXTENSION IF NOT EXISTS pg_trgm; "
    "EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN NULL; END $$"
)
_CREATE_INDEX = (
    "DO $$ DECLARE its_schema name := (SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
    "WHERE extname = 'pg_trgm'); BEGIN IF its_schema IS NOT NULL THEN EXECUTE format("
    "'CREATE INDEX IF NOT EXISTS ix_books_search ON books USING gin (({text}) %I.gin_trgm_ops)', its_schema"
    "); END IF; END $$"
)
_DROP_INDEX = "DROP INDEX IF EXISTS ix_books_search"


def create_search_index(execute: Execute, columns: Sequence[str], *, dialect: str) -> None:
    """Create the index of the columns. On PostgreSQL it is left out if the extension is missing and cannot be created.

    There it may be repeated once an administrator has created the extension.
    """
    if dialect == "sqlite":
        execute("DROP TABLE IF EXISTS books_search")  # left behind where only the table of books was dropped
        execute(_CREATE_TABLE)
        execute(f"{_INSERT} SELECT id, {_text('books.', columns)} FROM books")  # noqa: S608  constants
        _create_triggers(execute, columns)
    elif dialect == "postgresql":
        execute(_CREATE_EXTENSION)
        # In the order in which the statements name them.
        execute(_CREATE_INDEX.format(text=_text("", sorted(columns), separator="chr(10)")))
        execute("ANALYZE books")


def extend_search_index(execute: Execute, columns: Sequence[str], *, dialect: str) -> None:
    """Index all of `columns`, of which the last are new, and empty in every book.

    On PostgreSQL the index is created again, while reads wait, and servers that do not know the new columns search
    without it.
    """
    if dialect == "sqlite":
        _drop_triggers(execute)
        _create_triggers(execute, columns)
    elif dialect == "postgresql":
        execute(_DROP_INDEX)
        create_search_index(execute, columns, dialect=dialect)


def drop_search_index(execute: Execute, *, dialect: str) -> None:
    """Drop the index. The extension stays, because others may use it."""
    if dialect == "sqlite":
        _drop_triggers(execute)
        execute("DROP TABLE books_search")
    elif dialect == "postgresql":
        execute(_DROP_INDEX)


def _create_triggers(execute: Execute, columns: Sequence[str]) -> None:
    for name, trigger in _triggers(columns):
        execute(f"CREATE TRIGGER books_search_{name} AFTER {trigger}; END")


def _drop_triggers(execute: Execute) -> None:
    for name, _ in _triggers(()):
        execute(f"DROP TRIGGER IF EXISTS books_search_{name}")


def _triggers(columns: Sequence[str]) -> Iterator[tuple[str, str]]:
    old, new = _text("old.", columns), _text("new.", columns)
    insert = f"{_INSERT} VALUES (new.id, {new})"
    delete = f"{_DELETE} VALUES ('delete', old.id, {old})"
    yield "insert", f"INSERT ON books BEGIN {insert}"
    yield "delete", f"DELETE ON books BEGIN {delete}"
    changed = f"UPDATE OF {', '.join(columns)} ON books WHEN ({old}) <> ({new})"
    yield "update", f"{changed} BEGIN {delete}; {insert}"


def _text(row: str, columns: Sequence[str], *, separator: str = "char(10)") -> str:
    return f" || {separator} || ".join(f"{row}{column}" for column in columns)
