"""Settings: a flag goes before a variable, a variable before the default, and each is explained."""

import os
from dataclasses import FrozenInstanceError
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from bookstore_grpc.cli.server import _settings_options, migrate, serve
from bookstore_grpc.server.settings import ENVIRONMENT_PREFIX, Settings, settings_fields

# For each setting a flag's text and a variable's, other than the default and than each other, and what they mean.
_VALUES: dict[str, tuple[tuple[str, Any], tuple[str, Any]]] = {
    "listen": (("127.0.0.1:1", ("127.0.0.1:1",)), ("127.0.0.1:2 unix:/tmp/x", ("127.0.0.1:2", "unix:/tmp/x"))),
    "http_listen": (("127.0.0.1:1", "127.0.0.1:1"), ("127.0.0.1:2", "127.0.0.1:2")),
    "http_origins": (("https://a", ("https://a",)), ("https://a https://b", ("https://a", "https://b"))),
    "http_hosts": (("a", ("a",)), ("a b", ("a", "b"))),
    "database_url": (("sqlite:///a.db", "sqlite:///a.db"), ("postgresql://h/b", "postgresql://h/b")),
    "migrate": (("", True), ("1", True)),
    "insecure": (("", True), ("true", True)),
    "tls_cert": (("a.pem", "a.pem"), ("b.pem", "b.pem")),
    "tls_key": (("a.key", "a.key"), ("b.key", "b.key")),
    "tls_client_ca": (("a.pem", "a.pem"), ("b.pem", "b.pem")),
    "jwks_file": (("a.json", "a.json"), ("b.json", "b.json")),
    "jwks_url": (("https://a", "https://a"), ("https://b", "https://b")),
    "jwks_refresh_seconds": (("1", 1.0), ("2.5", 2.5)),
    "token_issuer": (("https://a", "https://a"), ("https://b", "https://b")),
    "token_audience": (("a", "a"), ("b", "b")),
    "token_algorithms": (("ES384", ("ES384",)), ("PS256 EdDSA", ("PS256", "EdDSA"))),
    "token_leeway_seconds": (("0", 0.0), ("300", 300.0)),
    "client_scopes": (
        ("a=books.read", ("a=books.read",)),
        ("a=books.read b=books.write", ("a=books.read", "b=books.write")),
    ),
    "health_access": (("guarded", "guarded"), ("guarded", "guarded")),
    "reflection": (("off", "off"), ("off", "off")),
    "workers": (("3", 3), ("auto", "auto")),
    "max_concurrent_calls": (("1", 1), ("2", 2)),
    "max_waiting_calls": (("1", 1), ("2", 2)),
    "max_calls_per_connection": (("1", 1), ("2", 2)),
    "max_call_seconds": (("0.1", 0.1), ("5", 5.0)),
    "rate_limit_per_second": (("0.5", 0.5), ("10", 10.0)),
    "rate_limit_burst": (("1", 1), ("2", 2)),
    "max_watchers": (("1", 1), ("2", 2)),
    "max_watchers_per_caller": (("1", 1), ("2", 2)),
    "changes_kept_hours": (("1", 1.0), ("72.5", 72.5)),
    "max_message_bytes": (("1024", 1_024), ("5000", 5_000)),
    "max_metadata_bytes": (("1024", 1_024), ("5000", 5_000)),
    "max_connections": (("1", 1), ("2", 2)),
    "max_connection_idle_seconds": (("1.5", 1.5), ("10", 10.0)),
    "max_connection_age_seconds": (("1.5", 1.5), ("10", 10.0)),
    "max_connection_age_grace_seconds": (("0", 0.0), ("1.5", 1.5)),
    "keepalive_seconds": (("1", 1.0), ("2.5", 2.5)),
    "keepalive_timeout_seconds": (("1", 1.0), ("2.5", 2.5)),
    "keepalive_least_seconds": (("0", 0.0), ("2.5", 2.5)),
    "drain_seconds": (("1.5", 1.5), ("0", 0.0)),
    "drain_delay_seconds": (("1.5", 1.5), ("2", 2.0)),
    "metrics_listen": (("127.0.0.1:1", "127.0.0.1:1"), ("127.0.0.1:2", "127.0.0.1:2")),
    "channelz_listen": (("127.0.0.1:1", "127.0.0.1:1"), ("unix:/tmp/x", "unix:/tmp/x")),
    "trace_endpoint": (("http://a:1", "http://a:1"), ("https://b", "https://b")),
    "trace_ratio": (("0", 0.0), ("0.5", 0.5)),
    "health_interval_seconds": (("0.1", 0.1), ("2", 2.0)),
    "health_requires_writes": (("", True), ("on", True)),
    "pool_size": (("1", 1), ("1000", 1_000)),
    "max_concurrent_searches": (("1", 1), ("1000", 1_000)),
    "database_timeout_seconds": (("0.1", 0.1), ("30", 30.0)),
    "log_level": (("debug", "debug"), ("error", "error")),
    "slow_call_seconds": (("0", 0.0), ("2.5", 2.5)),
    "log_format": (("json", "json"), ("console", "console")),
}
_NAMES = [setting.name for setting in settings_fields()]


