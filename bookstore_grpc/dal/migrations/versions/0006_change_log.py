"""Add the log of changes, which WatchBooks and ListBookChanges read.

Servers of the previous version do not write to it: it has every change once the last of them has been replaced.
"""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

from bookstore_grpc.dal.models import exact_string, exact_text

revision = "0006"
down_revision = "0005"

_CHANGE_LOG = sa.table("change_log", sa.column("log_id", sa.String), sa.column("last_number", sa.BigInteger))


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
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("log_id"),
        if_not_exists=True,
    )
    op.execute(sa.delete(_CHANGE_LOG))
    op.bulk_insert(_CHANGE_LOG, [{"log_id": uuid4().hex, "last_number": 0}])


def downgrade() -> None:
    op.drop_table("change_log")
    op.drop_table("book_changes")
