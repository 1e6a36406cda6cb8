"""Engines over HTTP: deployed and offered by admins, chosen by assignments, seen and copied by who may run them."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response

from vanilla_saas.engines import store
from vanilla_saas.engines.models import (
    AccessBody,
    AssignBody,
    Assignment,
    Assignments,
    Candidate,
    Card,
    Cards,
    ChangeBody,
    Copies,
    Copy,
    DeployBody,
    Deployed,
    Engine,
    Engines,
    EngineSummary,
    Explained,
    ForkBody,
    Forked,
    LevelAccess,
    Offer,
    Offers,
    PromoteBody,
    Promoted,
    RebaseAllBody,
    RebaseBody,
    Rebased,
    RebasedAll,
    Ref,
    Report,
    ReportRow,
    Resolved,
    RetireBody,
    Retired,
    RollbackBody,
    RolledBack,
    Version,
    VersionSummary,
)
from vanilla_saas.tenancy.identity import Caller, CurrentCaller, acting
from vanilla_saas.web import OfUser, SlugOrId
from vanilla_saas.workflows import store as workflow_store
from vanilla_saas.workflows.execution_routes import period

router = APIRouter(prefix="/api/v1", tags=["engines"])
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
Asked = Annotated[Ref | None, Query(description="slug, slug@3, slug@canary, my/slug; left out: none is named")]


def _reads(caller: Caller) -> UUID:
    caller.require_scope("read")
    caller.require_admin()
    return caller.identity.tenant_id


def _writes(caller: Caller) -> UUID:
    caller.require_scope("admin")
    caller.require_admin()
    return caller.identity.tenant_id


@router.get("/engines")
async def engines(request: Request, caller: CurrentCaller, user_id: OfUser = None) -> Cards:
    """Those that the caller, or a user whom an admin names, may read or run."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.cards(connection, caller.identity.tenant_id, user_id)
    return Cards(data=[Card(**row) for row in rows])


@router.get("/engine-catalog")
async def catalog(request: Request, caller: CurrentCaller) -> Engines:
    """Every engine of the tenant with what its name means; admins only."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.deployed(connection, tenant_id)
    return Engines(data=[EngineSummary(**row) for row in rows])


@router.get("/engine-offers")
async def offers(request: Request, caller: CurrentCaller) -> Offers:
    """The engines that the platform offers, also those that no level of the tenant may run yet; admins only."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.offered(connection, tenant_id)
    return Offers(data=[Offer(**row) for row in rows])


@router.post("/engines", status_code=201, responses={200: {"model": Deployed}})
async def deploy(request: Request, response: Response, caller: CurrentCaller, body: DeployBody) -> Deployed:
    """Freezes a published workflow as the next version: 201, or 200 when the latest is the same. 422 with problems."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        found = await workflow_store.find(connection, tenant_id, body.workflow)
        made = await store.deploy(
            connection, tenant_id, body.slug, found["id"], **body.model_dump(exclude={"slug", "workflow"})
        )
    response.status_code = 200 if made["unchanged"] else 201
    return Deployed(**made)


@router.get("/engines/{engine}")
async def engine(request: Request, caller: CurrentCaller, engine: SlugOrId) -> Engine:
    """An engine with its versions, its aliases and what each level may; admins only."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, tenant_id, engine)
        versions = await store.versions(connection, tenant_id, found["id"])
        levels = await store.access(connection, tenant_id, found["id"])
    data, access = [VersionSummary(**row) for row in versions], [LevelAccess(**row) for row in levels]
    return Engine(**found, data=data, access=access)


@router.get("/engines/{engine}/versions/{version}")
async def version(request: Request, caller: CurrentCaller, engine: SlugOrId, version: Number) -> Version:
    """A version with all that its hash is of; admins only."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, tenant_id, engine)
        return Version(**await store.version(connection, tenant_id, found["id"], version))


@router.patch("/engines/{engine}")
async def change(request: Request, caller: CurrentCaller, engine: SlugOrId, body: ChangeBody) -> EngineSummary:
    """Name, description, what users of levels that say nothing may, and whether the platform offers it to tenants."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, engine)
        await store.change(connection, tenant_id, found["id"], **body.model_dump())
        return EngineSummary(**await store.find(connection, tenant_id, str(found["id"])))


@router.post("/engines/{engine}/promote")
async def promote(request: Request, caller: CurrentCaller, engine: SlugOrId, body: PromoteBody) -> Promoted:
    """Lets stable, or for so many of 100 users canary, mean a version from the next start on."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, engine)
        return Promoted(
            **await store.promote(connection, tenant_id, found["id"], body.version, body.alias, body.weight)
        )


@router.post("/engines/{engine}/rollback")
async def rollback(
    request: Request, caller: CurrentCaller, engine: SlugOrId, body: RollbackBody | None = None
) -> RolledBack:
    """Lets stable mean again what it meant before, or ends the canary; what runs stays on its version."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, engine)
        return RolledBack(**await store.rollback(connection, tenant_id, found["id"], (body or RollbackBody()).alias))


@router.post("/engines/{engine}/retire")
async def retire(request: Request, caller: CurrentCaller, engine: SlugOrId, body: RetireBody | None = None) -> Retired:
    """Nothing starts on a version any more, or on the engine until it is deployed again; what runs goes on."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, engine)
        return Retired(**await store.retire(connection, tenant_id, found["id"], (body or RetireBody()).version))


@router.put("/engines/{engine}/levels/{level_id}", status_code=204)
async def set_access(
    request: Request, caller: CurrentCaller, engine: SlugOrId, level_id: UUID, body: AccessBody
) -> Response:
    """What users of a level may with an engine of the tenant or one that the platform offers; null: its default."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        engine_id = await store.engine_id(connection, tenant_id, engine)
        await store.set_access(connection, tenant_id, level_id, engine_id, body.access)
    return Response(status_code=204)


