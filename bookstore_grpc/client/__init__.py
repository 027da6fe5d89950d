"""The Python client of the service. It needs only the base install and imports nothing of the server."""

from bookstore_grpc.client.call_options import CallOptions
from bookstore_grpc.client.channel import TLS, TokenFile
from bookstore_grpc.client.client import BookstoreClient
from bookstore_grpc.client.errors import error_from_rpc_error
from bookstore_grpc.client.watching import BookWatch, WatchedChange
from bookstore_grpc.metadata import metadata_from_environment

__all__ = [
    "TLS",
    "BookWatch",
    "BookstoreClient",
    "CallOptions",
    "TokenFile",
    "WatchedChange",
    "error_from_rpc_error",
    "metadata_from_environment",
]
