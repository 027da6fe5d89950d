"""Returns memory to the system that glibc keeps after a flood of requests (docs/decisions/0017)."""

import ctypes
import mmap
from contextlib import suppress

# A trim blocks all calls, for about 10 ms per 100 MB, so it runs only after this much growth.
_GROWTH_LEAST_BYTES = 32 * 2**20


class MemoryTrimmer:
    """Calls glibc's `malloc_trim` after the process has grown. Does nothing with another C library."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._resident_bytes = _resident_bytes()

    def trim_if_grown(self) -> None:
        """Return free memory to the system if the process has grown by 32 MiB since the last trim."""
        if self._trim is None or _resident_bytes() < self._resident_bytes + _GROWTH_LEAST_BYTES:
            return
        self._trim(0)
        self._resident_bytes = _resident_bytes()


def _resident_bytes() -> int:
    with suppress(OSError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
    return 0  # a system without /proc
