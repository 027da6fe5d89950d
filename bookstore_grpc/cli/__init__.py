"""The command `bookstore`.

The verbs import what they need when they run: `bookstore list` starts without the server's packages, and
`bookstore --help` without gRPC.
"""

import os
from importlib.metadata import version

import click

from bookstore_grpc.cli.books import create, delete, get, health, list_, update
from bookstore_grpc.cli.server import backup, migrate, serve
from bookstore_grpc.cli.transfer import export, import_


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Serve a catalogue of books over gRPC, and work with one."""
    # gRPC's core writes to standard error by itself; what it has to say arrives as exceptions too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@main.command("version")
def version_() -> None:
    """Print the version."""
    click.echo(version("bookstore-grpc"))


for command in (serve, migrate, backup, health, create, get, list_, update, delete, import_, export):
    main.add_command(command)
