"""Bodies and answers of the routes that change a level. Money is minor units (cents): a credit is negative."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

from vanilla_saas.levels.models import Currency

When = Literal["now", "period_end"]
Timing = Literal["now", "period_end", "any"]
PaidCycle = Literal["monthly", "quarterly", "yearly", "lifetime"]
ChangeState = Literal["preview", "scheduled", "applied", "undone", "lapsed"]
LineKind = Literal["charge", "fee", "credit", "fee_credit", "renewal", "billed"]


class PathBody(BaseModel):
    """How one changes between two levels."""

    discount_percent: int = Field(0, ge=0, le=100, description="off the price of the first period, once for a user")
    timing: Timing = Field("any", description="at once, at the end of the period, or either")
    self_service: bool = Field(False, description="whether users do it themselves; nothing here collects money")


class Path(PathBody):
    id: UUID
    from_level_id: UUID
    from_level: str = Field(description="slug")
    to_level_id: UUID
    to_level: str = Field(description="slug")


class Paths(BaseModel):
    data: list[Path]


class PreviewBody(BaseModel):
    """What is asked for; without a cycle and a currency those that are paid, or the only ones there are."""

    level_id: UUID
    when: When = "now"
    cycle: PaidCycle | None = None
    currency: Currency | None = Field(None, description="ISO 4217")
    trial: bool = Field(True, description="begin with the trial of the price, where there is one and nothing is paid")
    user_id: UUID | None = Field(None, description="another user of the tenant; admins only")


class ChangeBody(PreviewBody):
    payment_reference: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        None, description="what a provider that has billed already calls the payment; admins only, no path is asked for"
    )
    billed_amount: int | None = Field(
        None, ge=-(10**15), le=10**15, description="what the provider billed, instead of the lines; minor units"
    )


class Line(BaseModel):
    kind: LineKind
    level: str = Field(description="slug")
    amount: int = Field(description="minor units; a credit is negative")


class ChangeTokens(BaseModel):
    """Tokens of the rest of the token period."""

    granted: int
    taken: int = Field(description="of the old level's plan, from what is unspent")
    short: int = Field(description="what was to be taken and is spent; owed when an admin insists")
    plan: int = Field(description="the new level's tokens for a whole period")
    until: datetime = Field(description="when the token period ends")


class Change(BaseModel):
    """A change of level: what it comes to, or came to."""

    user_id: UUID
    change_id: UUID | None = Field(None, description="null of a preview")
    state: ChangeState
    from_: str | None = Field(alias="from", description="slug of the level left")
    to: str = Field(description="slug")
    when: When
    effective_at: datetime
    cycle: PaidCycle | None = Field(description="null where nothing is paid")
    currency: str | None
    amount: int = Field(description="price of a period without discount")
    discount_percent: int
    trial: bool
    trial_credits: int
    period_start: datetime
    period_end: datetime | None = Field(description="null where nothing is to be renewed; of a trial, its end")
    lines: list[Line]
    due: int = Field(description="sum of the lines; negative when something comes back")
    tokens: ChangeTokens | None = Field(
        description="null of a change at the end of the period: they are of that moment"
    )
    self_service: bool
    replayed: bool = False


class InvoiceLine(BaseModel):
    id: UUID
    change_id: UUID | None = Field(description="null of a renewal and the end of a trial")
    level: str | None = Field(description="slug; null when the level is gone")
    kind: LineKind
    cycle: PaidCycle
    currency: str
    amount: int = Field(description="minor units; a credit is negative")
    period_start: datetime
    period_end: datetime | None
    payment_reference: str | None
    created_at: datetime


class Subscription(BaseModel):
    """What a user pays for, what is scheduled, and the newest 100 invoice lines."""

    user_id: UUID
    level: str | None = Field(description="slug of the level that the user is on")
    level_name: str | None
    cycle: PaidCycle | None = None
    currency: str | None = None
    amount: int = Field(0, description="price of a period without discount")
    trial: bool = False
    period_start: datetime | None = None
    period_end: datetime | None = None
    scheduled: Change | None = None
    lines: list[InvoiceLine]


class Scheduled(BaseModel):
    change_id: UUID
    user_id: UUID
    email: str | None
    from_level: str | None
    to_level: str
    effective_at: datetime
    due: int
    currency: str | None


class ScheduledChanges(BaseModel):
    """Scheduled changes of a tenant, the next ones first, at most 1,000."""

    data: list[Scheduled]
