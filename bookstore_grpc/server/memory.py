"""Memory that the C library keeps for later, though nobody may ever need so much again."""

import ctypes
import mmap
from contextlib import suppress

# Of growth. To look for what is free takes a hundredth of a second for some 100 MB, in which no call goes on.
_WORTH_BYTES = 32 * 2**20


class SpareMemory:
    """Returns to the system what a flood of requests has taken, where the C library can (glibc's).

    By itself glibc returns little of that, for it was taken in many places.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._resident_bytes = _resident_bytes()

    def give_back(self) -> None:
        """Return what is free, if the process has grown by much since the last time."""
        if self._trim is None or _resident_bytes() < self._resident_bytes + _WORTH_BYTES:
            return
        self._trim(0)
        self._resident_bytes = _resident_bytes()


def _resident_bytes() -> int:
    with suppress(OSError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
    return 0  # a system without it
