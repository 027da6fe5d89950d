"""Logs: structured lines on standard error, as JSON or for a terminal."""

import asyncio
import atexit
import json
import logging
import sys
import time
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
import structlog

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

# How long lines are buffered: unnoticeable to a reader, and the most that kill -9 loses.
_BUFFER_SECONDS = 0.02
_BUFFER_LINES_MAX = 256
# Writes of up to 4 KiB to a pipe are atomic (PIPE_BUF), so lines of several processes do not mix. Most characters take
# one byte.
_ATOMIC_WRITE_CHARACTERS = 4_000


def configure_logging(*, level: LogLevel, log_format: LogFormat, worker: int | None = None) -> None:
    """Send every line of this process, including those of libraries, to standard error in one format.

    "auto" means "console" on a terminal and "json" elsewhere. Every line has the values bound with
    `structlog.contextvars` and, in a worker, its index; a context variable for that would not be set in every thread.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    _output.stream = sys.stderr
    _output.is_json = not is_console
    _output.fields_of_every_line = {} if worker is None else {"worker": worker}
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if is_console else None, utc=True),
        _add_fields_of_every_line,
    ]
    rendering: list[Any]
    if is_console:
        # If rich is installed, structlog would use it, and its tracebacks show values of variables, such as passwords.
        plain = structlog.dev.plain_traceback
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        rendering = [structlog.processors.format_exc_info, lambda _logger, _method, fields: _json(fields)]
    structlog.configure(
        processors=[*shared, *rendering],
        # The standard library's handlers take three times as long.
        logger_factory=lambda *_names: _output,
        # Methods of levels that are not logged do nothing, at no cost.
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
    # asyncmy logs MariaDB's notes, such as one about the name of Alembic's primary key.
    logging.getLogger("asyncmy").setLevel(logging.ERROR)
    # The pool logs a traceback for every broken connection; the health monitor already logs an unavailable database.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    # uvicorn warns about invalid HTTP, which any client can send.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("bookstore_grpc").setLevel(level.upper())


def _json(fields: MutableMapping[str, Any]) -> str:
    """Render the fields of a line, whose timestamp is in Unix seconds. All JSON lines are rendered here."""
    time = fields["timestamp"] = datetime.fromtimestamp(fields["timestamp"], UTC)
    try:
        return orjson.dumps(fields, default=repr, option=orjson.OPT_UTC_Z).decode()
    except TypeError:  # a lone surrogate, such as from a file name that is not UTF-8; the stream escapes it
        fields["timestamp"] = f"{time:%Y-%m-%dT%H:%M:%S.%fZ}"
        return json.dumps(fields, default=repr, ensure_ascii=False)


class _Output:
    """The output of structlog's loggers.

    Lines up to level info are buffered briefly and written together, because each write releases the interpreter lock.
    Lines of calls are also rendered at that point, which takes a third of the time when many are rendered in a row.
    Warnings and errors are written immediately.
    """

    def __init__(self) -> None:
        self.stream: TextIO = sys.stderr
        self.is_json = False
        self.fields_of_every_line: dict[str, Any] = {}
        self._buffer: list[str | dict[str, Any]] = []

    def write_soon(self, line: str | dict[str, Any]) -> None:
        """Buffer a line, or the fields of one."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write(self._text(line))
            return
        if not self._buffer:
            loop.call_later(_BUFFER_SECONDS, self.flush)
        self._buffer.append(line)
        if len(self._buffer) >= _BUFFER_LINES_MAX:
            self.flush()

    def write_now(self, line: str | dict[str, Any]) -> None:
        """Write the buffered lines, then a line, or the fields of one."""
        with suppress(RuntimeError):
            asyncio.get_running_loop()  # raises in other threads, which must not touch the buffer
            self.flush()
        self._write(self._text(line))

    def flush(self) -> None:
        """Write the buffered lines."""
        lines = [self._text(line) for line in self._buffer]
        self._buffer.clear()
        together = ""
        for line in lines:
            if together and len(together) + len(line) > _ATOMIC_WRITE_CHARACTERS:
                self._write(together)
                together = ""
            together += line
        if together:
            self._write(together)

    def _text(self, line: str | dict[str, Any]) -> str:
        return (line if isinstance(line, str) else _json(line)) + "\n"

    def _write(self, text: str) -> None:
        # A pipe whose reader has ended must not fail a call.
        with suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()

    debug = info = msg = write_soon
    warning = error = critical = write_now


_LEVEL_NAMES = {
    number: logging.getLevelName(number).lower()
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
}
_output = _Output()
atexit.register(_output.flush)


def write_line(logger: structlog.stdlib.BoundLogger, level: int, event: str, fields: dict[str, Any]) -> None:
    """Write the line that `logger` would write, without the cost of its processors. For the line of each call.

    Lines with an exception, and lines for a terminal, go through the logger. Context variables are not included.
    """
    if not _output.is_json or "exc_info" in fields:
        logger.log(level, event, **fields)
        return
    fields |= {"event": event, "level": _LEVEL_NAMES[level], "timestamp": time.time(), **_output.fields_of_every_line}
    if level >= logging.WARNING:
        _output.write_now(fields)
    else:
        _output.write_soon(fields)


def warn_of_variables(names: Iterable[str]) -> None:
    """Log a warning for each variable that looks like a setting but is not. The values are not logged."""
    for name in names:
        structlog.stdlib.get_logger("bookstore_grpc.server.settings").warning("unknown variable", variable=name)


def flush_logs() -> None:
    """Write the buffered lines. Called before the process exits without cleanup."""
    _output.flush()


def _add_fields_of_every_line(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.update(_output.fields_of_every_line)
    return event
