"""File descriptors: raising the limit of open files, and detecting that none are left."""

import errno
import os
import resource

from bookstore_grpc.limits import DESCRIPTORS_MAX

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)
# Each SQLite connection opens the file, its WAL and the WAL's index.
FILES_OF_SQLITE = 3


class DescriptorsExhausted(OSError):
    """The limit of open files, of the process or of the system, has been reached."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard limit, but at most to `DESCRIPTORS_MAX`, and return it.

    Many systems have a soft limit of 1,024, for programs that use `select`, and a higher hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # forbidden by a sandbox, or beyond a lower limit of the system
        return soft
    return wanted


def named_exhaustion(error: Exception) -> Exception:
    """Return `DescriptorsExhausted` if that is why a file or connection could not be opened, else the error itself.

    Some errors have the error number, or a cause with it. SQLite reports only that it cannot open the file, so this
    function tries to open others.
    """
    if not (_has_error_number(error) or _are_few_left()):
        return error
    named = DescriptorsExhausted(f"no file descriptors are left, of {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}")
    named.__cause__ = error
    return named


def _has_error_number(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NONE_LEFT:
            return True
        error = error.__cause__
    return False


def _are_few_left() -> bool:
    """Return whether fewer descriptors are left than a SQLite connection needs."""
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
