"""Runs that somebody in this process waits for: a worker computes their steps itself, beside all others."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

Say = Callable[[str], None]
"""Takes words of a model call as they come."""
OpenWords = Callable[[], Say]
"""Called when the call begins whose words are the run's, and again for another attempt."""
TOKENS = ("input", "output", "cached", "reasoning")


@dataclass(slots=True, eq=False)
class Attended:
    """One such run, as far as it is known here."""

    tenant_id: UUID
    execution_id: UUID
    words: OpenWords | None = None
    running: int = 0
    """Steps of it that are computed here."""
    done: list[dict[str, Any]] = field(default_factory=list)
    """Outcomes that the database does not know yet."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """A step of it has ended here."""
    end: dict[str, Any] | None = None
    """How it ended: status, reason, error, output, charged_tokens."""
    alone: bool = False
    """Whether nobody else can have computed any of it, so that `used` is all that its model calls used.

    Once somebody can, because something waits or is left in the queue, it is false for good: what they had by the next
    look is not seen from here.
    """
    used: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))

    def heard(self, told: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> None:
        """What a round answers in which these outcomes were told."""
        for outcome in told:
            for call in outcome.get("calls", ()):
                for name in TOKENS:
                    self.used[name] += call[name]
        self.end = answer["end"]
        ours = self.running or self.done or answer["steps"]
        # a gate may ask people
        waits = any(one["outcome"] in ("waiting", "gate") for one in told) or (self.end is None and not ours)
        if waits or answer["elsewhere"] or answer["stale"]:
            self.alone = False
