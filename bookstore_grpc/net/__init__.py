"""Sockets, addresses, TLS certificates, and bounded connections."""
