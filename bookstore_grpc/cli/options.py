"""Flags and their variables, of which none may be given and empty."""

import os
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource


class OptionWithVariable(click.Option):
    """A flag that has a variable. Given, neither may be blank: click would take an empty variable for none.

    It is nearly always a secret or a path that whoever starts the command has failed to fill in, and the default would
    then be another database, or a door without its guard.
    """

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """Answer what was given, or end with a usage error."""
        value, source = super().consume_value(ctx, opts)
        if source is ParameterSource.COMMANDLINE:
            if any(_is_blank(text) for text in (value if self.multiple else (value,))):
                raise click.UsageError(f"{self.opts[0]} is empty: give it a value, or leave it out.", ctx)
        elif isinstance(self.envvar, str) and _is_blank(os.environ.get(self.envvar)):
            raise empty_variable(self.envvar)
        return value, source


def empty_variable(name: str) -> click.UsageError:
    """Answer the error of a variable that is there and says nothing."""
    return click.UsageError(f"The variable {name} is empty: give it a value, or unset it.")


def _is_blank(text: object) -> bool:
    return isinstance(text, str) and not text.strip()
