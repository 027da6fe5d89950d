"""Logs: structured lines on standard error, JSON for machines and readable for people."""

import asyncio
import atexit
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
import structlog

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Who watches does not notice it, and no more is lost by kill -9.
_TOGETHER_SECONDS = 0.02
_TOGETHER_MOST_LINES = 256
# Pipes keep writes of up to 4 KiB whole, so lines of several processes do not mix. Most characters are one byte.
_WHOLE_CHARACTERS = 4_000


def configure_logging(*, level: LogLevel, log_format: LogFormat, worker: int | None = None) -> None:
    """Send every line of this process, libraries' included, to standard error in one format.

    "auto" is readable on a terminal and JSON elsewhere. Values bound with `structlog.contextvars` stand in every line,
    and so does the index of the worker, if this process is one: a context variable would not reach every thread.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    _output.stream = sys.stderr
    _output.is_json = not is_console
    _output.in_every_line = {} if worker is None else {"worker": worker}
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_what_is_in_every_line,
    ]
    rendering: list[Any]
    if is_console:
        # Not by rich, as it is where that is installed: it shows what variables hold, passwords and books among them.
        plain = structlog.dev.plain_traceback
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
    structlog.configure(
        processors=[*shared, *rendering],
        # Not by way of the standard library's handlers, which take three times as long.
        logger_factory=lambda *_names: _output,
        # A line below the level costs nothing: its method does nothing.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, *rendering])
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # It repeats what MariaDB remarks on, such as the name of Alembic's primary key.
    logging.getLogger("asyncmy").setLevel(logging.ERROR)
    # It writes a traceback for every connection that it finds broken; that the database is away has a line of ours.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    # What a stranger sends that is no HTTP is told to the stranger.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("bookstore_grpc").setLevel(level.upper())


def _json(event: dict[str, Any], default: Callable[[Any], Any]) -> str:
    try:
        return orjson.dumps(event, default=default).decode()
    except TypeError:  # a lone surrogate, as an odd file name has; the stream shows it in its own way
        return json.dumps(event, default=default, ensure_ascii=False)


class _Output:
    """Where the lines of structlog's loggers go.

    Up to information they wait a moment, and those that came meanwhile are written together: a write lets other
    threads take over. What a call's line says is put into words only then, which takes a third of the time when many
    are done in a row. A warning waits for nothing.
    """

    def __init__(self) -> None:
        self.stream: TextIO = sys.stderr
        self.is_json = False
        self.in_every_line: dict[str, Any] = {}
        self._waiting: list[str | dict[str, Any]] = []

    def write_soon(self, line: str | dict[str, Any]) -> None:
        """Write a line, or the JSON of what it says, with others."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write(self._text(line))
            return
        if not self._waiting:
            loop.call_later(_TOGETHER_SECONDS, self.flush)
        self._waiting.append(line)
        if len(self._waiting) >= _TOGETHER_MOST_LINES:
            self.flush()

    def write_now(self, line: str | dict[str, Any]) -> None:
        """Write what waits, and a line, or the JSON of what it says."""
        with suppress(RuntimeError):
            asyncio.get_running_loop()  # raises in other threads, which must not touch what waits here
            self.flush()
        self._write(self._text(line))

    def flush(self) -> None:
        """Write what waits."""
        lines = [self._text(line) for line in self._waiting]
        self._waiting.clear()
        together = ""
        for line in lines:
            if together and len(together) + len(line) > _WHOLE_CHARACTERS:
                self._write(together)
                together = ""
            together += line
        if together:
            self._write(together)

    def _text(self, line: str | dict[str, Any]) -> str:
        if isinstance(line, dict):
            line |= self.in_every_line
            line["level"] = logging.getLevelName(line["level"]).lower()
            line["timestamp"] = datetime.fromtimestamp(line["timestamp"], UTC).isoformat().replace("+00:00", "Z")
            line = _json(line, repr)
        return line + "\n"

    def _write(self, text: str) -> None:
        # Whoever read the log may have gone, which is nothing to a call.
        with suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()

    debug = info = msg = write_soon
    warning = error = critical = write_now


_output = _Output()
atexit.register(_output.flush)


def write_line(logger: structlog.stdlib.BoundLogger, level: int, event: str, fields: dict[str, Any]) -> None:
    """Write the line that every call has: what `logger` would write, without its processors, which take longer.

    Lines with an exception, and those for people, are left to the logger. Context variables are not looked at.
    """
    if not _output.is_json or "exc_info" in fields:
        logger.log(level, event, **fields)
        return
    fields |= {"event": event, "level": level, "timestamp": time.time()}
    if level >= logging.WARNING:
        _output.write_now(fields)
    else:
        _output.write_soon(fields)


def warn_of_variables(names: Iterable[str]) -> None:
    """Write a line for each variable that looks like a setting and is none; never its value."""
    for name in names:
        structlog.stdlib.get_logger("bookstore_grpc.server.settings").warning("unknown variable", variable=name)


def flush_logs() -> None:
    """Write every line that waits: for those who cannot wait, or end without cleanup."""
    _output.flush()


def _add_what_is_in_every_line(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.update(_output.in_every_line)
    return event
