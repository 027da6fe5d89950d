"""Index the searched texts, so that a search for a part of one does not read the whole table."""

from alembic import op

from bookstore_grpc.dal.migrations.search_index import create_search_index, drop_search_index

revision = "0004"
down_revision = "0003"

_COLUMNS = ("name_folded", "author_folded")


def upgrade() -> None:
    create_search_index(op.execute, _COLUMNS, dialect=op.get_context().dialect.name)


def downgrade() -> None:
    drop_search_index(op.execute, dialect=op.get_context().dialect.name)
