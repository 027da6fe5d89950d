"""A book catalogue as a gRPC service: its server, its client and its command."""
