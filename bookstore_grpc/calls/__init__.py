"""The call pipeline: what surrounds every call, whatever transport brought it. It knows neither gRPC nor HTTP."""
