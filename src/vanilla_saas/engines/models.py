"""Bodies and answers of the routes of engines. Amounts are in tokens, costs in micros of USD."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field, StringConstraints
from pydantic import BaseModel as Answer

from vanilla_saas.engines.store import SLUG
from vanilla_saas.workflows.execution_models import Body, Failure, Status

Slug = Annotated[str, StringConstraints(pattern=f"^{SLUG}$")]
Ref = Annotated[str, StringConstraints(max_length=80)]
Access = Literal["none", "read", "execute"]
Alias = Literal["stable", "canary"]
Mode = Literal["sequential", "parallel"]
Target = Literal["user", "level", "tier", "tenant", "platform"]
Pin = Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]{0,8}|stable|canary)$")]
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Order = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
MOST_WAIT_S = 120


class Card(Answer):
    """An engine as those see it who may read or run it."""

    engine_id: UUID
    platform: bool = Field(description="of the platform, not the tenant's own")
    slug: str
    name: str
    description: str
    access: Access
    version: int = Field(description="what the name means to this user")
    alias: Alias | None
    mode: Mode
    input: Any = Field(description="JSON Schema of the input")
    output: Any = Field(None, description="JSON Schema of the output, when one was declared")
    parameters: dict[str, Any] = Field(description="what a copy may set, each with type, default and bounds")


class Cards(Answer):
    data: list[Card]


class Offer(Answer):
    """An engine that the platform offers, as an admin of a tenant sees it, permitted to anybody or not."""

    engine_id: UUID
    slug: str
    name: str
    description: str
    default_access: Access = Field(description="of users whose level says nothing")
    version: int = Field(description="what stable means")
    mode: Mode
    input: Any = Field(description="JSON Schema of the input")
    output: Any = Field(None, description="JSON Schema of the output, when one was declared")
    parameters: dict[str, Any]
    hidden: bool = Field(description="the tenant has an engine of this name, which goes before it")
    levels: list["LevelAccess"] = Field(description="what each of the tenant's levels says")


class Offers(Answer):
    data: list[Offer]


class AliasOf(Answer):
    alias: Alias
    version: int
    weight: int = Field(description="of 100 users, how many have it")
    earlier: list[int] = Field(description="what it meant before, oldest first")
    updated_at: datetime


class EngineSummary(Answer):
    id: UUID
    slug: str
    name: str
    description: str
    status: Literal["active", "retired"]
    default_access: Access = Field(description="of users whose level says nothing")
    offered: bool = Field(description="of the platform: there for every tenant")
    versions: int
    aliases: list[AliasOf]
    created_at: datetime
    updated_at: datetime


class Engines(Answer):
    data: list[EngineSummary]


class VersionSummary(Answer):
    version: int
    state: Literal["published", "retired"]
    hash: str = Field(description="SHA-256 of all that it says, hexadecimal")
    price_hash: str = Field(description="SHA-256 of the prices of its models when it was deployed")
    mode: Mode
    at_once: int | None = Field(description="nodes of a run at the same time; null: any number")
    workflow_id: UUID
    workflow: str | None = Field(description="slug")
    workflow_version: int
    deployed_at: datetime
    deployed_by: UUID | None
    retired_at: datetime | None


class Version(VersionSummary):
    config: dict[str, Any] = Field(description="flow, models, prices, input, output, parameters, mode, at_once")


class LevelAccess(Answer):
    level_id: UUID
    level: str
    name: str
    tier: int
    access: Access | None = Field(description="null: the engine's default_access")


class Engine(EngineSummary):
    data: list[VersionSummary] = Field(description="every version, newest first")
    access: list[LevelAccess]


class DeployBody(Body):
    slug: Slug
    workflow: str = Field(max_length=63, description="slug or id")
    workflow_version: Number | None = Field(None, description="left out: the latest")
    name: str | None = Field(None, max_length=200, description="left out: as it was, or the workflow's")
    description: str | None = Field(None, max_length=5000)
    mode: Mode = "parallel"
    at_once: int | None = Field(None, ge=1, le=1000, description="left out: no limit")
    parameters: dict[str, Any] = Field({}, description="properties of the input that a copy may set")
    output: dict[str, Any] | None = Field(None, description="JSON Schema that cards show")


class Deployed(Answer):
    engine_id: UUID
    slug: str
    version: int
    hash: str
    unchanged: bool = Field(description="its latest version said the same already")


class ChangeBody(Body):
    """What is left out stays."""

    name: str | None = Field(None, min_length=1, max_length=200)
    description: str | None = Field(None, max_length=5000)
    default_access: Access | None = None
    offered: bool | None = None


class PromoteBody(Body):
    version: Number
    alias: Alias = "stable"
    weight: int | None = Field(None, ge=0, le=100, description="of a canary: how many of 100 users have it")


class Promoted(Answer):
    engine_id: UUID
    alias: Alias
    version: int
    weight: int


class RollbackBody(Body):
    alias: Alias = "stable"


class RolledBack(Answer):
    engine_id: UUID
    alias: Alias
    from_: int = Field(alias="from")
    version: int | None = Field(description="null: the canary is over")


class RetireBody(Body):
    version: Number | None = Field(None, description="left out: the engine, until it is deployed again")


class Retired(Answer):
    engine_id: UUID
    version: int | None


class AccessBody(Body):
    access: Access | None = Field(description="null: the engine's default_access")


class AssignBody(Body):
    engine: str = Field(max_length=63, description="slug or id")
    target: Target
    target_id: UUID | None = Field(None, description="of a user or a level")
    tier: Order | None = None
    pin: Pin | None = Field(None, description="a version's number, stable or canary; left out: what the name means")
    priority: Order = 0
    valid_from: AwareDatetime | None = None
    valid_to: AwareDatetime | None = None


class Assignment(Answer):
    id: UUID
    engine_id: UUID
    engine: str | None = Field(description="slug; null of an engine of the platform, which its tenants do not read")
    platform: bool
    target: Target
    target_id: UUID | None
    target_name: str | None
    tier: int | None
    pin: str | None
    priority: int
    valid_from: datetime | None
    valid_to: datetime | None
    assigned_at: datetime
    assigned_by: UUID | None


class Assignments(Answer):
    data: list[Assignment]


class Resolved(Answer):
    """Which engine and version is run, or why none is."""

    engine_id: UUID | None
    engine_tenant_id: UUID | None = None
    engine: str | None = None
    version: int | None = None
    alias: Alias | None = None
    source: str | None = Field(None, description="reference, copy, user, level, tier, tenant, platform")
    source_id: UUID | None = Field(None, description="the copy or the assignment")
    access: Access | None = None
    denied_reason: str | None


class Candidate(Answer):
    source: str
    source_id: UUID | None
    priority: int
    engine_id: UUID
    engine: str
    platform: bool
    version: int | None
    alias: Alias | None
    access: Access
    chosen: bool
    reason: str | None = Field(description="why it is not chosen; null: it is")


class Explained(Answer):
    data: list[Candidate] = Field(description="in the order in which they are looked at")


class ForkBody(Body):
    ref: Ref
    slug: Slug
    overlay: dict[str, Any] = Field({}, description="values for declared parameters")
    is_default: bool = Field(False, description="what runs when no engine is named")
    user_id: UUID | None = Field(None, description="whose it is to be; admins only")


class Forked(Answer):
    id: UUID
    ref: str
    engine_id: UUID
    engine: str
    version: int
    is_default: bool


class Copy(Answer):
    id: UUID
    user_id: UUID
    slug: str
    ref: str
    engine_id: UUID
    version: int
    overlay: dict[str, Any]
    is_default: bool
    created_at: datetime
    updated_at: datetime


class Copies(Answer):
    data: list[Copy]


class RebaseAllBody(Body):
    to: Pin | None = Field(None, description="a version's number, stable or canary; left out: what the name means")
    drop: bool = Field(False, description="take away the values that do not fit")
    dry_run: bool = Field(False, description="tell what it would come to and change nothing")


class RebaseBody(RebaseAllBody):
    overlay: dict[str, Any] = Field({}, description="values in the place of the copy's; null takes one away")


class Conflict(Answer):
    """Why a copy does not fit a version: a value of it, or the version itself."""

    field: str = Field(description="`overlay.` and the parameter, or version")
    code: str = Field(
        description="parameter_undeclared, parameter_invalid, version_retired, engine_retired, read_only, not_entitled,"
        " not_offered"
    )
    message: str


class Rebased(Answer):
    id: UUID
    user_id: UUID
    ref: str
    engine_id: UUID
    engine: str
    from_: int = Field(alias="from")
    version: int
    overlay: dict[str, Any]
    dropped: list[str] = Field(description="parameters that have no value of the copy's any more")
    conflicts: list[Conflict] = Field(description="with any the copy stays as it is")
    changed: bool = Field(description="in a dry run: would be")


class RebasedAll(Answer):
    data: list[Rebased] = Field(description="every copy of the tenant's users")


class KeyBody(Body):
    """`user_id` is whose key it is and who pays; the caller's own without it."""

    ref: Ref
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    budget_tokens: Annotated[int, Field(strict=True, gt=0, le=2**63 - 1)] | None = None
    expires_at: AwareDatetime | None = None
    user_id: UUID | None = None


