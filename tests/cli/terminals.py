"""What a command shows on a terminal."""

import os


def read_terminal(terminal: int) -> bytes:
    """Return what a terminal shows next, or nothing once its other end is closed."""
    try:
        return os.read(terminal, 4_096)
    except OSError:  # on Linux the error of a terminal whose other end is closed
        return b""
