"""Bodies and answers of level analytics and of a tenant's own plan."""

from datetime import date, datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints


class LevelDay(BaseModel):
    """A day of a level, in the tenant's time zone."""

    day: date
    level_id: UUID
    level: str = Field(description="slug")
    users: int = Field(description="at the end of the day")
    active_users: int = Field(description="who spent or reserved tokens")
    new_users: int
    upgraded: int = Field(description="arrived from a lower tier")
    downgraded: int = Field(description="arrived from a higher tier")
    churned: int = Field(description="erased, or left for a level without a price")
    trials_ended: int = Field(description="trials that were over or left in the day")
    trials_converted: int = Field(description="of those, after which a paid period followed")
    tokens_granted: int
    tokens_spent: int
    tokens_lapsed: int = Field(description="left unspent: lapsed, voided, corrected downwards")
    run_rate: dict[str, int] = Field(
        description="what users at the end of the day paid a month, in minor units by currency; trials pay nothing"
    )
    limit_hits: dict[str, int] = Field(description="users who used up the limit of a feature, by feature")
    is_final: bool = Field(description="false: the day was not over when it was counted")
    computed_at: datetime


class LevelDays(BaseModel):
    data: list[LevelDay]


class RollUpBody(BaseModel):
    """Days to compute, both included."""

    from_day: date = Field(alias="from")
    to_day: date = Field(alias="to")


class RolledUp(BaseModel):
    rows: int = Field(description="rows written: one a day and level")


class Used(BaseModel):
    used: int
    limit: int | None = Field(description="null: any number")


class UsedTokens(Used):
    resets_at: datetime = Field(description="when the tenant's next month begins")
    stopped: bool = Field(description="calls are refused until then")


class TenantPlan(BaseModel):
    """What a tenant's own plan with the platform allows."""

    tenant_id: UUID
    tenant: str
    tier: str | None = Field(description="slug of a level of the platform; null: no plan, no limits")
    name: str | None
    users: Used
    tokens: UsedTokens = Field(description="of this month, of all users")
    history_days: int | None


class TierBody(BaseModel):
    tier: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] | None = Field(
        description="slug of a level of the platform; null: no plan"
    )


class Subscribed(BaseModel):
    tenant_id: UUID
    former: str | None = Field(alias="from")
    tier: str | None
