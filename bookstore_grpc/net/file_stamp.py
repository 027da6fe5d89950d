"""Detecting that a file has changed."""

import os


def file_stamp(path: str) -> tuple[int, ...]:
    """Return a value that differs once a file has changed or been replaced. Raises `OSError`."""
    stat = os.stat(path)  # of the target of a link: Kubernetes switches links
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