class RunBody(Body):
    ref: Ref | None = Field(None, description="slug, slug@3, slug@canary, my/slug; left out: the one that is chosen")
    input: dict[str, Any] = Field(default_factory=dict, description="fits the engine's input; at most 1 MiB")
    idempotency_key: str | None = Field(None, max_length=255, description="or the header Idempotency-Key")
    priority: int | None = Field(None, ge=0, le=9, description="9 first; left out: the flow's, or 5")
    wait_s: float = Field(0, ge=0, le=MOST_WAIT_S, description="seconds to wait for the output; 0: not at all")
    user_id: UUID | None = Field(None, description="who pays; admins only")


class Estimate(Answer):
    """What earlier runs of the version cost, in tokens; null without any."""

    p50: int | None
    p95: int | None
    runs: int


class PreviewBody(Body):
    ref: Ref | None = Field(None, description="slug, slug@3, slug@canary, my/slug; left out: the one that is chosen")
    input: dict[str, Any] = Field(default_factory=dict, description="fits the engine's input; at most 1 MiB")
    user_id: UUID | None = Field(None, description="who would pay; admins only")


class Preview(Answer):
    """What a start would begin."""

    engine_id: UUID
    engine: str = Field(description="slug")
    version: int
    alias: Alias | None
    source: str | None = Field(description="what chose it")
    input: dict[str, Any] = Field(description="with the copy's values and the defaults")
    estimate: Estimate
    price_hash: str = Field(description="SHA-256 of the prices of its models now, hexadecimal")
    prices_changed: bool = Field(description="whether they were others when the version was deployed")


