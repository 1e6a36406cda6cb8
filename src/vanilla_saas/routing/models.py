"""Bodies and answers of the routes of workers and routing."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Status = Literal["registered", "active", "draining", "stopped", "dead"]
Target = Literal["worker", "provider"]
Kind = Literal[
    "round_robin", "weighted", "least_loaded", "power_of_two_choices", "health_based", "capacity_aware", "sticky",
    "affinity", "region", "latency", "cost", "headroom", "fair_share", "fallback",
]  # fmt: skip


class Worker(BaseModel):
    id: UUID
    name: str
    pools: list[str] = Field(description="whose steps it runs")
    capacity: int = Field(description="steps at once")
    labels: dict[str, Any]
    region: str
    release: str
    status: Status
    health_score: int = Field(description="0 to 100 as of the last heartbeat; above 60 it is healthy")
    in_flight: int
    latency_ewma_ms: float | None = Field(description="peak EWMA of a step; null before the first")
    success_ewma: float = Field(description="share of steps that did not fail")
    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None


class Workers(BaseModel):
    data: list[Worker]


class WorkerEvent(BaseModel):
    id: UUID
    created_at: datetime
    worker_id: UUID
    worker: str = Field(description="its name")
    event: Literal["registered", "activated", "draining", "stopped", "died", "unhealthy", "recovered"]
    from_status: Status | None
    to_status: Status
    reason: str
    health_score: int
    actor_id: UUID | None = Field(description="who asked for it")


class WorkerMinute(BaseModel):
    minute: datetime
    finished: int
    failed: int
    latency_ms_sum: int = Field(description="of finished and failed steps")
    in_flight_max: int
    health_min: int


class WorkerMinutes(BaseModel):
    data: list[WorkerMinute]


class DrainBody(BaseModel):
    reason: str = Field("", max_length=500)


class StrategyBody(BaseModel):
    kind: Kind
    target: Target = "worker"
    config: dict[str, Any] = Field({}, description="settings of the kind: docs/design/routing.md")
    pool: Slug | None = Field(None, description="where it applies by itself; left out: it is named by whoever routes")
    explain: bool = Field(False, description="keep every decision")
    status: Literal["active", "disabled"] = "active"
    description: str = Field("", max_length=500)


class Strategy(BaseModel):
    slug: str
    kind: Kind
    target: Target
    config: dict[str, Any]
    pool: str | None
    explain: bool
    status: Literal["active", "disabled"]
    description: str
    updated_at: datetime
    own: bool = Field(description="the tenant's own, not the platform's")


class Strategies(BaseModel):
    data: list[Strategy]


class RouteBody(BaseModel):
    strategy: Slug
    candidates: list[dict[str, Any]] | None = Field(
        None, max_length=1000, description="objects with an id; left out: the tenant's live workers"
    )
    context: dict[str, Any] = {}
    seed: int | None = Field(None, ge=0, lt=2**53, description="left out: drawn")


class Ranked(BaseModel):
    id: str
    score: float | None = Field(description="the highest comes first; null: not in the sample")


class Refused(BaseModel):
    id: str
    reason: str


class Routed(BaseModel):
    decision_id: UUID
    chosen: str | None
    waits_for: str | None = Field(description="a hard key's candidate, which is not well now")
    panic: bool = Field(description="fewer than half were healthy, so health was not asked for")
    ranking: list[Ranked]
    refused: list[Refused]
    cursor: Any = Field(description="for context.cursor of the next decision")
    seed: int


class DecisionSummary(BaseModel):
    id: UUID
    created_at: datetime
    strategy: str
    kind: Kind
    target: Target
    chosen: str | None


class Decision(DecisionSummary):
    config: dict[str, Any]
    candidates: list[dict[str, Any]]
    context: dict[str, Any]
    seed: int
    actor_id: UUID | None
    waits_for: str | None
    panic: bool
    ranking: list[Ranked]
    refused: list[Refused]
    cursor: Any
    explanation: list[str]
    replayed: bool = Field(description="routed again from what is recorded, it gives the same")
