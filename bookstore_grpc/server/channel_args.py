"""What gRPC's core is told of limits and keepalive, in its own words.

Flow control, buffers and frames are as gRPC has them: larger ones made no difference that could be told from noise,
neither for single books nor for pages of 1,000 (docs/performance.md).
"""

from collections.abc import Sequence

from bookstore_grpc.limits import GRPC_CONNECTIONS_MAX, MESSAGE_MAX_BYTES
from bookstore_grpc.server.settings import Settings

_INT32_MAX = 2**31 - 1
_NEVER_MS = _INT32_MAX
# Until a connection has begun HTTP/2, the handshake of TLS included.
_HANDSHAKE_SECONDS = 10


def server_options(
    settings: Settings, *, shares_ports: bool, max_connections: int = GRPC_CONNECTIONS_MAX
) -> Sequence[tuple[str, int]]:
    """Answer the options of a server; those that all say `shares_ports` may listen on the same addresses.

    Each listener takes `max_connections`.
    """
    return (
        # By gRPC's default two servers share a port without a word, and each answers some of the calls.
        ("grpc.so_reuseport", int(shares_ports)),
        # By default the core keeps account of everything, whether anybody asks or not; the metrics ask for arrivals.
        ("grpc.enable_channelz", int(bool(settings.channelz_listen or settings.metrics_listen))),
        # A little too long: the service refuses it itself, with details. Far too long: it is not taken in at all.
        ("grpc.max_receive_message_length", min(settings.max_message_bytes + MESSAGE_MAX_BYTES, _INT32_MAX)),
        # Above the first gRPC refuses more and more often, above the second always.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        # Else the core counts streams until their memory is freed and resets those of clients that keep to the limit
        # (docs/decisions/0014).
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", settings.max_waiting_calls),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_waiting_calls),
        # What goes beyond is accepted and closed at once, which its client takes for a server that is away.
        ("grpc.max_allowed_incoming_connections", max_connections),
        # gRPC's default lets a connection say nothing for two minutes.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_SECONDS * 1_000),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle_seconds) or _NEVER_MS),
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_seconds) or _NEVER_MS),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace_seconds)),
        # Clients may keep connections alive in idle times too; gRPC's default punishes that.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _milliseconds(settings.keepalive_least_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Find out when a client has gone without saying so.
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(settings.keepalive_timeout_seconds)),
    )


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1_000), _NEVER_MS)
