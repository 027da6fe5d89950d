"""The command `bookstore`.

Verbs import lazily: `bookstore list` starts without the server's packages, and `bookstore --help` without gRPC.
"""

import os
from importlib.metadata import version

import click

from bookstore_grpc.cli.books import create, get, health, list_, update
from bookstore_grpc.cli.delete import delete
from bookstore_grpc.cli.export import export
from bookstore_grpc.cli.import_ import import_
from bookstore_grpc.cli.relay import relay
from bookstore_grpc.cli.server import backup, migrate, serve
from bookstore_grpc.cli.watch import watch


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Serve a catalogue of books over gRPC, and call one."""
    # gRPC's core would log to standard error what it also raises as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@main.command("version")
def version_() -> None:
    """Print the version."""
    click.echo(version("bookstore-grpc"))


for command in (serve, migrate, backup, health, create, get, list_, update, delete, import_, export, watch, relay):
    main.add_command(command)
