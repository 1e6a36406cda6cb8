"""Bodies and answers of the routes for events and webhooks."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

Url = Annotated[str, Field(min_length=8, max_length=2048, description="https://, and public")]
EventTypes = Annotated[
    list[Annotated[str, Field(max_length=100)]],
    Field(min_length=1, max_length=100, description="types (token.granted), groups (token.*) or *"),
]
Concurrency = Annotated[
    int, Field(ge=1, le=32, description="deliveries in flight at once; 1 keeps first tries in order")
]
DeliveryState = Literal["pending", "failed", "delivered", "dead"]


class EventType(BaseModel):
    type: str
    meaning: str


class EventTypeList(BaseModel):
    data: list[EventType]


class Event(BaseModel):
    """An event as it is listed and, in the same form, sent to webhooks."""

    type: str
    timestamp: datetime
    id: UUID = Field(description="is the webhook-id of every delivery of this event")
    tenant_id: UUID
    user_id: UUID | None = Field(description="whom it is about")
    data: dict[str, Any]

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(
            type=row["type"],
            timestamp=row["created_at"],
            id=row["id"],
            tenant_id=row["tenant_id"],
            user_id=row["user_id"],
            data=row["payload"],
        )


class Webhook(BaseModel):
    """An endpoint to which events are sent."""

    model_config = ConfigDict(extra="ignore")

    id: UUID
    url: str
    description: str
    event_types: list[str]
    status: Literal["active", "disabled"]
    disabled_reason: str | None
    concurrency: int
    failing_since: datetime | None = Field(description="the first failure since the last success")
    previous_secret_until: datetime | None = Field(description="until when the former secret signs too")
    created_at: datetime

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(**dict(row))


class WebhookBody(BaseModel):
    url: Url
    event_types: EventTypes = Field(default_factory=lambda: ["*"])
    description: str = Field("", max_length=500)
    concurrency: Concurrency = 4


class WebhookPatch(BaseModel):
    """What is to be changed; what is left out stays."""

    url: Url | None = None
    event_types: EventTypes | None = None
    description: str | None = Field(None, max_length=500)
    concurrency: Concurrency | None = None
    status: Literal["active", "disabled"] | None = Field(None, description="disabling gives up what waits")


class NewWebhook(Webhook):
    secret: str = Field(description="signs what is sent; shown only now")


class RotateBody(BaseModel):
    keep_hours: float = Field(24, ge=0, le=720, description="how long the former secret signs too")


class RotatedSecret(BaseModel):
    secret: str = Field(description="shown only now")
    previous_secret_until: datetime


class Delivery(BaseModel):
    """One event on its way to one webhook."""

    model_config = ConfigDict(extra="ignore")

    id: UUID
    endpoint_id: UUID
    event_id: UUID
    event_type: str | None = Field(description="null when the event is past retention")
    cause: Literal["event", "redelivery", "test"]
    state: DeliveryState = Field(description="failed is tried again, dead is not")
    attempts: int
    next_attempt_at: datetime | None = Field(description="null when there is none")
    last_status_code: int | None
    last_error: str | None
    last_duration_ms: int | None
    delivered_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(**dict(row))


class Attempt(BaseModel):
    attempt: int
    status_code: int | None = Field(description="null when there was no answer")
    error: str | None = Field(description="null when it was delivered")
    duration_ms: int | None
    created_at: datetime


class DeliveryWithAttempts(Delivery):
    event: Event | None
    tries: list[Attempt]


class Queued(BaseModel):
    delivery_id: UUID
