"""aiosqlite's connections have the thread that the SQLite engine takes them to have, or the start fails."""

import aiosqlite
import pytest

from bookstore_grpc.compat import aiosqlite as compat
from bookstore_grpc.errors import StartupError


def test_the_installed_version_is_supported() -> None:
    compat.check()


def test_a_version_whose_connections_have_no_such_thread_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiosqlite, "Connection", lambda *_arguments, **_options: object())
    with pytest.raises(StartupError, match=r"aiosqlite [\d.]+ is not supported"):
        compat.check()
