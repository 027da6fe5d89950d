"""SIGHUP, which conventionally makes a service reload its files; this one reloads them without it."""

import asyncio
import signal
import sys

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.server.signals")


def ignore_sighup() -> None:
    """Log SIGHUP, which by default ends a process, and do nothing else while the event loop runs.

    On a terminal it means that the terminal closes, so there it keeps its default action.
    """
    if sys.stderr.isatty():
        return
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGHUP, _log.info, "SIGHUP ignored: certificates and keys are reloaded automatically"
    )
