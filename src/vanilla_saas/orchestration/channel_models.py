"""Bodies and answers of the routes of channels and agreements."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Performative = Literal[
    "request", "agree", "refuse", "inform", "failure", "query", "cfp", "propose", "accept_proposal", "reject_proposal",
    "cancel", "not_understood", "subscribe",
]  # fmt: skip
Kind = Literal["direct", "group", "topic"]
Party = Annotated[str, StringConstraints(max_length=63)]
Seq = Annotated[int, Field(ge=1, le=2**63 - 1)]
MessageId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Reason = Annotated[str, Field(max_length=500)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewParticipant(Strict):
    name: str = Field(max_length=200)
    kind: Literal["user", "agent", "engine"] = "agent"
    user_id: UUID | None = Field(None, description="the person, or for whom it acts; left out: who opens the channel")
    party: Party | None = Field(None, description="as which party of the agreement it speaks; left out: it listens")
    reads: bool = Field(True, description="whether it acknowledges; what a mere publisher has not read is not kept")
    manages: bool = Field(False, description="it gives the floor, where that is a manager's")


class ChannelLimits(Strict):
    max_messages: int | None = Field(None, ge=1, le=10**12)
    max_attempts: int | None = Field(None, ge=1, le=100, description="until a message is a dead letter; left out: 5")
    floor: Literal["round_robin", "manager", "bid"] | None = Field(None, description="who may speak, in a group")
    floor_s: int | None = Field(None, ge=1, le=86_400, description="after which anybody may pass the floor on")


class ChannelBody(Strict):
    name: str = Field(min_length=1, max_length=200)
    kind: Kind = "group"
    participants: list[NewParticipant] = Field(min_length=2, max_length=100)
    agreement_id: UUID | None = Field(None, description="every message is held to it")
    limits: ChannelLimits = ChannelLimits()
    user_id: UUID | None = Field(None, description="whose it is to be; admins only")


class OpenedChannel(BaseModel):
    channel_id: UUID
    participants: dict[str, UUID] = Field(description="ids by name")


class ChannelSummary(BaseModel):
    id: UUID
    name: str
    kind: Kind
    status: Literal["open", "closed"]
    last_seq: int = Field(description="so many messages were sent")
    agreement_id: UUID | None
    user_id: UUID = Field(description="the owner")
    participants: int
    created_at: datetime
    closed_at: datetime | None


class Channels(BaseModel):
    data: list[ChannelSummary]


class Participant(BaseModel):
    id: UUID
    name: str
    kind: Literal["user", "agent", "engine"]
    user_id: UUID
    party: str | None
    reads: bool
    manages: bool
    cursor_seq: int = Field(description="it is done with all messages up to this one")
    attempts: int = Field(description="how often the next one has failed")
    lease_until: datetime | None
    last_error: str | None
    dead_letters: int


class ChannelDetail(BaseModel):
    id: UUID
    name: str
    kind: Kind
    status: Literal["open", "closed"]
    user_id: UUID
    agreement_id: UUID | None
    last_seq: int
    max_messages: int | None
    max_attempts: int
    open_conversations: int
    floor_policy: str | None
    floor_holder: UUID | None = Field(description="the participant who may speak")
    floor_until: datetime | None
    created_at: datetime
    closed_at: datetime | None
    close_reason: str | None
    participants: list[Participant]


class Message(BaseModel):
    seq: int = Field(description="its place in the one order that all see")
    sender_id: UUID
    performative: Performative
    body: Any = Field(description="null when its author was erased")
    message_id: str
    in_reply_to: int | None
    conversation: int = Field(description="the message that began it")
    run_id: UUID | None = Field(description="the agent's run that said it")
    created_at: datetime


class SpokenMessage(Message):
    sender: str = Field(description="the participant's name")


class Messages(BaseModel):
    data: list[SpokenMessage]


class MessageBody(Strict):
    participant_id: UUID = Field(description="as whom")
    performative: Performative = "inform"
    body: Any = Field(description="JSON of at most 64 KiB")
    message_id: MessageId | None = Field(
        None, description="the sender's own name for it, sent again the same message; left out: the Idempotency-Key"
    )
    in_reply_to: Seq | None = None
    run_id: UUID | None = None


Rule = Literal[
    "performative", "sender", "reply", "conversation", "deadline", "limit", "schema", "price", "latency", "gate"
]


class Violated(BaseModel):
    code: Literal["agreement_violated"]
    rule: Rule
    path: str
    message: str
    violations: int = Field(description="of the agreement, since it began or was resumed")
    suspended: bool = Field(description="the agreement is, because of them")


class SentMessage(BaseModel):
    seq: int
    message_id: str
    replayed: bool = Field(description="it had been sent before")
    violated: Violated | None = Field(None, description="it was delivered, later than the agreement lets answers come")


class ReceiveBody(Strict):
    participant_id: UUID
    limit: int = Field(50, ge=1, le=1000)
    lease_s: float = Field(60, ge=0.01, le=86_400, description="seconds that nobody else is given them")


class Received(BaseModel):
    lease_token: UUID | None = Field(description="null: there is nothing, or another worker has it")
    lease_until: datetime | None
    attempt: int | None = Field(description="1: the first one has not failed yet")
    data: list[Message]


class AckBody(Strict):
    participant_id: UUID
    lease_token: UUID
    seq: Seq = Field(description="all up to this one are done with")
    run_id: UUID | None = Field(
        None, description="the run they went to: what it keeps of what the agreement redacts goes too"
    )


class Acknowledged(BaseModel):
    acknowledged: bool = Field(description="false: they were already")


class NackBody(Strict):
    participant_id: UUID
    lease_token: UUID
    seq: Seq = Field(description="the first that is not acknowledged")
    error: str = Field("", max_length=500)
    retry_after_s: float = Field(0, ge=0, le=604_800, description="seconds until the next attempt")


class Failed(BaseModel):
    outcome: Literal["retry", "dead"]


class FloorBody(Strict):
    participant_id: UUID
    action: Literal["read", "pass", "give", "take", "bid"] = "read"
    to: UUID | None = Field(None, description="of give: the participant")
    bid: Decimal | None = Field(None, ge=-(10**12), le=10**12)


class Floor(BaseModel):
    floor_policy: str
    floor_holder: UUID | None
    floor_until: datetime | None


class CloseBody(Strict):
    reason: Reason = ""


class ClosedChannel(BaseModel):
    channel_id: UUID
    closed: bool = Field(description="false: it was closed already")


class ProposalBody(Strict):
    name: str = Field(min_length=1, max_length=200)
    parties: dict[Party, UUID] = Field(description="roles by name, each with the user who answers for it")
    party: Party = Field(description="which of them proposes, and so accepts")
    content: dict[str, Any] = Field(description="acts, limits, sla, data, price, gate, expires_at")
    user_id: UUID | None = Field(None, description="who proposes; programs and admins only")


AgreementStatus = Literal["proposed", "active", "suspended", "rejected", "withdrawn", "terminated", "expired"]


class AgreementState(BaseModel):
    agreement_id: UUID
    version: int | None
    hash: str | None = Field(None, description="SHA-256 of the terms, hexadecimal: what parties accept")
    status: AgreementStatus


class AgreementSummary(BaseModel):
    id: UUID
    name: str
    status: AgreementStatus
    version: int | None = Field(description="that binds")
    open_version: int | None = Field(description="that not all parties have answered")
    violations: int = Field(description="since it began or was resumed")
    expires_at: datetime | None
    created_at: datetime


class Agreements(BaseModel):
    data: list[AgreementSummary]


class TermsVersion(BaseModel):
    version: int
    state: Literal["proposed", "countered", "rejected", "withdrawn", "expired", "active", "superseded"]
    hash: str
    terms: dict[str, Any]
    proposed_by: str
    proposed_at: datetime
    decided_at: datetime | None
    accepted_by: list[str]


class Violation(BaseModel):
    id: UUID
    version: int
    channel_id: UUID
    participant_id: UUID
    party: str | None
    performative: str
    rule: Rule
    path: str = Field(description="JSON pointer into the body, where the rule is one of the body")
    message: str
    created_at: datetime


class AgreementDetail(AgreementSummary):
    suspended_by: str | None = Field(description="null: too many violations, or an admin")
    reason: str | None
    versions: list[TermsVersion] = Field(description="newest first")
    latest_violations: list[Violation] = Field(description="the last 20")


class ResponseBody(Strict):
    party: Party
    hash: str = Field(pattern="^[0-9a-f]{64}$", description="of what is answered")
    decision: Literal["accept", "counter", "reject"]
    content: dict[str, Any] | None = Field(None, description="of counter: what is proposed instead")


class AmendmentBody(Strict):
    party: Party
    content: dict[str, Any]


class PartyBody(Strict):
    party: Party


class MoveBody(Strict):
    party: Party | None = Field(None, description="left out by an admin")
    reason: Reason = ""


class ResumeBody(Strict):
    party: Party | None = Field(None, description="left out by an admin")
