"""Create the tables of books and of idempotency keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "0001"
down_revision = None


def _exact(length: int | None = None) -> sa.types.TypeEngine[str]:
    """Return a text type that compares by code point, as of this migration."""
    if length is None:
        return (
            sa.Text()
            .with_variant(postgresql.TEXT(collation="C"), "postgresql")
            .with_variant(mysql.TEXT(charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mariadb")
        )
    return (
        sa.String(length)
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mariadb")
    )


def upgrade() -> None:
    op.create_table(
        "books",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", _exact(500), nullable=False),
        sa.Column("author", _exact(1_000), nullable=False),
        sa.Column("release_year", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("name_folded", _exact(), nullable=False),
        sa.Column("author_folded", _exact(), nullable=False),
        sa.Column("author_head", _exact(255), sa.Computed("substr(author, 1, 255)", persisted=True)),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    for column in ("name", "author_head", "release_year", "create_time", "update_time"):
        op.create_index(f"ix_books_{column}", "books", [column, "id"])
    op.create_table(
        "create_requests",
        sa.Column("request_id", sa.Uuid().with_variant(sa.Uuid(native_uuid=False), "mariadb"), nullable=False),
        sa.Column("book_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mariadb"), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("ix_create_requests_create_time", "create_requests", ["create_time"])


def downgrade() -> None:
    op.drop_table("create_requests")
    op.drop_table("books")
