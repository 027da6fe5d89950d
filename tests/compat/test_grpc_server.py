"""Backpressure needs a grpcio that is as it is known here; with another a server does not start."""

import grpc
import pytest

from bookstore_grpc.compat import grpc_server
from bookstore_grpc.errors import StartupError
from tests.rpc.obstacles import Waiting
from tests.rpc.servers import server_with


def test_the_installed_grpcio_is_the_one_that_was_tried() -> None:
    assert grpc.__version__ == grpc_server.TRIED_ON


async def test_a_server_whose_calls_could_not_be_held_back_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "_REQUEST_CALL", "AioServer._request_registered_call_of_another_release")
    with pytest.raises(StartupError, match=f"With grpcio {grpc.__version__} calls cannot be held back"):
        async with server_with(Waiting()):
            pass
