"""Authentication and authorization of callers: bearer tokens, JWKS, scopes, names in client certificates."""
