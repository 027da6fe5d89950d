"""A book catalogue as a gRPC service: server, client and command."""
