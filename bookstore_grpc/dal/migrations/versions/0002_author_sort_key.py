"""Index the author on MariaDB by its sort key, so that the order by author is read from the index."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_context().dialect.name == "mariadb":
        # MariaDB commits each statement, so one that was interrupted is repeated.
        op.execute(
            "ALTER TABLE books ADD COLUMN IF NOT EXISTS author_sort_key VARBINARY(3000) "
            "GENERATED ALWAYS AS (weight_string(author)) VIRTUAL"
        )
        op.execute("CREATE INDEX IF NOT EXISTS ix_books_author_sort_key ON books (author_sort_key, id)")


def downgrade() -> None:
    if op.get_context().dialect.name == "mariadb":
        op.execute("DROP INDEX IF EXISTS ix_books_author_sort_key ON books")
        op.execute("ALTER TABLE books DROP COLUMN IF EXISTS author_sort_key")
