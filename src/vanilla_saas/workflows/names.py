"""What an expression or template refers to, and the part of the variables that it needs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Names:
    roots: frozenset[str]
    """`input`, `steps`, `item` ..."""
    steps: frozenset[str]
    """The ids of `steps.<id>` and `steps['<id>']`."""
    step_fields: frozenset[tuple[str, str]]
    """`output` of `steps.<id>.output`, with its id."""
    all_steps: bool
    """`steps` stands alone (`steps[input.which]`, `size(steps)`), so that any could be meant."""

    @classmethod
    def of(cls, roots: Iterable[str], paths: Iterable[Sequence[str]]) -> "Names":
        of_steps = [path for path in paths if path[0] == "steps"]
        return cls(
            frozenset(roots),
            frozenset(path[1] for path in of_steps if len(path) > 1),
            frozenset((path[1], path[2]) for path in of_steps if len(path) > 2),
            any(len(path) == 1 for path in of_steps),
        )


def referenced(variables: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The variables without those that are not named: outputs of a hundred steps need not travel for one of them."""
    kept = {name: value for name, value in variables.items() if name in names.roots}
    steps = kept.get("steps")
    if isinstance(steps, Mapping) and not names.all_steps:
        kept["steps"] = {name: step for name, step in steps.items() if name in names.steps}
    return kept
