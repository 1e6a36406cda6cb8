"""Answers and bodies of the wallet's routes. Every amount is in tokens."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TOKENS = 1_000_000_000_000_000
Direction = Literal["credit", "debit", "reserve", "release", "adjustment"]
EntryDirection = Literal["credit", "debit", "reserve", "release", "adjustment", "settle", "debt", "expire", "void"]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Percent = Annotated[int, Field(ge=0, le=100)]
Enforcement = Literal["hard", "warn", "monitor"]


class Body(BaseModel):
    """A request; a field it does not know is refused, so that a misspelt one is not passed over."""

    model_config = ConfigDict(extra="forbid")


class Level(BaseModel):
    """The level a wallet is on."""

    id: UUID
    slug: str
    name: str


class Grant(BaseModel):
    """Tokens that were given and are not used up; burned in the order listed."""

    id: UUID
    kind: str = Field(description="base, plan, rollover, purchase, promo, trial, refund or adjustment")
    amount: int = Field(description="tokens given")
    remaining: int = Field(description="tokens left")
    effective_at: datetime
    expires_at: datetime | None = Field(description="null: never")


class PolicyExceptions(Body):
    """A user's exceptions to the policy of their level, all of them; null or left out: as the level says."""

    monthly_allocation: Tokens | None = Field(None, description="tokens a period")
    rollover_percent: Percent | None = None
    rollover_cap: Tokens | None = None
    monthly_cap: Tokens | None = None
    enforcement_mode: Enforcement | None = None
    warning_percent: Percent | None = None


class UserPolicy(BaseModel):
    """The policy that holds for a user: the level's with the user's exceptions. Null where no level says anything."""

    level_id: UUID | None
    base_allocation: int | None
    monthly_allocation: int | None = Field(description="tokens a period")
    period: Literal["day", "week", "month", "year"] | None
    period_anchor: Literal["calendar", "anniversary"] | None
    rollover_percent: int | None
    rollover_cap: int | None = Field(description="tokens; null: no limit")
    monthly_cap: int | None = Field(description="tokens; null: no limit")
    enforcement_mode: Enforcement | None
    warning_percent: int | None
    exceptions: PolicyExceptions = Field(description="what of it is this user's own; null: as the level says")


class Wallet(BaseModel):
    """A wallet as it stands; periods that ended a moment ago are closed within seconds, or by the next operation."""

    user_id: UUID
    status: Literal["active", "locked", "suspended", "closed"]
    available: int = Field(description="tokens that can be spent now")
    reserved: int = Field(description="tokens held for calls in flight")
    borrowed: int = Field(description="tokens of debt; the next credit repays them first")
    spent: int = Field(description="tokens spent since the wallet was made")
    level: Level | None
    period_start: datetime | None
    next_reset_at: datetime | None = Field(description="when the period ends and the next allocation is granted")
    enforcement_mode: Literal["hard", "warn", "monitor"]
    warn_below: int | None = Field(description="tokens")
    warning: bool = Field(description="available is below warn_below, or the wallet is in debt")
    policy: UserPolicy
    grants: list[Grant]


class Entry(BaseModel):
    """One row of the ledger."""

    seq: int = Field(description="position in this wallet's chain, from 1 without gaps")
    id: UUID
    created_at: datetime
    direction: EntryDirection
    amount: int = Field(description="change of available - borrowed, tokens, signed")
    reserved_amount: int = Field(description="change of reserved, tokens, signed")
    available_after: int = Field(description="tokens")
    reserved_after: int = Field(description="tokens")
    borrowed_after: int = Field(description="tokens")
    reason: str
    source: str
    reference_type: str | None
    reference_id: UUID | None
    execution_id: UUID | None
    hold_id: UUID | None
    grant_id: UUID | None
    actor_id: UUID | None
    metadata: dict[str, Any]
    hash: str = Field(description="SHA-256 of this row and the hash before it, hex; keep it to prove the chain later")


class EntryPage(BaseModel):
    """Ledger entries, newest first."""

    data: list[Entry]
    next_cursor: str | None = Field(description="null on the last page")


class Execution(BaseModel):
    """One model call."""

    id: UUID
    created_at: datetime
    user_id: UUID
    api_key_id: UUID | None
    provider: str
    model: str
    status: Literal["succeeded", "failed", "cancelled", "abandoned"]
    error_code: str | None
    input_tokens: int = Field(description="model tokens")
    output_tokens: int = Field(description="model tokens")
    cached_input_tokens: int = Field(description="model tokens, part of input_tokens")
    reasoning_tokens: int = Field(description="model tokens, part of output_tokens")
    charged_tokens: int = Field(description="wallet tokens: model tokens times the model's weights")
    cost_micros: int = Field(description="what the provider charges, micros of USD")
    latency_ms: int | None
    first_token_ms: int | None
    streamed: bool
    usage_estimated: bool
    request_id: str | None


