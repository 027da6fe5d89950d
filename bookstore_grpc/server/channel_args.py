"""gRPC's channel arguments for limits and keepalive, from the settings.

Flow control, buffers and frames keep gRPC's defaults: larger ones made no measurable difference, neither for single
books nor for pages of 1,000 (docs/performance.md).
"""

from collections.abc import Sequence

from bookstore_grpc.limits import GRPC_CONNECTIONS_MAX, MESSAGE_MAX_BYTES
from bookstore_grpc.server.settings import Settings

_INT32_MAX = 2**31 - 1
_NEVER_MS = _INT32_MAX
# From accepting a connection to the start of HTTP/2, including the TLS handshake.
_HANDSHAKE_SECONDS = 10


def server_options(
    settings: Settings, *, shares_ports: bool, max_connections: int = GRPC_CONNECTIONS_MAX
) -> Sequence[tuple[str, int]]:
    """Return the channel arguments of a server.

    With `shares_ports` several processes can listen on the same addresses. `max_connections` applies to each listener.
    """
    return (
        # On by default: two servers started on one port by mistake would share its connections without an error.
        ("grpc.so_reuseport", int(shares_ports)),
        # On by default, and not free. The metrics read the number of received calls from channelz.
        ("grpc.enable_channelz", int(bool(settings.channelz_listen or settings.metrics_listen))),
        # A request slightly over the limit is rejected by the service, with details; a far longer one by gRPC, unread.
        ("grpc.max_receive_message_length", min(settings.max_message_bytes + MESSAGE_MAX_BYTES, _INT32_MAX)),
        # gRPC rejects calls above the first with increasing probability, above the second always.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        # On by default: the core counts a stream until its memory is freed, and so resets streams of clients that keep
        # to the limit (docs/decisions/0014).
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", settings.max_waiting_calls),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_waiting_calls),
        # Further connections are closed immediately after they are accepted, which clients treat as UNAVAILABLE.
        ("grpc.max_allowed_incoming_connections", max_connections),
        # The default is two minutes.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_SECONDS * 1_000),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle_seconds) or _NEVER_MS),
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_seconds) or _NEVER_MS),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace_seconds)),
        # Clients may send keepalive pings on idle connections too; by default that closes the connection.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _milliseconds(settings.keepalive_least_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Detect clients that have disconnected without closing the connection.
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(settings.keepalive_timeout_seconds)),
    )


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1_000), _NEVER_MS)
