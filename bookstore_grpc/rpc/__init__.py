"""The floor that speaks gRPC and knows no SQL."""