@router.post("/engines/{engine}/rebase")
async def rebase_all(
    request: Request, caller: CurrentCaller, engine: SlugOrId, body: RebaseAllBody | None = None
) -> RebasedAll:
    """Takes every copy of an engine to another version; those with conflicts stay as they are. Admins only."""
    tenant_id, wanted = _writes(caller), body or RebaseAllBody()
    async with acting(request, caller) as connection:
        engine_id = await store.engine_id(connection, tenant_id, engine)
        rows = await store.rebase_all(connection, tenant_id, engine_id, **wanted.model_dump())
    return RebasedAll(data=[Rebased(**row) for row in rows])


@router.get("/engines/{engine}/report")
async def report(
    request: Request,
    caller: CurrentCaller,
    engine: SlugOrId,
    begin: Annotated[datetime | None, Query(alias="from", description="left out: 30 days before the end")] = None,
    until: Annotated[datetime | None, Query(description="left out: now")] = None,
) -> Report:
    """What the tenant's runs of an engine came to, by version; admins only."""
    tenant_id = _reads(caller)
    first, end = period(begin, until)
    async with acting(request, caller, read_only=True) as connection:
        engine_id = await store.engine_id(connection, tenant_id, engine)
        rows = await store.report(connection, tenant_id, engine_id, first, end)
    return Report(data=[ReportRow(**row) for row in rows])


@router.get("/engine-assignments")
async def assignments(
    request: Request,
    caller: CurrentCaller,
    engine: Annotated[str | None, Query(max_length=63, description="only of this one: slug or id")] = None,
) -> Assignments:
    """What chooses an engine for whom, what precedes first; admins only."""
    tenant_id = _reads(caller)
    async with acting(request, caller, read_only=True) as connection:
        engine_id = await store.engine_id(connection, tenant_id, engine) if engine else None
        rows = await store.assignments(connection, tenant_id, engine_id)
    return Assignments(data=[Assignment(**row) for row in rows])


@router.post("/engine-assignments", status_code=201)
async def assign(request: Request, caller: CurrentCaller, body: AssignBody) -> Assignment:
    """Chooses an engine for those who name none; again for the same target changes it. It permits nothing."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        engine_id = await store.engine_id(connection, tenant_id, body.engine)
        made = await store.assign(
            connection, tenant_id, engine_id, body.target, **body.model_dump(exclude={"engine", "target"})
        )
        rows = await store.assignments(connection, tenant_id, engine_id)
    return next(Assignment(**row) for row in rows if row["id"] == made)


@router.delete("/engine-assignments/{assignment_id}", status_code=204)
async def unassign(request: Request, caller: CurrentCaller, assignment_id: UUID) -> Response:
    """Takes an assignment back."""
    tenant_id = _writes(caller)
    async with acting(request, caller) as connection:
        await store.unassign(connection, tenant_id, assignment_id)
    return Response(status_code=204)


@router.get("/engine-choice")
async def choice(request: Request, caller: CurrentCaller, ref: Asked = None, user_id: OfUser = None) -> Resolved:
    """Which engine and version the caller, or a user whom an admin names, runs by a reference or without one."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return Resolved(**await store.resolve(connection, caller.identity.tenant_id, user_id, ref))


@router.get("/engine-choice/explanation")
async def explanation(request: Request, caller: CurrentCaller, ref: Asked = None, user_id: OfUser = None) -> Explained:
    """Everything that could choose an engine, in order, which one does, and why the others do not."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.explain(connection, caller.identity.tenant_id, user_id, ref)
    return Explained(data=[Candidate(**row) for row in rows])


@router.get("/engine-copies")
async def copies(request: Request, caller: CurrentCaller, user_id: OfUser = None) -> Copies:
    """Copies of the caller; of an admin the tenant's, or those of `user_id`."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.copies(connection, caller.identity.tenant_id, user_id)
    return Copies(data=[Copy(**row) for row in rows])


@router.post("/engine-copies", status_code=201)
async def fork(request: Request, caller: CurrentCaller, body: ForkBody) -> Forked:
    """A copy that stays on a version with values of one's own for its parameters, or the one of this slug changed."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        made = await store.fork(
            connection, caller.identity.tenant_id, body.ref, body.slug, body.overlay, is_default=body.is_default,
            user_id=body.user_id,
        )  # fmt: skip
    return Forked(**made)


@router.post("/engine-copies/{copy_id}/rebase")
async def rebase(request: Request, caller: CurrentCaller, copy_id: UUID, body: RebaseBody | None = None) -> Rebased:
    """Takes a copy to another version, one's own or by an admin any of the tenant's; what runs stays on its version.

    422 with problems when it does not fit, and nothing is changed; a dry run lists them as `conflicts`.
    """
    caller.require_scope("chat")
    wanted = body or RebaseBody()
    async with acting(request, caller) as connection:
        return Rebased(**await store.rebase(connection, caller.identity.tenant_id, copy_id, **wanted.model_dump()))


@router.delete("/engine-copies/{copy_id}", status_code=204)
async def delete_copy(request: Request, caller: CurrentCaller, copy_id: UUID) -> Response:
    """Deletes a copy, one's own or by an admin any of the tenant's; what runs of it goes on."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        await store.delete_copy(connection, caller.identity.tenant_id, copy_id)
    return Response(status_code=204)
