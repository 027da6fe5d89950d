"""The messages between supervisor and workers: what was encoded is decoded, one message a line."""

import pytest

from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.worker_messages import (
    ChangesCommitted,
    Heartbeat,
    Message,
    ModuleMissing,
    Serving,
    StartFailed,
    decode,
    decode_settings,
    encode,
    encode_settings,
)

SERVING = Serving(
    addresses=("127.0.0.1:1", "[::1]:2"),
    database="sqlite bookstore.db",
    tls=True,
    mutual_tls=False,
    tokens=True,
    version="1",
    pid=2,
)


@pytest.mark.parametrize(
    "message",
    [
        SERVING,
        Heartbeat(""),
        Heartbeat("the database\nis away"),
        Heartbeat("", "no writes"),
        StartFailed("Cannot listen."),
        ModuleMissing("grpc"),
        ChangesCommitted(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_is_one_line_and_decoded_as_it_was(message: Message) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == message


def test_the_log_names_http_only_where_it_is_served() -> None:
    assert "http" not in SERVING.log_fields()
    assert SERVING.log_fields()["addresses"] == SERVING.addresses


def test_settings_are_decoded_as_they_were() -> None:
    settings = Settings(listen=("127.0.0.1:1", "unix:/a"), client_scopes=("a=b",), workers="auto", insecure=True)
    assert decode_settings(encode_settings(settings).decode()) == settings
