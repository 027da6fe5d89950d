"""Whether a session of PostgreSQL or MariaDB can write, found out without a write."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.driver_errors import ReadOnly
from bookstore_grpc.dal.pool_invalidation import is_replaceable

# On in a session that began while `default_transaction_read_only` was, and on a standby.
_POSTGRESQL_READ_ONLY = text("SELECT current_setting('transaction_read_only')::bool")
_MARIADB_READ_ONLY = text("SELECT @@tx_read_only")
# Rejected while the server is `read_only`, except for accounts that may write nevertheless.
_MARIADB_BEGIN = text("START TRANSACTION READ WRITE")


async def require_writable(connection: AsyncConnection) -> None:
    """Raise `ReadOnly` if the session cannot write; the pool then replaces the connection unless it is new."""
    is_postgresql = connection.dialect.name == "postgresql"
    if await connection.scalar(_POSTGRESQL_READ_ONLY if is_postgresql else _MARIADB_READ_ONLY):
        if is_replaceable(connection.info):
            await connection.invalidate()
        raise ReadOnly from PermissionError("the server or the session is read-only")
    if not is_postgresql:
        await connection.execute(_MARIADB_BEGIN)
