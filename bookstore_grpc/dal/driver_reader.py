"""Reads of PostgreSQL and MariaDB by the driver itself (docs/decisions/0023-driver-reads.md)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from bookstore_grpc.dal.driver_errors import ConnectionLost, error_types, translated_errors
from bookstore_grpc.dal.pool_invalidation import PoolInvalidation
from bookstore_grpc.dal.statement_compiler import StatementCompiler

Rows = Sequence[Sequence[Any]]


class DriverReader:
    """Executes SQL that SQLAlchemy has compiled, on a driver's connection from the pool of a reading engine.

    SQLAlchemy's execution and results cost several times what the driver needs for a book or a page. Columns are
    numbers and texts, which need no conversion.
    """

    def __init__(self, engine: AsyncEngine, pool_invalidation: PoolInvalidation) -> None:
        self._engine = engine
        self._pool_invalidation = pool_invalidation
        self.compile = StatementCompiler(engine.dialect).compile
        self.fetch = _fetch_from_postgresql if engine.dialect.name == "postgresql" else _fetch_from_mariadb

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Check out a driver's connection. After a cancellation or a defect, its state is unknown, so it is closed.

        Raises `DatabaseUnavailable`, and `ConnectionLost` after invalidating the connections that are lost with it.
        """
        dialect = self._engine.dialect
        with translated_errors(dialect.name):
            pooled = await self._engine.raw_connection()
            try:
                yield pooled.driver_connection
            except BaseException as error:
                is_lost = self._pool_invalidation.invalidate_if_lost(error, pooled, dialect)
                if is_lost or not isinstance(error, error_types(dialect.name)):
                    await greenlet_spawn(pooled.invalidate)
                else:
                    pooled.close()
                if is_lost:
                    raise ConnectionLost from error
                raise
            pooled.close()


async def _fetch_from_postgresql(connection: Any, sql: str, parameters: Sequence[object]) -> Rows:
    rows: Rows = await connection.rows(sql, parameters)
    return rows


async def _fetch_from_mariadb(connection: Any, sql: str, parameters: Sequence[object]) -> Rows:
    async with connection.cursor() as cursor:
        await cursor.execute(sql, parameters)
        rows: Rows = await cursor.fetchall()
        return rows
