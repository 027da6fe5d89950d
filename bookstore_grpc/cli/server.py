"""The verbs that run the service: `serve`, `migrate` and `backup`. Their flags are derived from `Settings`."""

import asyncio
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from bookstore_grpc.cli.options import OptionWithVariable
from bookstore_grpc.cli.session import Seconds, count_with_noun, unknown_variables
from bookstore_grpc.errors import StartupError
from bookstore_grpc.server.settings import ENVIRONMENT_PREFIX, Settings, settings_fields

_PASSWORD = re.compile(r"://[^/]*:[^/]*@|[?&](ssl)?password=")


def _settings_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a flag and a variable for each setting, or for the named ones only."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for setting in reversed(settings_fields()):
            if not names or setting.name in names:
                command = _option(setting)(command)
        return command

    return decorate


def _option(setting: Field[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    default: Any = setting.default
    is_repeatable = get_origin(setting.type) is tuple
    options: dict[str, Any] = {"is_flag": True} if setting.type is bool else {"type": _click_type(setting)}
    return click.option(
        f"--{setting.name.replace('_', '-')}",
        cls=OptionWithVariable,
        default=default,
        multiple=is_repeatable,
        envvar=ENVIRONMENT_PREFIX + setting.name.upper(),
        help=setting.metadata["help"],
        show_default=", ".join(default) if is_repeatable and default else True,
        show_envvar=True,
        **options,
    )


def _click_type(setting: Field[Any]) -> click.ParamType[Any] | type:
    least, most = setting.metadata["least"], setting.metadata["most"]
    is_repeatable = get_origin(setting.type) is tuple
    kind = get_args(setting.type)[0] if is_repeatable else setting.type
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if setting.type is int:
        return click.IntRange(least, most)
    if int in get_args(setting.type):
        return _NumberOrAuto(least, most)
    if setting.type is float:
        return Seconds(least, most)
    return str


class _NumberOrAuto(click.IntRange):
    name = "auto|number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return value
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither auto nor a whole number from {self.min} to {self.max}.", param, ctx)


@click.command()
@_settings_options()
@click.pass_context
def serve(context: click.Context, /, **values: Any) -> None:
    """Serve the catalogue until SIGTERM or SIGINT.

    A SQLite database is created and migrated automatically. For the others run `bookstore migrate` first.
    """
    settings = Settings(**values)
    # Until the event loop handles signals. PID 1 of a container would ignore SIGTERM without a handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with _server_side(context, settings):
        if settings.worker_count > 1:
            from bookstore_grpc.server import supervisor

            if not asyncio.run(supervisor.serve(settings)):
                context.exit(1)
        else:
            import uvloop

            from bookstore_grpc.server import commands

            uvloop.run(commands.serve(settings))


@click.command()
@_settings_options("database_url", "database_timeout_seconds", "log_level", "log_format")
@click.option(
    "--sql", is_flag=True, help="Print the SQL that creates the tables in an empty database, without connecting."
)
@click.pass_context
def migrate(context: click.Context, /, *, sql: bool, **values: Any) -> None:
    """Bring the database's tables to the newest migration."""
    settings = Settings(**values)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _server_side(context, settings):
        from bookstore_grpc.server import commands

        if sql:
            click.echo(commands.migration_sql(settings), nl=False)
        else:
            click.echo(f"The tables are at revision {asyncio.run(commands.migrate(settings))}.")


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@_settings_options("database_url", "database_timeout_seconds")
@click.pass_context
def backup(context: click.Context, /, *, path: Path, force: bool, **values: Any) -> None:
    """Copy a SQLite database to FILE, even while servers use it.

    FILE appears when it is complete and verified. It contains everything that was stored before the copy began. For
    PostgreSQL use pg_dump, for MariaDB mariadb-dump.
    """
    settings = Settings(**values)
    # On SIGTERM, too, a partial copy must be removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _server_side(context, settings):
        from bookstore_grpc.server import commands

        with click.progressbar(length=1, file=sys.stderr, label="Copying", hidden=not sys.stderr.isatty()) as bar:

            def show(done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            books = commands.back_up(settings, path, force=force, on_progress=show)
        click.echo(f"{count_with_noun(books, 'book')} in {path}.")


@contextmanager
def _server_side(context: click.Context, settings: Settings) -> Iterator[None]:
    """Configure logging, and translate start-up errors into errors of the command."""
    try:
        from bookstore_grpc.telemetry.logs import configure_logging, warn_of_variables

        configure_logging(level=settings.log_level, log_format=settings.log_format)
        _warn_of_visible_password(context, settings)
        warn_of_variables(unknown_variables(context))
        yield
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`bookstore {context.info_name}` needs the extra [server] (no module {error.name!r}): "
            "pip install 'bookstore-grpc[server]'."
        ) from error
    except StartupError as error:
        raise click.ClickException(error.message) from error


def _warn_of_visible_password(context: click.Context, settings: Settings) -> None:
    is_argument = context.get_parameter_source("database_url") is ParameterSource.COMMANDLINE
    if is_argument and _PASSWORD.search(settings.database_url):
        click.echo(
            "Warning: `ps` shows the password in --database-url to everyone on this machine; "
            f"set {ENVIRONMENT_PREFIX}DATABASE_URL instead.",
            err=True,
        )
