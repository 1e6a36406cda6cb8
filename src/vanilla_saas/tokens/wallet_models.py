"""Answers and bodies of grants, holds, policies and proofs. Every amount is in tokens, every time RFC 3339."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field

from vanilla_saas.tokens.models import MAX_TOKENS, Body, Enforcement, Percent, Policy, Reason, Tokens

GrantKind = Literal["purchase", "promo", "trial", "refund", "adjustment"]
GrantState = Literal["scheduled", "active", "expired", "voided"]
HoldState = Literal["open", "settled", "released", "expired"]


class Answer(BaseModel):
    @classmethod
    def of(cls, row: Any) -> Self:
        """From a row of the store."""
        return cls.model_validate(dict(row))


class GrantOfAnyState(Answer):
    """Tokens that were given, whatever became of them."""

    id: UUID
    user_id: UUID
    kind: str = Field(description="base, plan, rollover, purchase, promo, trial, refund or adjustment")
    state: GrantState
    priority: int = Field(description="less is burned first")
    amount: int = Field(description="tokens given")
    remaining: int = Field(description="tokens left")
    effective_at: datetime
    expires_at: datetime | None = Field(description="null: never")
    level_id: UUID | None
    reason: str | None = Field(description="of a grant given by hand")
    void_reason: str | None = Field(description="of a grant voided by hand")
    metadata: dict[str, Any]
    created_at: datetime


class MadeGrant(GrantOfAnyState):
    """The grant; the same again for a repeated Idempotency-Key."""

    replayed: bool = Field(description="true when the Idempotency-Key had been used: nothing was written")


class GrantBody(Body):
    """What to give."""

    amount: Annotated[int, Field(ge=1, le=MAX_TOKENS, description="tokens")]
    kind: GrantKind = "promo"
    effective_at: AwareDatetime | None = Field(None, description="when it begins; null: now")
    expires_at: AwareDatetime | None = Field(None, description="when what is left lapses; null: never")
    priority: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="less is burned first; null: as its kind"
    )
    reason: Reason
    metadata: dict[str, Any] = Field(default_factory=dict)


class VoidBody(Body):
    reason: Reason


class Hold(Answer):
    """Tokens reserved for one call or step."""

    id: UUID
    user_id: UUID
    state: HoldState
    amount: int = Field(description="tokens held, or held when it closed; a part that was settled is taken off")
    requested: int = Field(description="tokens asked for; a wallet that warns or monitors may hold fewer")
    settled: int | None = Field(description="tokens charged so far; null: none yet")
    expires_at: datetime
    reference_type: str | None
    reference_id: UUID | None
    execution_id: UUID | None
    created_at: datetime
    closed_at: datetime | None


class SettleBody(Body):
    """What to charge against a hold."""

    actual: Tokens = Field(description="tokens to charge; a part is at least 1 and at most what is held")
    final: bool = Field(True, description="true closes the hold and returns the rest; false leaves the rest held")
    reason: Reason = "settle"


class ReleaseBody(Body):
    reason: Reason = "release"


class ExtendBody(Body):
    expires_at: AwareDatetime = Field(description="the new end, at most 30 days ahead")


class Extended(BaseModel):
    hold_id: UUID
    expires_at: datetime


class LevelPolicyBody(Body):
    """The whole policy of a level."""

    base_allocation: Tokens
    monthly_allocation: Tokens
    enforcement_mode: Enforcement = "hard"
    rollover_percent: Percent = 0
    rollover_cap: Tokens | None = None
    monthly_cap: Tokens | None = None
    period: Literal["day", "week", "month", "year"] = "month"
    period_anchor: Literal["calendar", "anniversary"] = "calendar"
    warning_percent: Percent = 20


class LevelPolicy(Policy):
    level_id: UUID


class Balance(BaseModel):
    """available - borrowed at a moment."""

    user_id: UUID
    at: datetime
    balance: int


class BrokenChain(Answer):
    """A place where a chain, or an entry that an anchor names, is not what it was."""

    tenant_id: UUID
    user_id: UUID
    seq: int
    problem: str


class ChainsVerified(BaseModel):
    verified: bool
    problems: list[BrokenChain]


class Difference(Answer):
    """A wallet that is not what its ledger, holds or grants say."""

    tenant_id: UUID
    user_id: UUID
    problem: str
    expected: int
    found: int


class BooksReconciled(BaseModel):
    clean: bool
    differences: list[Difference]


class AnchorChecked(BaseModel):
    """An anchor against the ledger of today."""

    verified: bool
    chains: int = Field(description="chains in the file")
    checked: int = Field(description="those of them that the caller may prove")
    taken_at: datetime
    found: int = Field(description="chains that are gone or were rewritten")
    problems: list[BrokenChain] = Field(description="the first 1,000 of them")
