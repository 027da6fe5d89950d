"""Logs: structured lines on standard error, JSON for machines and readable for people."""

import logging
import sys
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_stream: TextIO = sys.stderr


def configure_logging(*, level: LogLevel, log_format: LogFormat, worker: int | None = None) -> None:
    """Send every line of this process, libraries' included, to standard error in one format.

    "auto" is readable on a terminal and JSON elsewhere. Values bound with `structlog.contextvars` stand in every line,
    and so does the index of the worker, if this process is one: a context variable would not reach every thread.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    global _stream  # noqa: PLW0603  one process has one log, and structlog keeps its loggers
    _stream = sys.stderr
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(_adding(worker=worker))
    rendering: list[Any]
    if is_console:
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    structlog.configure(
        processors=[*shared, *rendering],
        # Not by way of the standard library's handlers, which take three times as long.
        logger_factory=lambda *_names: _Output(),
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
    logging.getLogger("bookstore_grpc").setLevel(level.upper())


class _Output:
    """Where the lines of structlog's loggers go, each in one write."""

    def _write(self, line: str) -> None:
        _stream.write(line + "\n")
        _stream.flush()

    debug = info = warning = error = critical = msg = _write


def _adding(**values: Any) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.update(values)
        return event

    return add