class ExecutionPage(BaseModel):
    """Model calls, newest first."""

    data: list[Execution]
    next_cursor: str | None = Field(description="null on the last page")


class Policy(BaseModel):
    """Tokens of a level."""

    base_allocation: int = Field(description="tokens, once on joining")
    monthly_allocation: int = Field(description="tokens a period")
    period: Literal["day", "week", "month", "year"]
    period_anchor: Literal["calendar", "anniversary"]
    rollover_percent: int = Field(description="percent of the unused plan tokens that roll over")
    rollover_cap: int | None = Field(description="tokens")
    monthly_cap: int | None = Field(description="tokens: plan and rollover of a period together")
    enforcement_mode: Literal["hard", "warn", "monitor"]
    warning_percent: int = Field(description="percent of the allocation below which a wallet warns")


class LevelWithPolicy(Level):
    """A level of the tenant; its policy is shown to admins."""

    description: str
    tier: int
    is_default: bool
    status: Literal["active", "retired"]
    policy: Policy | None


class Levels(BaseModel):
    data: list[LevelWithPolicy]


class Adjustment(BaseModel):
    """What to do with a wallet."""

    amount: int = Field(ge=-MAX_TOKENS, le=MAX_TOKENS, description="tokens; signed for an adjustment")
    direction: Direction
    reason: Reason
    source: str = Field("manual", max_length=100, description="purchase, promo, trial and refund name the grant's kind")
    reference_type: str | None = Field(None, max_length=100)
    reference_id: UUID | None = Field(None, description="of a release: hold_id or the reference of the reserve")
    execution_id: UUID | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    expires_at: datetime | None = Field(None, description="of a credit: when its unused tokens lapse; null: never")


class BatchedAdjustment(Adjustment):
    """One operation of a batch."""

    user_id: UUID
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(
        description="of this operation: sent again, alone or in another batch, its first answer comes back"
    )


class Batch(BaseModel):
    """Adjustments of one transaction, in order."""

    operations: list[BatchedAdjustment] = Field(min_length=1, max_length=1000)
    atomic: bool = Field(False, description="the first refusal undoes all and is the answer, with `operation` from 0")


class AdjustedEntry(BaseModel):
    """The ledger entry that an adjustment wrote; the same again for a repeated Idempotency-Key."""

    id: UUID
    seq: int
    user_id: UUID
    direction: EntryDirection
    amount: int = Field(description="change of available - borrowed, tokens, signed")
    reserved_amount: int = Field(description="change of reserved, tokens, signed")
    available_tokens: int
    reserved_tokens: int
    borrowed_tokens: int
    reason: str
    source: str
    reference_type: str | None
    reference_id: UUID | None
    execution_id: UUID | None
    hold_id: UUID | None = Field(description="of a reserve: settle or release it by this id")
    metadata: dict[str, Any]
    created_at: datetime
    replayed: bool = Field(description="true when the Idempotency-Key had been used: nothing was written")
    warning: str | None = None


class Outcome(BaseModel):
    """What became of one operation of a batch."""

    ok: bool
    entry: AdjustedEntry | None = None
    error: dict[str, Any] | None = Field(None, description="a problem, as the operation alone would have been answered")


class BatchOutcome(BaseModel):
    data: list[Outcome] = Field(description="one for each operation, in their order")


class LevelChange(BaseModel):
    level_id: UUID


class LevelAllocation(BaseModel):
    """What moving to a level brought."""

    user_id: UUID
    level_id: UUID
    base_granted: int = Field(description="tokens, only the first time on this level")
    period_granted: int = Field(description="tokens, once a period")
    restored: int = Field(description="tokens left when the user was on this level earlier in the period")
    available_tokens: int
    borrowed_tokens: int
    period_start: datetime | None
    next_reset_at: datetime | None


class StatusChange(BaseModel):
    status: Literal["active", "locked", "suspended"]
    reason: Reason


class Problem(BaseModel):
    seq: int
    problem: str


class Verification(BaseModel):
    """The chain of one wallet, recomputed."""

    verified: bool
    entries: int = Field(description="ledger entries of the wallet")
    problems: list[Problem]
