"""The web pages: the catalogue and the API documentation."""
