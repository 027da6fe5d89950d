"""Returning memory that glibc keeps after a flood of requests to the system (docs/decisions/0017)."""

import ctypes
import mmap
from contextlib import suppress

# The growth that is worth a trim, which takes 10 ms for some 100 MB, and no call proceeds meanwhile.
_WORTH_BYTES = 32 * 2**20


class SpareMemory:
    """Calls glibc's `malloc_trim` after the process has grown; does nothing with another C library."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._resident_bytes = _resident_bytes()

    def give_back(self) -> None:
        """Return free memory to the system if the process has grown much since the last trim."""
        if self._trim is None or _resident_bytes() < self._resident_bytes + _WORTH_BYTES:
            return
        self._trim(0)
        self._resident_bytes = _resident_bytes()


def _resident_bytes() -> int:
    with suppress(OSError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
    return 0  # a system without /proc