class Run(Answer):
    """A run of an engine; its execution is one of a workflow."""

    execution_id: UUID
    status: Status
    engine_id: UUID | None
    version: int | None = Field(description="pinned: nothing that is done to the engine changes what runs")
    alias: Alias | None
    source: str | None = Field(description="what chose it")
    estimate: Estimate
    output: Any = Field(None, description="null until it has succeeded")
    reason: str | None = Field(None, description="code of why it failed or was cancelled")
    error: Failure | None = None
    charged_tokens: int = 0
    cost_micros: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    follow: str = Field(description="where it is read")
    events: str = Field(description="its server-sent events: of the execution, or for a key of an engine of the run")


class Started(Run):
    replayed: bool = Field(description="the idempotency key had started it before")


class ReportRow(Answer):
    """Percentiles are of runs that are over; null without any."""

    version: int
    alias: Alias | None = Field(description="what means it now; null: nothing")
    weight: int | None = Field(description="of 100 users, how many have it")
    runs: int
    succeeded: int
    failed: int
    cancelled: int
    running: int
    p50_ms: int | None
    p95_ms: int | None
    charged_tokens: int
    p50_tokens: int | None
    p95_tokens: int | None
    cost_micros: int
    p50_micros: int | None
    p95_micros: int | None
    gates: int = Field(description="judgements of quality gates")
    gates_passed: int
    gate_pass_rate: float | None = Field(description="gates_passed of gates, 0 to 1; null without any")


class Report(Answer):
    data: list[ReportRow] = Field(description="a row for each version that ran")
