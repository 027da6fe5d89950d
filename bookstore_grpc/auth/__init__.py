"""Who calls, and what they may do: bearer tokens, JWKS, scopes and names in client certificates."""
