"""The databases of recorded histories."""

from tests.e2e.conftest import any_database_url

__all__ = ["any_database_url"]
