"""Bodies and answers of the routes for payments. Amounts are minor units (cents), tokens whole tokens."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from vanilla_saas.levels.models import Currency

Amount = Annotated[int, Field(ge=1, le=99_999_999, description="minor units (cents)")]
StripePriceId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,255}$", description="as Stripe shows it: price_...")]
Kind = Literal["pack", "level"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore")

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(**dict(row))


class PaymentPrice(_Row):
    """What can be bought: a pack of tokens, or a level by subscription."""

    id: UUID
    price_id: str = Field(description="Stripe's")
    kind: Kind
    name: str
    level_id: UUID | None
    tokens: int | None = Field(description="of a pack")
    currency: str
    amount: int
    status: Literal["active", "hidden"]


class PaymentPrices(BaseModel):
    data: list[PaymentPrice]


class PaymentPriceBody(BaseModel):
    kind: Kind
    name: str = Field(min_length=1, max_length=200)
    currency: Currency
    amount: Amount
    tokens: int | None = Field(None, ge=1, le=10**15, description="of a pack")
    level_id: UUID | None = Field(None, description="of a level")
    status: Literal["active", "hidden"] = "active"


class CheckoutBody(BaseModel):
    price_id: UUID = Field(description="id of the price here, not Stripe's")
    keep_payment_method: bool = Field(False, description="the payer agrees that auto top-up may charge it")


class Link(BaseModel):
    url: str = Field(description="a page of Stripe's; it is valid for a while and for this user only")


class Checkout(Link):
    payment_id: UUID | None = Field(description="of a pack; null for a level")


class Payment(_Row):
    """A pack that was to be paid, and what came of it."""

    id: UUID
    user_id: UUID
    cause: Literal["checkout", "auto_top_up"]
    state: Literal["open", "pending", "succeeded", "failed", "expired"]
    tokens: int
    currency: str
    amount: int
    returned_amount: int = Field(description="refunded, or held back in a dispute that is open or lost")
    reversed_tokens: int = Field(description="taken back for that")
    error: str | None
    created_at: datetime
    paid_at: datetime | None


class Subscription(_Row):
    """A subscription as Stripe told of it last."""

    subscription_id: str
    user_id: UUID
    state: str
    level_id: UUID | None = Field(description="null when the price is worth nothing here")
    current_period_end: datetime | None
    ends_at_period_end: bool
    past_due_since: datetime | None
    grace_until: datetime | None = Field(description="until when the level stays although it is past due")
    lapsed_at: datetime | None


class Subscriptions(BaseModel):
    data: list[Subscription]


class TopUp(_Row):
    """What is bought by itself, and what it came to this month."""

    price_id: UUID
    threshold: int
    monthly_ceiling: int
    enabled: bool
    paused_reason: str | None
    currency: str
    amount: int
    tokens: int
    spent_this_month: int


class TopUpBody(BaseModel):
    price_id: UUID = Field(description="of a pack")
    threshold: int = Field(ge=1, le=10**15, description="buy when fewer tokens are left")
    monthly_ceiling: int = Field(ge=1, le=9_999_999_999, description="minor units in a calendar month, at most")
    enabled: bool = True


class PaymentAccount(_Row):
    """The tenant's account at Stripe; its secrets are never shown."""

    webhook_path: str = Field(description="where Stripe is to send its events")
    status: Literal["active", "disabled"]
    secret_hint: str | None
    stripe_account: str | None
    livemode: bool
    grace_days: int

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(**dict(row), webhook_path=f"/api/v1/payments/stripe/{row['endpoint']}")


class PaymentAccountBody(BaseModel):
    """What is to be changed; what is left out stays."""

    key: SecretStr | None = Field(None, description="sk_... or rk_...")
    webhook_secret: SecretStr | None = Field(None, description="whsec_...")
    stripe_account: str | None = Field(None, max_length=100, description="acct_...: events of another are refused")
    grace_days: int | None = Field(None, ge=0, le=90, description="days that a subscription past due keeps its level")
    status: Literal["active", "disabled"] | None = None


class PaymentEvent(_Row):
    event_id: str
    type: str
    outcome: str = Field(description="docs/payments.md lists them")
    created_at: datetime
    received_at: datetime


class PaymentEvents(BaseModel):
    data: list[PaymentEvent]


class Received(BaseModel):
    event_id: str
    outcome: str
    replayed: bool
