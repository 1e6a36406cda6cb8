"""What every language answers with when it does not compute."""

from typing import Any


class Refused(Exception):
    """A code without the prefix of its language, a message, and for templates the line."""

    def __init__(self, code: str, message: str, line: int | None = None):
        super().__init__(message)
        self.code, self.message, self.line = code, message, line


Answer = dict[str, Any]
CACHED = 512
DEPTH = 100
