"""Publishes the changes of books to NATS JetStream. It is a client of the service and imports nothing of the server."""
