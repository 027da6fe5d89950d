"""PostgreSQL connections: prepared statements, poolers and the time limit of statements.

Imported only for PostgreSQL, whose driver is an extra.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy.util import LRUCache

# As many as SQLAlchemy keeps.
_STATEMENTS_MAX = 100
# Whether the connection is a pooler's, and unless it is, the time limit, which in a pooler's session would remain for
# other clients. A pooler makes up the process id that it sends at the start, because it chooses a process of the server
# only when a transaction begins.
_START_SESSION = """
SELECT pg_backend_pid() <> $1, CASE WHEN pg_backend_pid() = $1 AND $2::integer > 0
    THEN set_config('statement_timeout', ($2::integer)::text, false) END
"""
# A cancellation that arrives before its statement begins has no effect. Then the statement ends when its connection is
# closed, but PostgreSQL looks at the connection only if told so, since version 14, and not on every system.
_END_WITH_CLIENT = "SET client_connection_check_interval = '1s'"
_UNSUPPORTED = (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError)


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection with prepared statements, which works behind a pooler too.

    Behind a pooler each transaction may run in another session of the server, which does not know a statement prepared
    earlier, or has one of that name. So `is_pooled` connections use the unnamed statement, which asyncpg sends with
    every execution.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_pooled = True  # until it is known
        self._numbers = count(1)
        self._statements: LRUCache[str, Any] = LRUCache(_STATEMENTS_MAX)

    async def prepare(self, query: str, *, name: str | None = None, **options: Any) -> Any:
        """Prepare a statement, with a name of its own unless `is_pooled`. SQLAlchemy calls this too."""
        if name is None and not self.is_pooled:
            name = f"bookstore_{next(self._numbers)}"
        return await super().prepare(query, name=name, **options)

    async def rows(self, sql: str, parameters: Sequence[object]) -> Sequence[Sequence[Any]]:
        """Execute a prepared statement, and return its rows, in one round trip unless the statement is new."""
        statement = self._statements.get(sql)
        if statement is None:
            statement = self._statements[sql] = await self.prepare(sql)
        rows: Sequence[Sequence[Any]] = await statement.fetch(*parameters)
        return rows


async def connect(*arguments: Any, timeout_seconds: float, statement_seconds: float = 0, **options: Any) -> Connection:
    """Connect within `timeout_seconds`, and limit each statement to `statement_seconds`, if not 0 and not pooled.

    Nothing that poolers reject is sent at the start: neither a parameter of the session nor a named statement.
    """
    async with asyncio.timeout(timeout_seconds):
        # With a cache of its own, asyncpg would name statements.
        connection: Connection = await asyncpg.connect(
            *arguments, **options, timeout=timeout_seconds, statement_cache_size=0, connection_class=Connection
        )
        try:
            milliseconds = round(statement_seconds * 1_000)
            row = await connection.fetchrow(_START_SESSION, connection.get_server_pid(), milliseconds)
            connection.is_pooled = row[0]
            if not connection.is_pooled:
                with suppress(*_UNSUPPORTED):
                    await connection.execute(_END_WITH_CLIENT)
        except BaseException:
            connection.terminate()
            raise
    return connection
