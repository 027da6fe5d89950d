"""Divides the rows of a write among statements, because MariaDB limits the length of one (`max_allowed_packet`)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.dal.engines import PACKET_BYTES
from bookstore_grpc.limits import INSERT_MAX_BYTES

# Upper bound of a row of an INSERT or UPDATE without its texts: numbers, names, quotes, a digest of escaped bytes.
_ROW_BYTES = 512
# Upper bound of the statement before its rows.
_HEAD_BYTES = 512

Row = TypeVar("Row")


def packets(
    connection: AsyncConnection, rows: Sequence[Row], *, values: Callable[[Row], Iterable[object]]
) -> Iterator[list[Row]]:
    """Yield the rows of each statement: on MariaDB as many as fit into one, elsewhere all. `values` returns a row's."""
    if connection.dialect.name != "mariadb":
        yield list(rows)
        return
    info = connection.sync_connection.info  # type: ignore[union-attr]  # not None within a transaction
    most = min(INSERT_MAX_BYTES, info[PACKET_BYTES]) - _HEAD_BYTES
    packet: list[Row] = []
    left = most
    for row in rows:
        # The driver inserts the values into the statement, where each byte may need an escape.
        size = _ROW_BYTES + sum(2 * len(value.encode()) for value in values(row) if isinstance(value, str))
        if size > left and packet:
            yield packet
            packet, left = [], most
        packet.append(row)
        left -= size
    yield packet
