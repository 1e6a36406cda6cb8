"""Bodies and answers of the level routes. Amounts of money are minor units (cents), limits are uses."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

Period = Literal["daily", "weekly", "monthly", "yearly", "lifetime"]
Cycle = Literal["one_time", "monthly", "quarterly", "yearly", "lifetime"]
Reason = Literal["no_level", "not_in_level", "off", "limit"]
RestrictionType = Literal[
    "allowed_models",
    "denied_models",
    "requests_per_minute",
    "tokens_per_minute",
    "requests_per_day",
    "concurrent_executions",
    "max_output_tokens",
    "max_prompt_tokens",
    "api_keys",
    "workflows",
    "agents",
    "history_days",
    "users_per_tenant",
    "history_days_per_tenant",
    "tokens_per_tenant",
]
Currency = Annotated[str, StringConstraints(pattern="^[A-Za-z]{3}$")]
FeatureName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
MAX_AMOUNT = 10**15


class LevelName(BaseModel):
    id: UUID
    slug: str
    name: str


class FeatureState(BaseModel):
    """Whether a user may use a feature once more, and if not, why."""

    feature: str
    user_id: UUID
    name: str
    category: str | None
    level: str | None = Field(description="slug of the user's level")
    allowed: bool
    reason: Reason | None = Field(description="why not; null when it is allowed")
    used: int = Field(description="in this period")
    limit: int | None = Field(description="uses a period; null: any number")
    remaining: int | None
    period: Period | None
    resets_at: datetime | None = Field(description="when the next period begins, midnight in the tenant's time zone")
    allowed_by: LevelName | None = Field(description="the lowest level that would allow it")


class FeatureStates(BaseModel):
    data: list[FeatureState]


class ConsumeBody(BaseModel):
    amount: int = Field(1, ge=1, le=10**12, description="uses; all are counted or none")
    user_id: UUID | None = Field(None, description="another user of the tenant; admins only")


class Consumed(BaseModel):
    """What was counted; the same again for a repeated Idempotency-Key."""

    feature: str
    user_id: UUID
    consumed: int
    used: int = Field(description="in this period, this use included")
    limit: int | None
    remaining: int | None
    period: Period | None
    resets_at: datetime | None
    replayed: bool


class FeatureBody(BaseModel):
    """What a level says of a feature; a limit needs a period."""

    enabled: bool = True
    limit: int | None = Field(None, ge=0, le=MAX_AMOUNT, description="uses a period; null: any number")
    period: Period | None = None
    category: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = "general"
    name: Annotated[str, StringConstraints(max_length=200)] = Field("", description="as people read it")


class Feature(FeatureBody):
    id: UUID
    feature: str


class RestrictionBody(BaseModel):
    """A number, or for allowed_models and denied_models patterns of names in which * stands for anything."""

    amount: int | None = Field(None, ge=0, le=10**12, description="requests, tokens, calls, keys, days or users")
    patterns: list[Annotated[str, StringConstraints(min_length=1, max_length=200)]] | None = Field(
        None, min_length=1, max_length=100
    )


class Restriction(RestrictionBody):
    type: RestrictionType


class PriceBody(BaseModel):
    """A price from a moment on."""

    cycle: Cycle = Field(description="one_time is paid once on joining, beside the others; lifetime once and for all")
    currency: Currency = Field(description="ISO 4217")
    amount: int = Field(ge=0, le=MAX_AMOUNT, description="minor units of the currency (cents)")
    trial_days: int = Field(0, ge=0, le=3660)
    trial_credits: int = Field(0, ge=0, le=MAX_AMOUNT, description="tokens granted for the trial")
    valid_from: datetime | None = Field(None, description="now")
    valid_until: datetime | None = Field(None, description="until it is ended")
    replace: bool = Field(False, description="ends the price of the same cycle and currency when this one begins")


class Price(BaseModel):
    id: UUID
    cycle: Cycle
    currency: str
    amount: int = Field(description="minor units of the currency (cents)")
    trial_days: int
    trial_credits: int
    valid_from: datetime
    valid_until: datetime | None


class Benefit(BaseModel):
    text: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    highlighted: bool = False


class Benefits(BaseModel):
    """All benefits of a level, in order."""

    benefits: list[Benefit] = Field(max_length=100)


class LevelBody(BaseModel):
    """A level; a slug that is there already is changed."""

    slug: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    description: Annotated[str, StringConstraints(max_length=1000)] = ""
    tier: int = Field(0, ge=0, le=1_000_000, description="ranks levels, the lowest first")
    is_default: bool = Field(False, description="the level of new users; the one before steps down")
    is_template: bool | None = Field(
        None, description="of the platform: copied into new tenants; false: a plan of tenants only; null: as it is"
    )


class MadeId(BaseModel):
    id: UUID


class Terms(BaseModel):
    """What a level is worth."""

    id: UUID
    slug: str
    name: str
    description: str
    tier: int
    is_default: bool
    status: Literal["active", "retired"]
    users: int | None = Field(description="users on it; null unless the caller is an admin")
    features: list[Feature]
    restrictions: list[Restriction]
    prices: list[Price] = Field(description="in force and to come")
    benefits: list[Benefit]


class PublicPrice(BaseModel):
    cycle: Cycle
    currency: str
    amount: int = Field(description="minor units of the currency (cents)")
    trial_days: int
    trial_credits: int
    valid_until: datetime | None


class PublicFeature(BaseModel):
    feature: str
    name: str
    category: str
    enabled: bool
    limit: int | None
    period: Period | None


class PublicTokens(BaseModel):
    base: int = Field(description="tokens, once on joining")
    amount: int = Field(description="tokens a period")
    period: Literal["day", "week", "month", "year"]


class PublicLevel(BaseModel):
    slug: str
    name: str
    description: str
    tier: int
    is_default: bool
    tokens: PublicTokens
    prices: list[PublicPrice] = Field(description="in force now")
    benefits: list[Benefit]
    features: list[PublicFeature]


class PriceList(BaseModel):
    """What a tenant's price page shows, lowest tier first."""

    tenant: str
    name: str
    levels: list[PublicLevel]
