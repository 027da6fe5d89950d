"""Varying request bodies for a load generator that reads a single file.

h2load reads the body by `pread` from the file, once per request. So the file is rewritten in place after every read
(detected by inotify), and the next request has another id or name. All bodies have the same length and layout, so that
a read during a rewrite still gets a well-formed request.

After 64 simultaneous responses h2load sends 64 requests in a row, faster than the rewriting thread wakes up, unless
that thread preempts it: see `load_generator_cpu`. So on average only 0.4 of 64 calls in flight request the same as
another, as with random ids; without preemption it was 5 to 40.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_ACCESS = 0x1
_EVENTS_BYTES = 4_096


def load_generator_cpu() -> int:
    """Return the CPU for the load generator, at idle priority, and for the rewriting thread, at normal priority.

    The thread then preempts the load generator after each read, so that the next read waits for it. Anything else on
    this CPU preempts the load generator too, so the machine must be idle.
    """
    return max(os.sched_getaffinity(0))


class Rewritten:
    """The number of bodies written to a file so far. All were read except the last and, rarely, one more."""

    count = 1


@contextmanager
def rewritten_file(path: Path, bodies: Iterator[bytes]) -> Iterator[Rewritten]:
    """Keep a file whose content is replaced by the next body each time it was read."""
    path.write_bytes(next(bodies))
    rewritten = Rewritten()
    is_over = threading.Event()
    with _watch_on_reads(path) as watch, path.open("rb+", buffering=0) as file:
        writer = threading.Thread(target=_rewrite_after_reads, args=(watch, file.fileno(), bodies, rewritten, is_over))
        writer.start()
        try:
            yield rewritten
        finally:
            is_over.set()
            path.read_bytes()  # wakes the thread
            writer.join()


@contextmanager
def _watch_on_reads(path: Path) -> Iterator[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    watch: int = libc.inotify_init1(os.O_CLOEXEC)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(path), _IN_ACCESS) < 0:
        raise OSError(ctypes.get_errno(), f"cannot watch {path}")
    try:
        yield watch
    finally:
        os.close(watch)


def _rewrite_after_reads(
    watch: int, file: int, bodies: Iterator[bytes], rewritten: Rewritten, is_over: threading.Event
) -> None:
    os.sched_setaffinity(0, {load_generator_cpu()})
    for body in bodies:
        os.read(watch, _EVENTS_BYTES)
        if is_over.is_set():
            return
        os.pwrite(file, body, 0)
        rewritten.count += 1
