"""Pages of engines: cards to run one by; for admins versions, aliases, assignments, access, and what runs came to."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import asyncpg
from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import starts, store
from vanilla_saas.engines.models import Access, Alias, Mode, Slug, Target
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.tokens.store import find_level, find_user
from vanilla_saas.workflows import forms
from vanilla_saas.workflows import store as workflow_store

router = page_router()
REPORT_DAYS = 30
Name = Annotated[str, Form(max_length=63)]
Version = Annotated[int, Form(ge=1, le=2**31 - 1)]


@router.get("/engines")
async def engines(request: Request, caller: PageCaller, notice: str = "") -> Response:
    tenant_id, manages = caller.identity.tenant_id, _manages(caller)
    async with acting(request, caller, read_only=True) as connection:
        cards = await store.cards(connection, tenant_id)
        rows = await store.deployed(connection, tenant_id) if manages else []
        workflows = await workflow_store.workflows(connection, tenant_id) if manages else []
    return render(
        request, "engines/engines.html", cards=cards, rows=rows, meant=_meant, manages=manages, notice=notice,
        workflows=[row for row in workflows if row["latest_version"] and row["status"] == "active"],
    )  # fmt: skip


@router.post("/engines")
async def deploy(
    request: Request,
    caller: PageCaller,
    slug: Annotated[Slug, Form()],
    workflow: Name,
    mode: Annotated[Mode, Form()] = "parallel",
) -> Response:
    """The latest version of a workflow as the next version of an engine, with the parameters that it had."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        found = await workflow_store.find(connection, tenant_id, workflow)
        latest = await _latest(connection, caller, slug)
        kept = {name: latest[name] for name in ("parameters", "output") if latest}
        made = await store.deploy(connection, tenant_id, slug, found["id"], mode=mode, **kept)
    return _back(request, slug, "unchanged" if made["unchanged"] else "deployed")


async def _latest(connection: asyncpg.Connection, caller: Caller, slug: str) -> dict[str, Any] | None:
    """What the latest version of an engine says; None when there is none."""
    tenant_id = caller.identity.tenant_id
    rows = [row for row in await store.deployed(connection, tenant_id) if row["slug"] == slug]
    if not rows:
        return None
    [newest, *_] = await store.versions(connection, tenant_id, rows[0]["id"])
    found: dict[str, Any] = (await store.version(connection, tenant_id, rows[0]["id"], newest["version"]))["config"]
    return found


@router.get("/engines/{slug}")
async def engine(request: Request, caller: PageCaller, slug: str, notice: str = "") -> Response:
    manages = _manages(caller)
    async with acting(request, caller, read_only=True) as connection:
        card = await _card(connection, caller, slug)
        if card is None and not manages:
            raise VanillaError("not_found", "no such engine", {"engine": slug})
        managed = await _managed(connection, caller, slug) if manages else None
    return render(
        request, "engines/engine.html", card=card, managed=managed, slug=slug, notice=notice,
        fields=forms.fields_of(card["input"], _defaults(card)) if card else [], key=secrets.token_urlsafe(16),
        days=REPORT_DAYS,
    )  # fmt: skip


def _back(request: Request, slug: str, notice: str) -> Response:
    return redirect(request, f"/engines/{quote(slug, safe='')}?notice={notice}")


def _manages(caller: Caller) -> bool:
    return caller.identity.role != "user"


async def _card(connection: asyncpg.Connection, caller: Caller, slug: str) -> dict[str, Any] | None:
    cards = await store.cards(connection, caller.identity.tenant_id)
    return next((card for card in cards if card["slug"] == slug), None)


def _meant(row: dict[str, Any]) -> dict[str, Any]:
    """The aliases of an engine by name."""
    return {alias["alias"]: alias for alias in row["aliases"]}


def _defaults(card: dict[str, Any]) -> dict[str, Any]:
    return {name: one["default"] for name, one in card["parameters"].items() if "default" in one}


async def _managed(connection: asyncpg.Connection, caller: Caller, slug: str) -> dict[str, Any]:
    """What an admin of the tenant sees of an engine: `own` is None for one that the platform offers."""
    tenant_id = caller.identity.tenant_id
    rows = [row for row in await store.deployed(connection, tenant_id) if slug == row["slug"]]
    engine_id = rows[0]["id"] if rows else await store.offered_id(connection, tenant_id, slug)
    end = datetime.now(UTC)
    return {
        "own": rows[0] if rows else None,
        "aliases": _meant(rows[0]) if rows else {},
        "versions": await store.versions(connection, tenant_id, engine_id) if rows else [],
        "levels": await store.access(connection, tenant_id, engine_id),
        "assignments": await store.assignments(connection, tenant_id, engine_id),
        "report": await store.report(connection, tenant_id, engine_id, end - timedelta(days=REPORT_DAYS), end),
        "of_platform": caller.identity.role == "superadmin",
    }


