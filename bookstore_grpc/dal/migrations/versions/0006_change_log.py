"""Add the log of changes, which WatchBooks and ListBookChanges read.

Servers of the previous version do not write to it: it has every change once the last of them has been replaced.
"""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

from bookstore_grpc.dal.models import exact_string, exact_text

revision = "0006"
down_revision = "0005"

_CHANGE_LOG = sa.table("change_log", sa.column("log_id", sa.String))

# Each of its statements sees what was committed before it, so also what the previous holder of the lock has written.
# The lock writes no new version of the row, of which old snapshots would let many pile up.
# A server that hangs with the lock, such as a suspended process, loses its transaction after five seconds.
_LOG_BOOK_CHANGES = (
    "CREATE OR REPLACE FUNCTION log_book_changes(remaining_of integer[], type_of smallint[], time_of bigint[], "
    "book_of text[], previous_book_of text[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN "
    "PERFORM set_config('idle_in_transaction_session_timeout', '5000', true); "
    "PERFORM log_id FROM change_log FOR UPDATE; "
    "INSERT INTO book_changes (number, remaining, type, change_time, book, previous_book) "
    "SELECT (SELECT coalesce(max(number), 0) FROM book_changes) + given.position, "
    "given.remaining, given.type, given.change_time, given.book, given.previous_book "
    "FROM unnest(remaining_of, type_of, time_of, book_of, previous_book_of) "
    "WITH ORDINALITY AS given (remaining, type, change_time, book, previous_book, position); "
    "PERFORM pg_notify('bookstore_changes', ''); END $$"
)


def upgrade() -> None:
    op.create_table(
        "book_changes",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("remaining", sa.Integer(), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("change_time", sa.BigInteger(), nullable=False),
        sa.Column("book", exact_text(), nullable=False),
        sa.Column("previous_book", exact_text(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        if_not_exists=True,  # MariaDB keeps that of an interrupted migration
    )
    op.create_table(
        "change_log",
        sa.Column("log_id", exact_string(32), nullable=False),
        sa.PrimaryKeyConstraint("log_id"),
        if_not_exists=True,
    )
    op.execute(sa.delete(_CHANGE_LOG))
    op.bulk_insert(_CHANGE_LOG, [{"log_id": uuid4().hex}])
    if op.get_context().dialect.name == "postgresql":
        op.execute(_LOG_BOOK_CHANGES)


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION log_book_changes")
    op.drop_table("change_log")
    op.drop_table("book_changes")
