"""SIGHUP, which conventionally makes a service reload its files. This service reloads them automatically."""

import asyncio
import signal
import sys

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.server.signals")


def ignore_sighup() -> None:
    """Log SIGHUP and otherwise ignore it; its default action would end the process.

    On a terminal, SIGHUP means that the terminal was closed, so there it keeps its default action.
    """
    if sys.stderr.isatty():
        return
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGHUP, _log.info, "SIGHUP ignored: certificates and keys are reloaded automatically"
    )
