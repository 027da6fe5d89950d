"""Errors that end a benchmark: an unexpected result, or a missing tool."""


class BenchmarkError(Exception):
    """A measurement that would be meaningless; the message says why."""


def check(is_right: object, what: str) -> None:
    """Raise `BenchmarkError` unless a condition holds."""
    if not is_right:
        raise BenchmarkError(what)
