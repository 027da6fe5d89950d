"""A request beyond the limit, whose client sends all of it before it reads the rejection."""

import asyncio
import json
from http.client import HTTPConnection
from pathlib import Path

import pytest

from bookstore_grpc.limits import MESSAGE_MAX_BYTES
from bookstore_grpc.server.app import running_server
from tests.conftest import settings_for


def post(address: str, body: bytes) -> tuple[int, str]:
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", "/v1/books", body=body, headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())["message"]
    finally:
        connection.close()


@pytest.mark.parametrize("times", [1.1, 3])
async def test_the_error_for_a_body_that_is_too_long_arrives(tmp_path: Path, times: float) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/bookstore.db"
    async with running_server(settings_for(url, http_listen="127.0.0.1:0")) as server:
        status, message = await asyncio.to_thread(post, server.http_address, b" " * int(times * MESSAGE_MAX_BYTES))

    assert status == 413
    assert "8388608 bytes" in message