def _invoke(*arguments: str, **environment: str) -> tuple[Result, list[Settings]]:
    """Read settings as `serve` does, and serve nothing."""
    read: list[Settings] = []

    @click.command()
    @_settings_options()
    def command(**values: Any) -> None:
        read.append(Settings(**values))

    return CliRunner(env=environment).invoke(command, list(arguments), catch_exceptions=False), read


def _read(*arguments: str, **environment: str) -> Settings:
    result, (settings,) = _invoke(*arguments, **environment)
    assert result.exit_code == 0, result.output
    return settings


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(_variable(name), raising=False)


def test_every_setting_is_tried_here() -> None:
    assert list(_VALUES) == _NAMES


def test_without_flags_and_variables_there_are_the_defaults() -> None:
    assert _read() == Settings()
    assert Settings().listen == ("127.0.0.1:50051",)
    assert Settings().database_url == "sqlite+aiosqlite:///bookstore.db"
    assert not Settings().insecure


@pytest.mark.parametrize("name", _NAMES)
def test_variable_goes_before_the_default_and_a_flag_before_both(name: str) -> None:
    (flag_text, flag_value), (variable_text, variable_value) = _VALUES[name]
    default = getattr(Settings(), name)
    assert default not in (flag_value, variable_value)
    by_variable = _read(**{_variable(name): variable_text})
    assert getattr(by_variable, name) == variable_value
    arguments = [_flag(name), flag_text] if flag_text else [_flag(name)]
    assert getattr(_read(*arguments), name) == flag_value
    both = _read(*arguments, **{_variable(name): variable_text if flag_text else "0"})
    assert getattr(both, name) == flag_value


def test_listen_can_be_repeated() -> None:
    assert _read("--listen", "[::1]:0", "--listen", "unix:/tmp/x").listen == ("[::1]:0", "unix:/tmp/x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workers", "0"),
        ("workers", "65"),
        ("workers", "2.5"),
        ("workers", "many"),
        ("drain_seconds", "-1"),
        ("drain_seconds", "soon"),
        ("drain_delay_seconds", "-0.1"),
        ("health_interval_seconds", "0"),
        ("pool_size", "0"),
        ("pool_size", "1001"),
        ("pool_size", "1.5"),
        ("max_concurrent_searches", "0"),
        ("database_timeout_seconds", "0"),
        ("log_level", "loud"),
        ("log_format", "xml"),
    ],
)
def test_value_out_of_its_range_is_rejected_by_flag_and_by_variable(name: str, text: str) -> None:
    for result, read in (_invoke(_flag(name), text), _invoke(**{_variable(name): text})):
        assert read == []
        assert result.exit_code == 2
        assert _flag(name) in result.output


_WITH_TEXT = [setting.name for setting in settings_fields() if setting.type is not bool]


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize("name", _NAMES)
def test_empty_variable_is_rejected_by_its_name(name: str, text: str) -> None:
    result, read = _invoke(**{_variable(name): text})
    assert read == []
    assert result.exit_code == 2
    assert f"The variable {_variable(name)} is empty: give it a value, or unset it." in result.output


@pytest.mark.parametrize("name", _WITH_TEXT)
def test_empty_flag_is_rejected(name: str) -> None:
    result, read = _invoke(_flag(name), "")
    assert read == []
    assert result.exit_code == 2
    assert f"{_flag(name)} is empty: give it a value, or leave it out." in result.output


def test_empty_variable_of_what_a_flag_says_does_not_matter() -> None:
    assert _read("--pool-size", "3", BOOKSTORE_POOL_SIZE="").pool_size == 3


_INTEGERS = [setting.name for setting in settings_fields() if setting.type is int]


@pytest.mark.parametrize("name", _INTEGERS)
def test_number_beyond_the_range_of_grpc_is_rejected(name: str) -> None:
    result, read = _invoke(_flag(name), str(2**31))
    assert read == []
    assert result.exit_code == 2


_FLOATS = [setting.name for setting in settings_fields() if setting.type is float]


@pytest.mark.parametrize("name", _FLOATS)
def test_value_that_is_not_a_number_is_rejected(name: str) -> None:
    result, read = _invoke(_flag(name), "nan")
    assert read == []
    assert result.exit_code == 2


def _help(command: click.Command) -> Result:
    return CliRunner().invoke(command, ["--help"], terminal_width=200)


@pytest.mark.parametrize("name", _NAMES)
def test_help_of_serve_explains_each_setting(name: str) -> None:
    text = " ".join(_help(serve).output.split())
    (setting,) = [setting for setting in settings_fields() if setting.name == name]
    assert _flag(name) in text
    assert _variable(name) in text
    assert " ".join(setting.metadata["help"].split()) in text


def test_help_of_migrate_explains_only_what_it_uses() -> None:
    text = _help(migrate).output
    assert "--database-url" in text
    assert "--sql" in text
    assert "--listen" not in text


def test_workers_are_as_many_as_is_said_or_one_for_each_core() -> None:
    assert Settings(workers=64).worker_count == 64
    assert Settings(workers="auto").worker_count == min(64, len(os.sched_getaffinity(0)))


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().pool_size = 3  # type: ignore[misc]  # that is what is tried
