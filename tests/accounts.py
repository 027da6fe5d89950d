"""Accounts of PostgreSQL and MariaDB that belong to a test, with the rights that it gives them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

PASSWORD = "s3cret"


class Account:
    """A user with a password. `execute` is the administrator's; `{user}` in a statement is the account's name."""

    def __init__(self, administrator: AsyncConnection, user: str) -> None:
        url = administrator.engine.url
        self.is_postgresql = url.get_backend_name() == "postgresql"
        self.user = user
        self.database = url.database or ""
        self.url = url.set(username=user, password=PASSWORD).render_as_string(hide_password=False)
        self._administrator = administrator

    async def execute(self, *statements: str) -> None:
        for statement in statements:
            await self._administrator.exec_driver_sql(statement.format(user=self.user, database=self.database))


@asynccontextmanager
async def account(database_url: str) -> AsyncIterator[Account]:
    """Create an account that may log in on the server of a database; at the end drop it and what it owns."""
    engine = create_async_engine(make_url(database_url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as administrator:
        made = Account(administrator, f"test_{uuid.uuid4().hex[:12]}")
        begin, end = f"CREATE USER {{user}} IDENTIFIED BY '{PASSWORD}'", ["DROP USER {user}"]
        if made.is_postgresql:
            begin, end = (
                f"CREATE ROLE {{user}} LOGIN PASSWORD '{PASSWORD}'",
                ["DROP OWNED BY {user}", "DROP ROLE {user}"],
            )
        await made.execute(begin)
        try:
            yield made
        finally:
            await made.execute(*end)
    await engine.dispose()
