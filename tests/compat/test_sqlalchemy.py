"""SQLAlchemy's cache key is what the inline reader takes it for, or the start fails."""

import pytest
from sqlalchemy import Select

from bookstore_grpc.compat import sqlalchemy as compat
from bookstore_grpc.errors import StartupError


def test_the_installed_version_is_supported() -> None:
    compat.check()


def test_a_version_without_cache_keys_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Select, "_generate_cache_key", None)
    with pytest.raises(StartupError, match=r"SQLAlchemy [\d.]+ is not supported"):
        compat.check()


def test_a_version_whose_cache_keys_hold_the_values_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Select._generate_cache_key
    monkeypatch.setattr(Select, "_generate_cache_key", lambda self: generate(self)._replace(key=(object(),)))  # type: ignore[union-attr]
    with pytest.raises(StartupError, match=r"SQLAlchemy [\d.]+ is not supported"):
        compat.check()
