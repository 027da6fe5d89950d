"""Keep the number of books by triggers, so that the writes of the previous version are counted too.

A transaction adds to one of 64 slots, that of its connection, so that transactions on different connections do not wait
for each other; the number of books is the sum. SQLite has one writer, and one slot (docs/decisions/0026-counts.md).
"""

import sqlalchemy as sa
import structlog
from alembic import op

revision = "0003"
down_revision = "0002"

_log = structlog.stdlib.get_logger("bookstore_grpc.dal.migrations")

# MariaDB's error where it writes a binary log and log_bin_trust_function_creators is off.
_NEEDS_SUPER = 1419

_COUNTS = sa.table("book_counts", sa.column("slot", sa.Integer), sa.column("count", sa.BigInteger))

_SQLITE = (
    "DELETE FROM book_counts",
    "INSERT INTO book_counts (slot, count) SELECT 0, count(*) FROM books",
    "CREATE TRIGGER count_created_books AFTER INSERT ON books BEGIN UPDATE book_counts SET count = count + 1; END",
    "CREATE TRIGGER count_deleted_books AFTER DELETE ON books BEGIN UPDATE book_counts SET count = count - 1; END",
)

_POSTGRESQL = (
    "LOCK TABLE books IN SHARE ROW EXCLUSIVE MODE",  # until the commit nobody else writes
    "DELETE FROM book_counts",
    "INSERT INTO book_counts (slot, count) SELECT slot, CASE slot WHEN 0 THEN (SELECT count(*) FROM books) ELSE 0 END "
    "FROM generate_series(0, 63) AS slots (slot)",
    # With the rights of its owner, because the account of a server of the previous version has none on the new table.
    "CREATE OR REPLACE FUNCTION count_books() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN "
    "IF TG_OP = 'TRUNCATE' THEN UPDATE book_counts SET count = 0; ELSE "
    "UPDATE book_counts SET count = count + (CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END) * "
    "(SELECT count(*) FROM changed) WHERE slot = mod(pg_backend_pid(), 64); END IF; RETURN NULL; END $$",
    # So it must find no tables that others have made, in whatever schema, and be of no use to triggers of others.
    "DO $$ BEGIN EXECUTE "
    "format('ALTER FUNCTION count_books() SET search_path = %I, pg_temp', current_schema()); END $$",
    "REVOKE ALL ON FUNCTION count_books() FROM PUBLIC",
    "CREATE TRIGGER count_created_books AFTER INSERT ON books REFERENCING NEW TABLE AS changed "
    "FOR EACH STATEMENT EXECUTE FUNCTION count_books()",
    "CREATE TRIGGER count_deleted_books AFTER DELETE ON books REFERENCING OLD TABLE AS changed "
    "FOR EACH STATEMENT EXECUTE FUNCTION count_books()",
    "CREATE TRIGGER count_truncated_books AFTER TRUNCATE ON books FOR EACH STATEMENT EXECUTE FUNCTION count_books()",
)

# MariaDB commits each statement, so all of them can be repeated. Until the table has rows the triggers change none.
_MARIADB_TRIGGERS = (
    "CREATE TRIGGER IF NOT EXISTS count_created_books AFTER INSERT ON books FOR EACH ROW "
    "UPDATE book_counts SET count = count + 1 WHERE slot = MOD(CONNECTION_ID(), 64)",
    "CREATE TRIGGER IF NOT EXISTS count_deleted_books AFTER DELETE ON books FOR EACH ROW "
    "UPDATE book_counts SET count = count - 1 WHERE slot = MOD(CONNECTION_ID(), 64)",
)


def upgrade() -> None:
    op.create_table(
        "book_counts",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slot"),
        if_not_exists=True,  # MariaDB keeps that of an interrupted migration
    )
    match op.get_context().dialect.name:
        case "sqlite":
            _execute(_SQLITE)
        case "postgresql":
            _execute(_POSTGRESQL)
        case "mariadb":
            _upgrade_mariadb()


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        _execute([f"DROP TRIGGER count_{changed}_books ON books" for changed in ("created", "deleted", "truncated")])
        op.execute("DROP FUNCTION count_books()")
    else:
        _execute([f"DROP TRIGGER IF EXISTS count_{changed}_books" for changed in ("created", "deleted")])
    op.drop_table("book_counts")


def _upgrade_mariadb() -> None:
    try:
        _execute(_MARIADB_TRIGGERS)
    except sa.exc.DBAPIError as error:
        if error.orig is None or error.orig.args[0] != _NEEDS_SUPER:
            raise
        _log.warning("number of books not kept: triggers not permitted", cause=str(error.orig))
        return  # without rows the table counts nothing
    # The lock is given once every transaction that has written without the triggers has ended.
    op.execute("LOCK TABLES books WRITE, book_counts WRITE")
    try:
        op.execute("DELETE FROM book_counts")
        op.execute("INSERT INTO book_counts (slot, count) SELECT 0, count(*) FROM books")
        op.bulk_insert(_COUNTS, [{"slot": slot, "count": 0} for slot in range(1, 64)])
    finally:
        op.execute("UNLOCK TABLES")


def _execute(statements: list[str] | tuple[str, ...]) -> None:
    for statement in statements:
        op.execute(statement)
