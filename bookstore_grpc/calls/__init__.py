"""What surrounds every call, whatever brought it: admission, rate limit, and the table from error to status."""
