"""Bodies and answers of the agents' routes."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

MOST_WAIT_S = 60.0
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
State = Literal[
    "submitted", "working", "input_required", "auth_required", "completed", "failed", "canceled", "rejected"
]


class AgentBody(BaseModel):
    definition: dict[str, Any] = Field(
        description="instructions, model or engine, tools, handoffs, delegates, output, limits"
    )
    shared: bool | None = Field(None, description="for all of the tenant to read and run; left out: as it was")
    user_id: UUID | None = Field(None, description="whose it is to be; admins only")


class SavedAgent(BaseModel):
    agent_id: UUID
    slug: str
    version: int
    hash: str = Field(description="SHA-256 of the definition, hexadecimal")
    unchanged: bool = Field(description="the latest version says the same")


class AgentSummary(BaseModel):
    id: UUID
    slug: str
    name: str
    description: str
    user_id: UUID | None = Field(description="the owner")
    shared: bool
    status: Literal["active", "retired"]
    latest_version: int
    created_at: datetime
    updated_at: datetime


class Agents(BaseModel):
    data: list[AgentSummary]


class AgentVersion(BaseModel):
    version: int
    hash: str
    published_at: datetime
    published_by: UUID | None


class AgentDetail(AgentSummary):
    definition: dict[str, Any] = Field(description="of the latest version, or of the one that was asked for")
    data: list[AgentVersion]


class RetiredAgent(BaseModel):
    agent_id: UUID
    slug: str
    status: Literal["retired"]


class AgentRunBody(BaseModel):
    input: dict[str, Any] = Field(default_factory=dict, description='as {"message": text}, or any fields')
    tokens: int | None = Field(None, ge=1, le=10**12, description="the budget; left out: the agent's, or what is left")
    priority: int | None = Field(None, ge=0, le=9, description="9 first; left out: 5")
    wait_s: float = Field(0, ge=0, le=MOST_WAIT_S, description="seconds to wait for the end; 0: not at all")
    user_id: UUID | None = Field(None, description="who pays; admins only")


class AgentRunSummary(BaseModel):
    id: UUID
    root_run_id: UUID
    parent_run_id: UUID | None
    user_id: UUID
    execution_id: UUID
    agent: str | None = Field(description="slug; null when the caller may not read it any more")
    version: int
    state: State
    stop_reason: str | None
    turns: int
    tool_calls: int
    children: int = Field(description="of a root: the runs that its tree has started")
    charged_tokens: int = Field(description="of its own turns")
    cost_micros: int
    started_at: datetime
    finished_at: datetime | None


class AgentRuns(BaseModel):
    data: list[AgentRunSummary]
    next_cursor: str | None


class Budget(BaseModel):
    """Tokens of a run and all that it starts."""

    tokens: int
    spent: int
    held: int = Field(description="by turns under way")
    carved: int = Field(description="the budgets of its open children")
    left: int
    overrun: int = Field(description="used beyond it, paid by the wallet")
    state: Literal["open", "closed", "expired"]
    almost_used_up: bool


class JournalStep(BaseModel):
    n: int
    turn: int
    kind: Literal["model", "bid", "tool", "handoff", "delegate", "contract"]
    name: str | None
    arguments: Any
    status: Literal["open", "done", "failed", "refused"]
    approval: Any
    result: Any
    child_run_id: UUID | None
    execution_id: UUID | None = Field(description="of a turn of an engine: its run")
    charged_tokens: int
    cost_micros: int
    created_at: datetime
    finished_at: datetime | None


class AgentRun(AgentRunSummary):
    depth: int
    speaker: str | None = Field(description="the agent that has the word")
    error: dict[str, Any] | None
    input: dict[str, Any]
    output: Any
    limits: dict[str, int]
    deadline_at: datetime | None
    budget: Budget | None
    approval_id: UUID | None = Field(description="what people are asked now")
    steps: list[JournalStep] = Field(description="the journal: each turn, and what it asked for")


class AgentRunTree(BaseModel):
    run_id: UUID = Field(description="the one that was asked for")
    state: State
    stop_reason: str | None
    output: Any
    finished_at: datetime | None
    charged_tokens: int = Field(description="of the whole tree")
    cost_micros: int
    runs: list[AgentRun] = Field(description="the root first")
    events: str = Field(description="its server-sent events")


class StartedAgentRun(AgentRunTree):
    replayed: bool = Field(description="the idempotency key had started it before")


class CancelledRun(BaseModel):
    run_id: UUID
    state: Literal["canceled"]


class CancelRunBody(BaseModel):
    reason: str | None = Field(None, max_length=1000)
