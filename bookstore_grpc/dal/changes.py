"""The operations on the log of changes: watch, list and trim."""
