"""Bodies and answers of the routes of executions. Amounts are in tokens, costs in micros of USD."""

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Status = Literal["running", "paused", "succeeded", "failed", "cancelled"]
SignalName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,62}$")]


class Body(BaseModel):
    """A request; a field it does not know is refused, so that a misspelt one is not passed over."""

    model_config = ConfigDict(extra="forbid")


class StartBody(Body):
    input: dict[str, Any] = Field(default_factory=dict, description="fits the definition's `input`; at most 1 MiB")
    version: int | None = Field(None, ge=1, le=2**31 - 1, description="left out: the latest")
    priority: int | None = Field(None, ge=0, le=9, description="9 first; left out: the definition's, or 5")
    user_id: UUID | None = Field(None, description="who pays; admins only")


class Started(BaseModel):
    execution_id: UUID
    workflow_id: UUID
    version: int = Field(description="pinned: a later version does not change what runs")
    status: Status
    replayed: bool = Field(description="the idempotency key had started it before")


class Failure(BaseModel):
    """Why a step or an execution failed, or why a step is skipped that could have run: `not_needed`."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str | None = None
    node: str | None = Field(None, description="of an execution: the step that failed")


class ExecutionSummary(BaseModel):
    id: UUID
    workflow_id: UUID
    workflow: str | None = Field(description="slug; null when the caller may not read the workflow any more")
    version: int
    user_id: UUID = Field(description="who pays")
    status: Status
    reason: str | None = Field(description="code of why it failed or was cancelled")
    error: Failure | None
    priority: int
    parent_execution_id: UUID | None
    charged_tokens: int
    cost_micros: int
    started_at: datetime
    finished_at: datetime | None


class Executions(BaseModel):
    data: list[ExecutionSummary]
    next_cursor: str | None = Field(description="null on the last page")


class StepProgress(BaseModel):
    node: str = Field(description="`$start` checks the input, `$end` computes the output")
    kind: str
    status: Literal["pending", "ready", "running", "waiting", "succeeded", "failed", "skipped"]
    waits_for: str | None = Field(description="retry, time, signal:<name>, approval, execution, slot, items, start")
    branch: str | None
    round: int = Field(description="how often a gate has sent it back")
    attempts: int
    error: Failure | None
    charged_tokens: int
    cost_micros: int
    started_at: datetime | None
    finished_at: datetime | None
    score: float | None = Field(None, description="of a gate: the last, 0 to 1")
    items: int | None = Field(None, description="of a map")
    items_done: int | None = None
    items_running: int | None = None


class Execution(ExecutionSummary):
    input: dict[str, Any]
    output: Any = None
    steps: list[StepProgress]


class StepItem(BaseModel):
    """An item of a map."""

    item: int = Field(description="its place from 0")
    status: str
    waits_for: str | None
    attempts: int
    value: Any = Field(description="the element")
    output: Any = None
    error: Failure | None
    charged_tokens: int
    cost_micros: int
    started_at: datetime | None
    finished_at: datetime | None


class Step(StepProgress):
    output: Any = None
    feedback: Any = Field(None, description="what a gate said when it sent the step back")
    data: list[StepItem] = Field(description="a page of a map's items, in order")
    next_cursor: str | None = Field(description="of the items; null on the last page")


class CancelBody(Body):
    reason: str | None = Field(None, max_length=1000)


class RestartBody(Body):
    node: str | None = Field(None, max_length=63, description="where it begins; left out: where it failed")
    version: int | None = Field(
        None, ge=1, le=2**31 - 1, description="a newer one to go on with, which it pins then; left out: its own"
    )


class SignalBody(Body):
    name: SignalName
    payload: Any = Field(None, description="fits the `schema` of the node that waits; at most 1 MiB")


class Signalled(BaseModel):
    execution_id: UUID
    signal: str
    steps: int = Field(description="how many waited for it; 0: it is kept until one does")


class Told(BaseModel):
    execution_id: UUID
    status: Status


class ReplayBody(Body):
    workflow: str | None = Field(None, max_length=63, description="slug or id")
    reason: str | None = Field(None, max_length=100, description="only those that failed for it")
    limit: int = Field(100, ge=1, le=1000)


class NotRestarted(BaseModel):
    execution_id: UUID
    message: str


class Replayed(BaseModel):
    restarted: list[UUID] = Field(description="oldest first")
    refused: list[NotRestarted]


class Approval(BaseModel):
    id: UUID
    execution_id: UUID
    workflow: str
    node: str
    title: str
    prompt: str
    subject: Any = Field(description="what is approved")
    edit: Any = Field(description="JSON Schema of what of it may be changed; null: nothing")
    quorum: int
    approved_by: int = Field(description="how many have approved so far")
    deadline_at: datetime | None
    created_at: datetime


class Approvals(BaseModel):
    data: list[Approval]


class DecisionBody(Body):
    decision: Literal["approved", "rejected"]
    comment: str | None = Field(None, max_length=20000)
    value: dict[str, Any] | None = Field(None, description="the subject as it was changed; left out: as it is")


class Decided(BaseModel):
    approval_id: UUID
    execution_id: UUID
    status: Literal["open", "approved", "rejected"]
    approved_by: int
    quorum: int


class GateDay(BaseModel):
    gate: str
    day: date = Field(description="UTC")
    judged: int
    passed: int
    average_score: float
    rounds: float = Field(description="mean of the rounds at which it was judged, from 1")
    charged_tokens: int


class Gates(BaseModel):
    data: list[GateDay]


class GateResult(BaseModel):
    id: UUID
    gate: str
    round: int = Field(description="from 0")
    passed: bool
    score: float
    threshold: float
    feedback: str
    suggestions: list[Any]
    metrics: dict[str, Any] = Field(description="what each check found")
    charged_tokens: int
    created_at: datetime


class GateResults(BaseModel):
    data: list[GateResult]
