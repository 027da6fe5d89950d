"""The data access layer: SQL and transactions. It knows no transport."""
