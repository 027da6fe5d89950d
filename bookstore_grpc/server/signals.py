"""SIGHUP, which many send to a service so that it reads its files again; this one does that by itself."""

import asyncio
import signal
import sys

import structlog

_log = structlog.stdlib.get_logger("bookstore_grpc.server.signals")


def ignore_hangup() -> None:
    """Let SIGHUP, which by default ends a process at once, be no more than a line in the log while the loop runs.

    At a terminal it says that this closes, so there it ends the process as ever.
    """
    if sys.stderr.isatty():
        return
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGHUP, _log.info, "SIGHUP ignored: certificates and keys are read again by themselves"
    )
