"""The OpenAPI document, derived from the contract's descriptors and comments."""
