"""Forms of the schedules on the page of a workflow."""

from functools import partial
from typing import Annotated, Literal
from uuid import UUID

import orjson
from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import Room, page_router, redirect
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.workflows import schedules

router = page_router()


@router.post("/workflows/{slug}/schedules")
async def set_schedule(
    request: Request,
    caller: PageCaller,
    slug: str,
    name: Annotated[str, Form(max_length=63)],
    cron: Annotated[str, Form(max_length=200)],
    time_zone: Annotated[str, Form(max_length=100)] = "",
    given: Annotated[str, Form(alias="input", max_length=1_048_576)] = "",
    catch_up: Annotated[Literal["none", "one", "all"], Form()] = "one",
    enabled: Annotated[bool, Form()] = False,
    user_id: Annotated[UUID | None, Form()] = None,
) -> Response:
    """Makes or changes one; who paid until now goes on to pay."""
    try:
        value = orjson.loads(given) if given.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise VanillaError(
            "invalid_request", "the input is no JSON object", {"param": "input"}, 'As {"text": "A long story."}.'
        )
    await schedules.put(
        partial(acting, request, caller), caller.identity.tenant_id, slug, name.strip(), " ".join(cron.split()),
        time_zone=time_zone.strip() or None, given=value, catch_up=catch_up, enabled=enabled, user_id=user_id,
    )  # fmt: skip
    return redirect(request, f"/workflows/{slug}?notice=scheduled")


@router.post("/workflows/{slug}/schedules/{name}/delete")
async def delete(request: Request, caller: PageCaller, slug: str, name: str) -> Response:
    async with acting(request, caller) as connection:
        await schedules.delete(connection, caller.identity.tenant_id, slug, name)
    return redirect(request, f"/workflows/{slug}?notice=unscheduled")


ROOM = Room("workflows", "vanilla_saas.workflows", router)
