"""Benchmarks of the service and its alternatives: separate processes, the same load, and every response verified."""
