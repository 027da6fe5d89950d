"""Pool invalidation: idle connections are tested before use, and those that are dead or read-only are replaced."""

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Dialect, ExceptionContext, event, exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from bookstore_grpc.dal.driver_errors import has_lost_connection, is_read_only

# A connection that was idle for this long is pinged before use, because a firewall may have dropped it silently. Under
# load no connection is idle for so long.
_IDLE_SECONDS = 1
_PING_SECONDS = 1
# While a server is read-only, so are new connections to it: those younger than this are not replaced.
_READ_ONLY_SECONDS = 1


class PoolInvalidation:
    """Prevents the pools of a database from returning dead connections.

    SQLAlchemy's `pool_pre_ping` would ping at every checkout, and each pool would detect dead connections separately.
    Here, one dead connection invalidates all connections of all engines that were open at that moment, because the same
    cause usually affects all of them. A read-only one, as after a failover, invalidates those of its engine.
    """

    def __init__(self) -> None:
        self._invalid_until = -math.inf

    def invalidate(self, *, opened_before: float | None = None) -> None:
        """Invalidate connections opened before a `time.monotonic`, by default now. They are closed at checkout."""
        self._invalid_until = max(self._invalid_until, time.monotonic() if opened_before is None else opened_before)

    def invalidate_if_lost(self, error: BaseException, pooled: PoolProxiedConnection, dialect: Dialect) -> bool:
        """Return whether a driver error means that a connection is lost. If so, invalidate all others too."""
        connection: Any = pooled.dbapi_connection
        is_lost = isinstance(error, Exception) and (
            has_lost_connection(error, dialect.name) or dialect.is_disconnect(error, connection, None)  # type: ignore[arg-type]
        )
        if is_lost:
            self.invalidate()
        return is_lost

    def watch(self, engine: AsyncEngine) -> None:
        """Test the connections of an engine at checkout, and detect lost connections by its errors."""

        @event.listens_for(engine.sync_engine, "connect")
        def record_opening(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["opened_at"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkin")
        def record_idle(_connection: object, record: ConnectionPoolEntry) -> None:
            record.info["idle_since"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def test(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
            record.info["checked_out_at"] = time.monotonic()
            if not self._is_usable(connection, record):
                record.info["opened_at"] = -math.inf
                raise exc.DisconnectionError

        @event.listens_for(engine.sync_engine, "close")
        def close(connection: Any, record: ConnectionPoolEntry) -> None:
            if engine.dialect.name == "postgresql" and self._may_be_dead(record):
                # asyncpg would close gracefully, and wait for an unresponsive server.
                connection.driver_connection.terminate()

        @event.listens_for(engine.sync_engine, "handle_error")
        def invalidate_if_lost(context: ExceptionContext) -> None:
            self._invalidate_after_error(context, engine.dialect.name)

    def _may_be_dead(self, record: ConnectionPoolEntry) -> bool:
        opened_at, idle_since = record.info.get("opened_at", math.inf), record.info.get("idle_since", math.inf)
        return bool(opened_at <= self._invalid_until) or time.monotonic() - idle_since >= _IDLE_SECONDS

    def _is_usable(self, connection: Any, record: ConnectionPoolEntry) -> bool:
        checked_out_at = record.info["checked_out_at"]
        idle_since = record.info.get("idle_since")
        if idle_since is None:
            return True  # it was opened just now
        if record.info["opened_at"] <= self._invalid_until:
            return False
        if checked_out_at - idle_since < _IDLE_SECONDS:
            return True
        is_alive = connection.run_async(_is_alive)
        if is_alive is False:  # not if None: a pooler or a busy server may be slow
            self.invalidate(opened_before=checked_out_at)
        return bool(is_alive)

    def _invalidate_after_error(self, context: ExceptionContext, dialect: str) -> None:
        if context.connection is None or context.connection.invalidated:
            return
        if is_read_only(context.original_exception, dialect):
            # SQLAlchemy then replaces the connections of this pool. Those of readers can still be used.
            context.is_disconnect = is_replaceable(context.connection.info)
            return
        if context.is_disconnect or has_lost_connection(context.original_exception, dialect):
            context.is_disconnect = True
            if context.invalidate_pool_on_disconnect:  # false if a caller was cancelled during its statement
                context.invalidate_pool_on_disconnect = False
                # Up to now, so that what is repeated uses a new one: others may have been opened since the checkout.
                self.invalidate()


def is_replaceable(info: Mapping[str, Any]) -> bool:
    """Return whether to replace a connection of this `info` that is read-only: not if it was opened just now."""
    opened_at: float = info["opened_at"]
    return time.monotonic() - opened_at >= _READ_ONLY_SECONDS


async def _is_alive(driver_connection: Any) -> bool | None:
    """Return whether the server responds to a ping, or None if nothing arrives in time."""
    try:
        async with asyncio.timeout(_PING_SECONDS):
            if hasattr(driver_connection, "ping"):
                await driver_connection.ping(reconnect=False)
            else:
                await driver_connection.execute("SELECT 1")  # asyncpg cannot execute an empty statement
    except TimeoutError as error:
        return None if error.errno is None else False  # timeouts of the kernel have an errno
    except Exception:  # drivers raise many kinds of exceptions; each means that the connection is dead
        return False
    return True
