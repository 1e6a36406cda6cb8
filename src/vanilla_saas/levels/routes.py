"""Levels over HTTP: features checked and counted, terms read by members and set by admins, the public price list."""

import hashlib
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Header, Query, Request, Response

from vanilla_saas.levels import analytics_routes, store
from vanilla_saas.levels.models import (
    Benefits,
    ConsumeBody,
    Consumed,
    FeatureBody,
    FeatureName,
    FeatureState,
    FeatureStates,
    LevelBody,
    MadeId,
    PriceBody,
    PriceList,
    RestrictionBody,
    RestrictionType,
    Terms,
)
from vanilla_saas.tenancy.identity import CurrentCaller, acting
from vanilla_saas.web import OfUser

router = APIRouter(prefix="/api/v1", tags=["levels"])
router.include_router(analytics_routes.router)
CACHE_S = 60
"""How long anybody may keep a price list."""


@router.get("/features")
async def features(request: Request, caller: CurrentCaller, user_id: OfUser = None) -> FeatureStates:
    """Every feature that a level of the tenant names, and whether the user may use it once more."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        states = await store.check_all(connection, caller.identity.tenant_id, user_id or caller.identity.user_id)
    return FeatureStates(data=[FeatureState(**state) for state in states])


@router.get("/features/{feature}")
async def check_feature(
    request: Request, caller: CurrentCaller, feature: FeatureName, user_id: OfUser = None
) -> FeatureState:
    """Whether a user may use a feature once more, why not, until when, and which level would allow it."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return FeatureState(**await store.check(connection, user_id or caller.identity.user_id, feature))


@router.post("/features/{feature}/consume")
async def consume_feature(
    request: Request,
    response: Response,
    caller: CurrentCaller,
    feature: FeatureName,
    body: ConsumeBody,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Consumed:
    """Counts uses, all or none; 429 above the limit, with what it is and when it resets. Keys need the scope chat."""
    caller.require_scope("chat")
    user_id = body.user_id or caller.identity.user_id
    async with acting(request, caller) as connection:
        counted = Consumed(**await store.consume(connection, user_id, feature, body.amount, idempotency_key or None))
    if counted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return counted


@router.get("/levels/{level_id}/terms")
async def level_terms(request: Request, caller: CurrentCaller, level_id: UUID) -> Terms:
    """Features, prices and benefits of a level of the tenant."""
    caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        counted = caller.identity.role != "user"
        return (await store.terms(connection, caller.identity.tenant_id, level_id, counted=counted))[0]


@router.post("/levels")
async def set_level(request: Request, caller: CurrentCaller, body: LevelBody) -> MadeId:
    """Makes a level, or changes the one of this slug; a new one grants no tokens until its policy is set."""
    async with acting(request, caller) as connection:
        return MadeId(id=await store.set_level(connection, caller.identity.tenant_id, body))


@router.delete("/levels/{level_id}", status_code=204)
async def delete_level(request: Request, caller: CurrentCaller, level_id: UUID) -> None:
    """Deletes a level with its terms; the default and one that users hold are refused."""
    async with acting(request, caller) as connection:
        await store.delete_level(connection, caller.identity.tenant_id, level_id)


@router.put("/levels/{level_id}/features/{feature}")
async def set_feature(
    request: Request, caller: CurrentCaller, level_id: UUID, feature: FeatureName, body: FeatureBody
) -> MadeId:
    """Says what a level allows of a feature; in force at once, what was used stays counted."""
    async with acting(request, caller) as connection:
        return MadeId(id=await store.set_feature(connection, caller.identity.tenant_id, level_id, feature, body))


@router.delete("/levels/{level_id}/features/{feature}", status_code=204)
async def delete_feature(request: Request, caller: CurrentCaller, level_id: UUID, feature: FeatureName) -> None:
    """Takes a feature out of a level."""
    async with acting(request, caller) as connection:
        await store.delete_feature(connection, caller.identity.tenant_id, level_id, feature)


@router.put("/levels/{level_id}/restrictions/{type}")
async def set_restriction(
    request: Request, caller: CurrentCaller, level_id: UUID, type: RestrictionType, body: RestrictionBody
) -> MadeId:
    """Restricts a level, for all on it and from the next call on."""
    async with acting(request, caller) as connection:
        return MadeId(id=await store.set_restriction(connection, caller.identity.tenant_id, level_id, type, body))


@router.delete("/levels/{level_id}/restrictions/{type}", status_code=204)
async def delete_restriction(request: Request, caller: CurrentCaller, level_id: UUID, type: RestrictionType) -> None:
    """Lifts a restriction of a level."""
    async with acting(request, caller) as connection:
        await store.delete_restriction(connection, caller.identity.tenant_id, level_id, type)


@router.post("/levels/{level_id}/prices")
async def set_price(request: Request, caller: CurrentCaller, level_id: UUID, body: PriceBody) -> MadeId:
    """Sets a price from now or a moment on; one that overlaps another is refused unless it replaces it."""
    async with acting(request, caller) as connection:
        return MadeId(id=await store.set_price(connection, caller.identity.tenant_id, level_id, body))


@router.delete("/prices/{price_id}", status_code=204)
async def end_price(request: Request, caller: CurrentCaller, price_id: UUID) -> None:
    """Ends a price now; one that has not begun is gone."""
    async with acting(request, caller) as connection:
        await store.end_price(connection, caller.identity.tenant_id, price_id)


@router.put("/levels/{level_id}/benefits", status_code=204)
async def set_benefits(request: Request, caller: CurrentCaller, level_id: UUID, body: Benefits) -> None:
    """Sets all benefits of a level, in order."""
    async with acting(request, caller) as connection:
        await store.set_benefits(connection, caller.identity.tenant_id, level_id, body.benefits)


@router.get("/pricing", response_model=PriceList, responses={304: {"description": "what the caller has is current"}})
async def pricing(
    request: Request,
    tenant: Annotated[str, Query(min_length=1, max_length=63, description="slug of the tenant")],
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The price list of a tenant, for anybody and any site, kept a minute by caches; no key is needed."""
    found = await store.price_list(request.app.state.database, tenant)
    body = orjson.dumps(PriceList(**found).model_dump(mode="json"))
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": f"public, max-age={CACHE_S}", "access-control-allow-origin": "*"}
    if if_none_match and (if_none_match.strip() == "*" or tag in (t.strip() for t in if_none_match.split(","))):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
