"""A step as a worker is given it, and what came of it: the JSON on both sides of `vanilla.tick_worker`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from vanilla_saas.providers.step_metering import Admitted

START, END = "$start", "$end"
"""The steps of the runner itself: the input is checked before the first node, the output computed after the last."""

Kind = Literal["succeeded", "failed", "items", "waiting", "gate", "handed_back", "go"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A claimed step; ids are texts of uuids."""

    lease: int
    attempt: int
    """Which one of this step, from 1."""
    tenant_id: str
    execution_id: str
    workflow_id: str
    version: int
    user_id: str
    """Who pays."""
    node: str
    """A node's id, START or END."""
    n: int = 0
    """The node by number, as the database names it."""
    item: int | None = None
    """Its place in the map `node`, from 0; None: the node itself."""
    value: Any = None
    """The element, when `item` is not None."""
    round: int = 0
    """How often a gate has sent it back."""
    timeout_s: float | None = None
    state: Any = None
    """What an earlier `waiting` outcome of this step kept."""
    decision: Mapping[str, Any] | None = None
    """How what it waited for has ended."""
    feedback: Any = None
    input: Any = None
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`output`, `status`, `branch` and `error` of earlier nodes, by id."""
    predecessors: tuple[str, ...] = ()
    execution: Mapping[str, Any] = field(default_factory=dict)
    admitted: Admitted | None = None
    """The model call that was admitted when the step was claimed; not of JSON."""

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Fields that this release does not know are left behind."""
        known = {name: given[name] for name in _FIELDS if given.get(name) is not None}
        return cls(**known | {"predecessors": tuple(known.get("predecessors", ()))})


_FIELDS = tuple(one.name for one in fields(Step) if one.name != "admitted")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step. `fields` are those of its kind; `calls` the settlements of its model calls."""

    kind: Kind
    fields: Mapping[str, Any] = field(default_factory=dict)
    lease: int = 0
    attempt: int = 0
    calls: tuple[Mapping[str, Any], ...] = ()

    def json(self) -> dict[str, Any]:
        """The object that `vanilla.tick_worker` takes."""
        fenced = {"lease": self.lease, "attempt": self.attempt, "outcome": self.kind, **self.fields}
        return fenced | ({"calls": list(self.calls)} if self.calls else {})

    @property
    def code(self) -> str | None:
        """The error's code, of a failed one."""
        return self.fields["error"]["code"] if self.kind == "failed" else None


def succeeded(output: Any, branch: str | None = None) -> Outcome:
    return Outcome("succeeded", {"output": output} | ({} if branch is None else {"branch": branch}))


def waiting(wait: Mapping[str, Any], state: Any = None) -> Outcome:
    """`state` comes back with the step when what it waits for has ended."""
    return Outcome("waiting", {"wait": wait} | ({} if state is None else {"state": state}))


def handed_back(step: Step, calls: list[dict[str, Any]]) -> Outcome:
    """Of a step that its worker has stopped because it drains: the attempt does not count, its calls are settled."""
    return Outcome("handed_back", {}, step.lease, step.attempt, tuple(calls))
