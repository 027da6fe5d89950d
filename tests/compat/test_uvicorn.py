"""What is overridden of uvicorn has to be there: without it the bounds on connections would silently not hold."""

import re
from pathlib import Path

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bookstore_grpc.compat.uvicorn import _PROTOCOL_METHODS, _Connection, _Server, check_uvicorn
from bookstore_grpc.errors import StartupError

ROOT = Path(__file__).parents[2]


def test_the_installed_uvicorn_fits() -> None:
    check_uvicorn()


@pytest.mark.parametrize("name", _PROTOCOL_METHODS)
def test_a_uvicorn_without_a_method_that_is_overridden_is_rejected(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for owner in (HttpToolsProtocol, *HttpToolsProtocol.__mro__[1:-1]):
        if name in vars(owner):
            monkeypatch.delattr(owner, name)
    with pytest.raises(StartupError, match=f"lacks {name}:"):
        check_uvicorn()


def test_a_uvicorn_whose_protocol_has_other_attributes_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_init(self: object) -> None:
        pass

    monkeypatch.setattr(HttpToolsProtocol, "__init__", other_init)
    with pytest.raises(StartupError, match="lacks app_state, cycle, headers"):
        check_uvicorn()


def test_everything_that_is_overridden_is_checked() -> None:
    overridden = {name for name in vars(_Connection) if hasattr(HttpToolsProtocol, name) and not name.startswith("__")}
    assert overridden <= set(_PROTOCOL_METHODS)
    assert {name for name in vars(_Server) if hasattr(uvicorn.Server, name) and not name.startswith("__")} <= {
        "capture_signals",
        "startup",
        "shutdown",
    }


def test_the_versions_that_it_was_tried_on_are_those_that_are_installed() -> None:
    tried = re.search(r"Tried on uvicorn (\S+) to (\S+);", (ROOT / "bookstore_grpc/compat/uvicorn.py").read_text())
    assert tried
    least, most = tried.groups()
    below = f"0.{int(most.partition('.')[2]) + 1}"
    assert f'"uvicorn>={least},<{below}"' in (ROOT / "pyproject.toml").read_text()
