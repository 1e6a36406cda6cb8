"""A process that ends, or stands still, at a statement: how the tests of crashes choose their moment.

VANILLA_SAAS_DEBUG_EXIT_AT=<function>:<before|after>:<nth>, with `:stop` behind it to stand still (SIGSTOP) instead.
`function` is one of the run-time functions of SQL; `tick_worker+` and `tick_run+` count only ticks that tell outcomes.
"""

import os
import signal
from dataclasses import dataclass

EXIT_CODE = 77


@dataclass(slots=True)
class ExitAt:
    """One moment of the process's life."""

    function: str
    when: str
    nth: int
    stands_still: bool = False
    seen: int = 0

    @classmethod
    def of(cls, text: str) -> "ExitAt | None":
        """None without a text. Raises ValueError."""
        if not text:
            return None
        function, when, nth, *still = text.split(":")
        if when not in ("before", "after") or still not in ([], ["stop"]):
            raise ValueError(f"VANILLA_SAAS_DEBUG_EXIT_AT is not a moment: {text}")
        return cls(function, when, int(nth), bool(still))

    def passes(self, when: str, statement: str, arguments: tuple[object, ...]) -> None:
        """Called before and after each statement of the runtime pool."""
        name = statement.removeprefix("select ").removeprefix("cardinality(").removeprefix("vanilla.").partition("(")[0]
        told = name in ("tick_worker", "tick_run") and bool(arguments[1])
        if when != self.when or self.function not in (name, f"{name}+" if told else name):
            return
        self.seen += 1
        if self.seen == self.nth:
            if self.stands_still:
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                os._exit(EXIT_CODE)


EXIT_AT = ExitAt.of(os.environ.get("VANILLA_SAAS_DEBUG_EXIT_AT", ""))
"""None but in tests."""
