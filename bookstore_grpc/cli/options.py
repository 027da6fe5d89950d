"""Flags with environment variables, neither of which may be empty."""

import os
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

#: An id as the contract has it, an int64; which ids there can be is for the service to say.
BOOK_ID = click.IntRange(-(2**63), 2**63 - 1)


class OptionWithVariable(click.Option):
    """A flag with an environment variable, neither of which may be blank; click would ignore an empty variable.

    A blank value is nearly always a secret or a path that was not filled in, and the default would then be another
    database, or a server without authentication.
    """

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """Return the given value. Raises `click.UsageError` if it is blank."""
        value, source = super().consume_value(ctx, opts)
        if source is ParameterSource.COMMANDLINE:
            if any(_is_blank(text) for text in (value if self.multiple else (value,))):
                raise click.UsageError(f"{self.opts[0]} is empty: give it a value, or leave it out.", ctx)
        elif isinstance(self.envvar, str) and _is_blank(os.environ.get(self.envvar)):
            raise empty_variable(self.envvar)
        return value, source


def empty_variable(name: str) -> click.UsageError:
    """Return the error for a variable that is set and empty."""
    return click.UsageError(f"The variable {name} is empty: give it a value, or unset it.")


def _is_blank(text: object) -> bool:
    return isinstance(text, str) and not text.strip()
