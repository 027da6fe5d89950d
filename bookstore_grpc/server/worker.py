"""A worker: a process that serves on the addresses reserved by its supervisor.

Run as `python -m bookstore_grpc.server.worker INDEX`, with the socket to the supervisor as standard input. The worker
reads its settings from it and writes messages to it (`worker_messages`). End of file means that the supervisor ended.
"""

import asyncio
import os
import signal
import sys

import structlog

from bookstore_grpc.errors import StartupError
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.signals import ignore_sighup
from bookstore_grpc.server.supervisor_channel import SupervisorChannel
from bookstore_grpc.server.worker_messages import ModuleMissing, StartFailed, decode_settings
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
    os.set_blocking(sys.stdin.fileno(), False)
    supervisor = SupervisorChannel(sys.stdin.fileno())
    settings = decode_settings(line)
    configure_logging(level=settings.log_level, log_format=settings.log_format, worker=index)
    try:
        import uvloop

        uvloop.run(_serve_until_stopped(settings, supervisor))
    except StartupError as error:
        supervisor.send(StartFailed(error.message))
    except ModuleNotFoundError as error:
        supervisor.send(ModuleMissing(str(error.name)))
    except Exception:
        _log.exception("worker failed")
    else:
        return 0
    return 1


async def _serve_until_stopped(settings: Settings, supervisor: SupervisorChannel) -> None:
    from bookstore_grpc.server.commands import serve_as_worker

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def receive() -> None:
        if not supervisor.receive():
            _log.warning("supervisor ended")
            loop.remove_reader(supervisor.descriptor)
            stop.set()

    loop.add_reader(supervisor.descriptor, receive)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    ignore_sighup()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        await serve_as_worker(settings, stop, supervisor=supervisor)
    finally:
        loop.remove_reader(supervisor.descriptor)
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is already ending


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
