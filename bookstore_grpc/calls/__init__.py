"""The call pipeline: what surrounds every call, independent of the transport (gRPC or HTTP)."""
