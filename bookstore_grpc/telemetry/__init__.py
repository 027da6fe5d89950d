"""What operators see: logs, metrics, traces, and the endpoints for probes."""
