"""Store every book as lists send it, on SQLite, so that a page is read without being encoded.

The rows have no entries at first; the server completes them in the background. A server of the previous version inserts
rows without an entry, and the trigger drops that of a row which such a server changes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        op.add_column("books", sa.Column("entry", sa.LargeBinary()))
        op.add_column("books", sa.Column("entry_fields", sa.Integer()))
        op.create_index("ix_books_without_entry", "books", ["id"], sqlite_where=sa.text("entry IS NULL"))
        op.execute(
            "CREATE TRIGGER books_outdated_entry AFTER UPDATE ON books "
            "WHEN new.entry IS NOT NULL AND (new.entry IS old.entry) "
            "BEGIN UPDATE books SET entry = NULL WHERE id = new.id; END"
        )


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER books_outdated_entry")
        op.drop_index("ix_books_without_entry", "books")
        op.drop_column("books", "entry_fields")
        op.drop_column("books", "entry")
