"""Agreements over HTTP: proposed, answered, amended, suspended, ended by the parties."""

from uuid import UUID

from fastapi import APIRouter, Request

from vanilla_saas.orchestration import agreement_store as store
from vanilla_saas.orchestration.channel_models import (
    AgreementDetail,
    Agreements,
    AgreementState,
    AgreementSummary,
    AmendmentBody,
    MoveBody,
    PartyBody,
    ProposalBody,
    ResponseBody,
    ResumeBody,
)
from vanilla_saas.tenancy.identity import CurrentCaller, acting

router = APIRouter(prefix="/api/v1", tags=["agreements"])


@router.get("/agreements")
async def agreements(request: Request, caller: CurrentCaller) -> Agreements:
    """The newest 1,000 to which the caller is a party; of an admin, all of the tenant."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.agreements(connection, caller.identity.tenant_id)
    return Agreements(data=[AgreementSummary(**row) for row in rows])


@router.post("/agreements", status_code=201)
async def propose(request: Request, caller: CurrentCaller, body: ProposalBody) -> AgreementState:
    """Proposes an agreement, and accepts it as a party; 422 when a rule in it could not be enforced."""
    caller.require_scope("chat")
    parties = {party: str(user_id) for party, user_id in body.parties.items()}
    async with acting(request, caller) as connection:
        made = await store.propose(
            connection, caller.identity.tenant_id, body.name, parties, body.party, body.content, body.user_id
        )
    return AgreementState(**made)


@router.get("/agreements/{agreement_id}")
async def agreement(request: Request, caller: CurrentCaller, agreement_id: UUID) -> AgreementDetail:
    """An agreement with its versions, who accepted them, and the last violations."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return AgreementDetail(**await store.read(connection, caller.identity.tenant_id, agreement_id))


@router.post("/agreements/{agreement_id}/respond")
async def respond(request: Request, caller: CurrentCaller, agreement_id: UUID, body: ResponseBody) -> AgreementState:
    """A party accepts what is proposed, by its hash, rejects or counters it; 409 when something else is by now."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        told = await store.respond(
            connection, caller.identity.tenant_id, agreement_id, body.party, bytes.fromhex(body.hash), body.decision,
            body.content,
        )  # fmt: skip
    return AgreementState(**told)


@router.post("/agreements/{agreement_id}/amend")
async def amend(request: Request, caller: CurrentCaller, agreement_id: UUID, body: AmendmentBody) -> AgreementState:
    """Proposes another version; what is active binds until every party has accepted the new one."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        made = await store.amend(connection, caller.identity.tenant_id, agreement_id, body.party, body.content)
    return AgreementState(**made)


@router.post("/agreements/{agreement_id}/withdraw")
async def withdraw(request: Request, caller: CurrentCaller, agreement_id: UUID, body: PartyBody) -> AgreementState:
    """Takes back what the party proposed and not all have accepted."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        told = await store.withdraw(connection, caller.identity.tenant_id, agreement_id, body.party)
    return AgreementState(**told)


@router.post("/agreements/{agreement_id}/suspend")
async def suspend(
    request: Request, caller: CurrentCaller, agreement_id: UUID, body: MoveBody | None = None
) -> AgreementState:
    """Its channels take no message until it is resumed: by a party, or an admin."""
    caller.require_scope("chat")
    body = body or MoveBody()
    async with acting(request, caller) as connection:
        told = await store.suspend(connection, caller.identity.tenant_id, agreement_id, body.party, body.reason)
    return AgreementState(**told)


@router.post("/agreements/{agreement_id}/resume")
async def resume(
    request: Request, caller: CurrentCaller, agreement_id: UUID, body: ResumeBody | None = None
) -> AgreementState:
    """By the party that suspended it; after violations by one that made none; by an admin."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        told = await store.resume(
            connection, caller.identity.tenant_id, agreement_id, body.party if body else None
        )  # fmt: skip
    return AgreementState(**told)


@router.post("/agreements/{agreement_id}/terminate")
async def terminate(
    request: Request, caller: CurrentCaller, agreement_id: UUID, body: MoveBody | None = None
) -> AgreementState:
    """Ends it for good: by a party, or an admin."""
    caller.require_scope("chat")
    body = body or MoveBody()
    async with acting(request, caller) as connection:
        told = await store.terminate(connection, caller.identity.tenant_id, agreement_id, body.party, body.reason)
    return AgreementState(**told)
