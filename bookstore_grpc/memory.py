"""Memory that the C library keeps for later, though nobody may ever need so much again."""

import ctypes


def give_back_memory() -> None:
    """Return what is free to the system, where the C library can (glibc's); it takes a millisecond or two.

    By itself glibc returns little of what a flood of large requests has taken, for it was taken in many places.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
