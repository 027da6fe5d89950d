"""The flags for the fields of a book, derived from the contract."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bookstore_grpc.client.book_fields import BookField

# By default "The author." and "The new author."
_HELP = {"name": "The title.", "release_year": "The year of the first release; negative for BCE."}
_UPDATE_HELP = {"name": "The new title.", "release_year": "The new year."}

INT32 = click.IntRange(-(2**31), 2**31 - 1)


class FieldsCommand(click.Command):
    """A verb with a flag for each settable field of a book. Its callback gets their values as `fields`, by name.

    The flags exist once the verb is used, because `bookstore --help` imports no protobuf.
    """

    def __init__(self, *arguments: Any, is_update: bool, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self._is_update = is_update

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the flags of the fields before all others."""
        return [*self._field_options.values(), *super().get_params(ctx)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the callback."""
        ctx.params["fields"] = {name: ctx.params.pop(name) for name in self._field_options}
        return super().invoke(ctx)

    def flags(self) -> Sequence[str]:
        """Return the flags of the fields."""
        return [option.opts[0] for option in self._field_options.values()]

    @cached_property
    def _field_options(self) -> dict[str, click.Option]:
        from bookstore_grpc.client.book_fields import SETTABLE_FIELDS

        return {field.name: self._option(field) for field in SETTABLE_FIELDS}

    def _option(self, field: "BookField") -> click.Option:
        words = field.name.replace("_", " ")
        return click.Option(
            [f"--{field.name.replace('_', '-')}"],
            type=str if field.is_text else INT32,
            required=field.is_required and not self._is_update,
            help=_UPDATE_HELP.get(field.name, f"The new {words}.")
            if self._is_update
            else _HELP.get(field.name, f"The {words}."),
        )
