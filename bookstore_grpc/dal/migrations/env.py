"""Alembic's environment: migrates on a given connection, or generates the SQL for a URL."""

from alembic import context

from bookstore_grpc.dal.models import Base

attributes = context.config.attributes
if (connection := attributes.get("connection")) is not None:
    # SQLite supports transactional DDL, although Alembic assumes that it does not.
    transactional = connection.dialect.name != "mariadb"
    context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=transactional)
else:
    context.configure(url=attributes["url"], target_metadata=Base.metadata, literal_binds=True)
with context.begin_transaction():
    context.run_migrations()
