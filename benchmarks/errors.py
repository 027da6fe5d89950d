"""What ends a benchmark: a result that is not what was asked for, or a tool that is not there."""


class BenchmarkError(Exception):
    """A measurement that would not mean anything; the message says what went wrong."""


def check(is_right: object, what: str) -> None:
    """Raise `BenchmarkError` unless something is as it should be."""
    if not is_right:
        raise BenchmarkError(what)