@router.post("/engines/{slug}/run")
async def run(request: Request, caller: PageCaller, slug: str) -> Response:
    """Runs what the name means to the person, with the form that was filled in."""
    form = await request.form()
    key = form.get("key")
    async with acting(request, caller) as connection:
        card = await _card(connection, caller, slug)
        if card is None:
            raise VanillaError("not_found", "no such engine", {"engine": slug})
        values = forms.read(forms.fields_of(card["input"], _defaults(card)), form)
    started = await starts.start(
        lambda: acting(request, caller), caller.identity.tenant_id, slug, values,
        key=key if isinstance(key, str) and key else None,
    )  # fmt: skip
    return redirect(request, f"/runs/{started['execution_id']}")


@router.post("/engines/{slug}/promote")
async def promote(
    request: Request,
    caller: PageCaller,
    slug: str,
    version: Version,
    alias: Annotated[Alias, Form()] = "stable",
    weight: Annotated[int, Form(ge=0, le=100)] = 10,
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, slug)
        await store.promote(connection, tenant_id, found["id"], version, alias, weight if alias == "canary" else None)
    return _back(request, slug, "promoted")


@router.post("/engines/{slug}/rollback")
async def rollback(
    request: Request, caller: PageCaller, slug: str, alias: Annotated[Alias, Form()] = "stable"
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, slug)
        await store.rollback(connection, tenant_id, found["id"], alias)
    return _back(request, slug, "rolled-back" if alias == "stable" else "ended")


@router.post("/engines/{slug}/retire")
async def retire(
    request: Request,
    caller: PageCaller,
    slug: str,
    version: Annotated[int | None, Form(ge=1, le=2**31 - 1)] = None,
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, slug)
        await store.retire(connection, tenant_id, found["id"], version)
    return _back(request, slug, "retired")


@router.post("/engines/{slug}/settings")
async def settings(
    request: Request,
    caller: PageCaller,
    slug: str,
    default_access: Annotated[Access, Form()],
    offered: Annotated[bool | None, Form()] = None,
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, slug)
        await store.change(connection, tenant_id, found["id"], default_access=default_access, offered=offered)
    return _back(request, slug, "access")


@router.post("/engines/{slug}/levels")
async def set_access(
    request: Request, caller: PageCaller, slug: str, level: Name, access: Annotated[Access | None, Form()] = None
) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        engine_id = await store.engine_id(connection, tenant_id, slug)
        level_id = await find_level(connection, caller.tenant, level)
        await store.set_access(connection, tenant_id, level_id, engine_id, access)
    return _back(request, slug, "access")


@router.post("/engines/{slug}/assign")
async def assign(
    request: Request,
    caller: PageCaller,
    slug: str,
    target: Annotated[Target, Form()],
    who: Annotated[str, Form(max_length=320)] = "",
    pin: Annotated[str, Form(max_length=10)] = "",
    priority: Annotated[int, Form(ge=-(2**31), le=2**31 - 1)] = 0,
) -> Response:
    """`who` is a user's email, a level's slug or a tier's number."""
    tenant_id, who = caller.identity.tenant_id, who.strip()
    target_id, tier = None, None
    async with acting(request, caller) as connection:
        if target == "user":
            target_id = (await find_user(connection, caller.tenant, who))[1]
        elif target == "level":
            target_id = await find_level(connection, caller.tenant, who)
        elif target == "tier":
            tier = _tier(who)
        engine_id = await store.engine_id(connection, tenant_id, slug)
        await store.assign(
            connection, tenant_id, engine_id, target, target_id=target_id, tier=tier, pin=pin.strip() or None,
            priority=priority,
        )  # fmt: skip
    return _back(request, slug, "assigned")


def _tier(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise VanillaError("invalid_request", "a tier is a number", {"param": "who"}) from None


@router.post("/engines/{slug}/unassign")
async def unassign(request: Request, caller: PageCaller, slug: str, assignment: Annotated[UUID, Form()]) -> Response:
    async with acting(request, caller) as connection:
        await store.unassign(connection, caller.identity.tenant_id, assignment)
    return _back(request, slug, "unassigned")


ROOM = Room(
    "engines",
    "vanilla_saas.engines",
    router,
    (NavigationEntry("Build", "Engines", "/engines", "engine", 31),),
)
