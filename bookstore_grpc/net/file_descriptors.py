"""File descriptors: raising the limit of open files, and detecting that none are left."""

import errno
import os
import resource

from bookstore_grpc.limits import DESCRIPTORS_MAX

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)
# For each connection SQLite opens the file, its WAL and the WAL's index.
FILES_OF_SQLITE = 3


class DescriptorsExhausted(OSError):
    """The limit of open files, of the process or of the system, is reached."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, within reason, and return it.

    Many systems start a process with 1,024, because of programs that use `select`, and allow it more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox forbids it, or the system has a lower limit of its own
        return soft
    return wanted


def named_exhaustion(error: Exception) -> Exception:
    """Return `DescriptorsExhausted` if that caused an error in opening a file or a connection, else the error itself.

    Some errors say so, or have a cause that does. SQLite only says that it cannot open the file, so whether others can
    be opened is tried.
    """
    if not (_says_so(error) or _are_few_left()):
        return error
    named = DescriptorsExhausted(f"no file descriptors are left, of {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}")
    named.__cause__ = error
    return named


def _says_so(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NONE_LEFT:
            return True
        error = error.__cause__
    return False


def _are_few_left() -> bool:
    """Return whether fewer are left than SQLite needs for a connection."""
    opened = []
    try:
        for _ in range(FILES_OF_SQLITE):
            opened.append(os.open(os.sep, os.O_RDONLY))
    except OSError as error:
        return error.errno in _NONE_LEFT
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return False
