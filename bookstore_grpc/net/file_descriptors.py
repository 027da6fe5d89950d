"""File descriptors: raising the limit of open files, and telling when none are left."""

import errno
import os
import resource

from bookstore_grpc.limits import DESCRIPTORS_MAX

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)
# SQLite has the file, its log and the log's index open for each connection.
FILES_OF_SQLITE = 3


class DescriptorsExhausted(OSError):
    """The process, or the system, has as many files open as it may."""


def raise_descriptor_limit() -> int:
    """Let the process open as many files as the system lets it, within reason, and answer how many these are.

    Many systems begin a process with 1,024, for the sake of programs that use `select`, and allow it more.
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
    """Answer an error that was met in opening a file or a connection, by its name if descriptors had run out.

    Some say so themselves, or have a cause that does. SQLite says that it cannot open the file, whatever the reason, so
    it is tried whether others can be opened.
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
    """Tell whether there are fewer than SQLite needs for a connection."""
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
