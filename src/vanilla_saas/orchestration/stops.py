"""Why runs stop, in words."""

from collections.abc import Mapping

STOPS: Mapping[str, str] = {
    "done": "It answered.",
    "budget_exhausted": "Its budget is used up.",
    "max_turns": "It has had all the turns that its limits allow.",
    "max_tool_calls": "It wanted more calls of tools than its limits allow.",
    "max_children": "It wanted to start more runs than its limits allow.",
    "max_depth": "It wanted to delegate deeper than its limits allow.",
    "deadline": "Its time is over.",
    "loop_detected": "It made a call again that had had the same answer each time.",
    "cycle_refused": "It wanted to turn to an agent that it came from.",
    "provider_failed": "The model did not answer, also when it was tried again.",
    "canceled": "Somebody ended it.",
    "failed": "It failed.",
}
