"""Changes of level over HTTP: previewed, made and undone, by users where the path is theirs, by admins for all."""

from uuid import UUID

from fastapi import APIRouter, Request, Response

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.levels import change_store
from vanilla_saas.levels.change_models import (
    Change,
    ChangeBody,
    PathBody,
    Paths,
    PreviewBody,
    ScheduledChanges,
    Subscription,
)
from vanilla_saas.levels.models import MadeId
from vanilla_saas.tenancy.identity import CurrentCaller, acting
from vanilla_saas.web import MoneyKey, OfUser, tell_replay

router = APIRouter(prefix="/api/v1", tags=["levels"])


@router.get("/upgrade-paths")
async def paths(request: Request, caller: CurrentCaller) -> Paths:
    """From which level to which one changes, when, with what discount, and whether users do it themselves."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return Paths(data=await change_store.paths(connection, caller.identity.tenant_id))


@router.put("/levels/{level_id}/upgrade-paths/{to_level_id}")
async def set_path(
    request: Request, caller: CurrentCaller, level_id: UUID, to_level_id: UUID, body: PathBody
) -> MadeId:
    """Makes a path, or changes its terms; a circle of discounts that would pay who goes round it is refused."""
    async with acting(request, caller) as connection:
        made = await change_store.set_path(connection, caller.identity.tenant_id, level_id, to_level_id, body)
        return MadeId(id=made)


@router.delete("/levels/{level_id}/upgrade-paths/{to_level_id}", status_code=204)
async def delete_path(request: Request, caller: CurrentCaller, level_id: UUID, to_level_id: UUID) -> None:
    """Takes a path away; what is scheduled along it still happens."""
    async with acting(request, caller) as connection:
        await change_store.delete_path(connection, caller.identity.tenant_id, level_id, to_level_id)


@router.get("/subscription")
async def subscription(request: Request, caller: CurrentCaller, user_id: OfUser = None) -> Subscription:
    """Level, period, what is scheduled, and invoice lines of a user."""
    caller.require_scope("read")
    wanted = user_id or caller.identity.user_id
    async with acting(request, caller, read_only=True) as connection:
        found = await change_store.subscription(connection, caller.identity.tenant_id, wanted)
    if found is None:
        raise VanillaError("not_found", "no such user", {"user_id": str(wanted)})
    return found


@router.post("/level-changes/preview")
async def preview(request: Request, caller: CurrentCaller, body: PreviewBody) -> Change:
    """What a change would come to at this moment: lines, period, trial, tokens. Changes nothing."""
    caller.require_scope("read")
    async with acting(request, caller) as connection:
        return await change_store.preview(connection, body.user_id or caller.identity.user_id, body)


@router.post("/level-changes")
async def change(
    request: Request,
    response: Response,
    caller: CurrentCaller,
    body: ChangeBody,
    key: MoneyKey,
) -> Change:
    """Changes a level along a path, at once or at the end of the period. Keys of users need the scope chat."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        done = await change_store.change(connection, body.user_id or caller.identity.user_id, body, key)
    tell_replay(response, done.replayed)
    return done


@router.delete("/level-changes/scheduled")
async def undo(request: Request, caller: CurrentCaller, user_id: OfUser = None) -> Change:
    """Calls off the change that is scheduled; 409 when it took effect, or none was."""
    caller.require_scope("chat")
    async with acting(request, caller) as connection:
        return await change_store.undo(connection, user_id or caller.identity.user_id)


@router.get("/level-changes/scheduled")
async def scheduled(request: Request, caller: CurrentCaller) -> ScheduledChanges:
    """Scheduled changes: one's own, an admin's whole tenant."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return ScheduledChanges(data=await change_store.scheduled(connection, caller.identity.tenant_id))
