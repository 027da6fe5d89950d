"""Detecting that a file has changed."""

import os


def file_stamp(path: str) -> tuple[int, ...]:
    """Return a value that changes when the file is modified or replaced. Raises `OSError`."""
    stat = os.stat(path)  # follows symbolic links, because Kubernetes updates a Secret by switching one
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
