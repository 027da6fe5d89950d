"""The business logic of each RPC: decoding, validation, one call to the DAL, encoding. It knows no transport."""
