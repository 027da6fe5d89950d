"""The alternatives, each in one file and run as `python -m benchmarks.contenders.NAME`."""
