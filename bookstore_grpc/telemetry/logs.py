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

# Too short to be noticed by a reader; no more than that is lost by kill -9.
_TOGETHER_SECONDS = 0.02
_TOGETHER_MOST_LINES = 256
# Pipes keep writes of up to 4 KiB whole, so lines of several processes do not mix. Most characters are one byte.
_WHOLE_CHARACTERS = 4_000


def configure_logging(*, level: LogLevel, log_format: LogFormat, worker: int | None = None) -> None:
    """Send every line of this process, including those of libraries, to standard error in one format.

    "auto" is "console" on a terminal and "json" elsewhere. Every line has the values bound with
    `structlog.contextvars`, and the index of the worker in a worker: a context variable would not reach every thread.
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
        # Not by rich, structlog's default where it is installed: it shows the values of variables, such as passwords.
        plain = structlog.dev.plain_traceback
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        rendering = [structlog.processors.format_exc_info, lambda _logger, _method, fields: _json(fields)]
    structlog.configure(
        processors=[*shared, *rendering],
        # Not through the standard library's handlers, which take three times as long.
        logger_factory=lambda *_names: _output,
        # The method of a level that is not logged does nothing, at no cost.
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
    # It logs MariaDB's notes, such as one on the name of Alembic's primary key.
    logging.getLogger("asyncmy").setLevel(logging.ERROR)
    # It logs a traceback for every broken connection; that the database is unavailable is logged by the health check.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    # It warns of invalid HTTP, which any client can send.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("bookstore_grpc").setLevel(level.upper())


def _json(fields: MutableMapping[str, Any]) -> str:
    """Render the fields of a line, with its timestamp in Unix seconds. The only renderer of JSON."""
    timestamp = datetime.fromtimestamp(fields["timestamp"], UTC).isoformat()
    fields["timestamp"] = timestamp.replace("+00:00", "Z")
    try:
        return orjson.dumps(fields, default=repr).decode()
    except TypeError:  # a lone surrogate, as in a file name that is not UTF-8; the stream escapes it
        return json.dumps(fields, default=repr, ensure_ascii=False)


class _Output:
    """The output of structlog's loggers.

    Lines up to level info are buffered for a moment and written together, because each write lets other threads take
    over. The lines of calls are rendered only then, which takes a third of the time when many are rendered in a row. A
    warning is written at once.
    """

    def __init__(self) -> None:
        self.stream: TextIO = sys.stderr
        self.is_json = False
        self.fields_of_every_line: dict[str, Any] = {}
        self._waiting: list[str | dict[str, Any]] = []

    def write_soon(self, line: str | dict[str, Any]) -> None:
        """Buffer a line, or the fields of one."""
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
        """Write the buffered lines, and a line, or the fields of one."""
        with suppress(RuntimeError):
            asyncio.get_running_loop()  # raises in other threads, which must not touch the buffer
            self.flush()
        self._write(self._text(line))

    def flush(self) -> None:
        """Write the buffered lines."""
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
        return (line if isinstance(line, str) else _json(line)) + "\n"

    def _write(self, text: str) -> None:
        # The reader of a pipe may have ended, which must not fail a call.
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
    """Write what `logger` would, without its processors, which take longer; for the line that every call has.

    Lines with an exception, and lines for a terminal, are left to the logger. Context variables are not included.
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
    """Log each variable that looks like a setting and is not; never its value."""
    for name in names:
        structlog.stdlib.get_logger("bookstore_grpc.server.settings").warning("unknown variable", variable=name)


def flush_logs() -> None:
    """Write the buffered lines, before the process ends without cleanup."""
    _output.flush()


def _add_fields_of_every_line(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.update(_output.fields_of_every_line)
    return event
