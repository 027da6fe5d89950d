"""A worker: a process that serves on the addresses reserved by its supervisor.

Run as `python -m bookstore_grpc.server.worker INDEX`, with the socket to the supervisor as standard input. The worker
reads its settings from it and writes messages to it (`worker_messages`). End of file means that the supervisor ended.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress

import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.signals import ignore_sighup
from bookstore_grpc.server.worker_messages import Message, ModuleMissing, StartFailed, decode_settings, encode
from bookstore_grpc.telemetry.logs import configure_logging

_log = structlog.stdlib.get_logger("bookstore_grpc.server.worker")


def main(index: int) -> int:
    """Serve until SIGTERM or the end of the supervisor, and return the exit status."""
    # A terminal's Ctrl-C reaches all processes; only the supervisor handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Until the event loop handles it: importing the worker's modules can take seconds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    line = sys.stdin.readline()
    if not line:
        return 0  # the supervisor has already ended
    # If the supervisor does not read, messages are dropped instead of blocking.
    os.set_blocking(sys.stdin.fileno(), False)
    settings = decode_settings(line)
    configure_logging(level=settings.log_level, log_format=settings.log_format, worker=index)
    try:
        import uvloop

        uvloop.run(_serve_until_stopped(settings))
    except StartupError as error:
        _send(StartFailed(error.message))
    except ModuleNotFoundError as error:
        _send(ModuleMissing(str(error.name)))
    except Exception:
        _log.exception("worker failed")
    else:
        return 0
    return 1


async def _serve_until_stopped(settings: Settings) -> None:
    from bookstore_grpc.server.commands import serve_as_worker

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    channel = sys.stdin.fileno()

    def on_end_of_supervisor() -> None:
        _log.warning("supervisor ended")
        loop.remove_reader(channel)
        stop.set()

    loop.add_reader(channel, on_end_of_supervisor)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    ignore_sighup()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        await serve_as_worker(settings, stop, send_to_supervisor=_send)
    finally:
        loop.remove_reader(channel)
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is already ending


def _send(message: Message) -> None:
    with suppress(OSError):
        os.write(sys.stdin.fileno(), encode(message))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
