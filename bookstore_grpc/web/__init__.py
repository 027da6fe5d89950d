"""The pages for people: the catalogue and the API's documentation."""
