"""The floor that speaks HTTP: the calls of gRPC as JSON, and pages for people. Imported only where it is wanted."""
