from tests.tokens.conftest import books, clocked_name

__all__ = ["books", "clocked_name"]
