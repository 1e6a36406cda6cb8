"""Pages of engines: cards to run one by; for admins versions, aliases, assignments, access, and what runs came to."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import asyncpg
from fastapi import Form, Query, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import choice_pages, own_pages, starts, store
from vanilla_saas.engines.models import Access, Alias, Mode, Slug, Target
from vanilla_saas.engines.protocols.calls import called
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.tokens.store import find_level, find_user
from vanilla_saas.web import base_of
from vanilla_saas.workflows import documents, drafts, forms, run_view
from vanilla_saas.workflows import store as workflow_store

router = page_router()
router.include_router(own_pages.router)
router.include_router(choice_pages.router)
PERIODS = (1, 7, 30, 90)
"""Days that a report may be of; runs are kept for 90."""
Name = Annotated[str, Form(max_length=63)]
Version = Annotated[int, Form(ge=1, le=2**31 - 1)]
Document = Annotated[str, Form(max_length=65_536)]


@router.get("/engines")
async def engines(request: Request, caller: PageCaller, notice: str = "") -> Response:
    tenant_id, manages = caller.identity.tenant_id, _manages(caller)
    async with acting(request, caller, read_only=True) as connection:
        cards = await _cards(connection, caller)
        copies = await own_pages.own_copies(connection, caller)
        chosen = await store.resolve(connection, tenant_id, None, None) if cards else None
        rows = await store.deployed(connection, tenant_id) if manages else []
        workflows = await _flows(connection, tenant_id) if manages else []
    return render(
        request, "engines/engines.html", cards=cards, copies=copies, rows=rows, meant=_meant, manages=manages,
        chosen=chosen if chosen and chosen["denied_reason"] is None else None, sources=choice_pages.SOURCES,
        by_engine={card["engine_id"]: card for card in cards}, notice=notice, workflows=workflows,
    )  # fmt: skip


async def _flows(connection: asyncpg.Connection, tenant_id: UUID) -> list[Any]:
    """Workflows that can be deployed."""
    rows = await workflow_store.workflows(connection, tenant_id)
    return [row for row in rows if row["latest_version"] and row["status"] == "active"]


@router.post("/engines")
async def deploy(
    request: Request,
    caller: PageCaller,
    slug: Annotated[Slug, Form()],
    workflow: Name,
    workflow_version: Annotated[int | None, Form(ge=1, le=2**31 - 1)] = None,
    name: Annotated[str, Form(max_length=200)] = "",
    description: Annotated[str, Form(max_length=5000)] = "",
    mode: Annotated[Mode, Form()] = "parallel",
    at_once: Annotated[int | None, Form(ge=1, le=1000)] = None,
    parameters: Document = "",
    output: Document = "",
    access: Annotated[Access | None, Form()] = None,
) -> Response:
    """A version of a workflow as the next version of an engine.

    Parameters and the output's schema that are left empty are those of its latest version.
    """
    tenant_id = caller.identity.tenant_id
    declared, told = _document(parameters, "parameters"), _document(output, "output")
    async with acting(request, caller) as connection:
        found = await workflow_store.find(connection, tenant_id, workflow)
        latest = await _latest(connection, caller, slug) or {"parameters": {}, "output": None}
        made = await store.deploy(
            connection, tenant_id, slug, found["id"], workflow_version=workflow_version, name=name.strip() or None,
            description=description.strip() or None, mode=mode, at_once=at_once,
            parameters=latest["parameters"] if declared is None else declared,
            output=latest["output"] if told is None else told,
        )  # fmt: skip
        if access is not None:
            await store.change(connection, tenant_id, UUID(made["engine_id"]), default_access=access)
    return _back(request, slug, "unchanged" if made["unchanged"] else "deployed")


def _document(text: str, name: str) -> Any:
    """What a field of YAML or JSON says; None when it is empty. Raises VanillaError that names the field."""
    if not text.strip():
        return None
    try:
        return drafts.read_value(text)
    except VanillaError as error:
        raise VanillaError("invalid_request", error.hint or error.message, {"param": name}) from error


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
async def engine(
    request: Request,
    caller: PageCaller,
    slug: str,
    notice: str = "",
    days: Annotated[int, Query(ge=1, le=PERIODS[-1])] = 30,
) -> Response:
    tenant_id, manages = caller.identity.tenant_id, _manages(caller)
    async with acting(request, caller, read_only=True) as connection:
        card = await _card(connection, caller, slug)
        if card is None and not manages:
            raise VanillaError("not_found", "no such engine", {"engine": slug})
        managed = await _managed(connection, caller, slug, days) if manages else None
        engine_id = card["engine_id"] if card else managed["id"] if managed else None
        own = [one for one in await own_pages.own_copies(connection, caller) if one["engine_id"] == engine_id]
        keys = await store.keys_of(connection, tenant_id, engine_id) if engine_id else []
        runs = card is not None and card["access"] == "execute"
        cost = await store.preview(connection, tenant_id, slug, {}) if runs else None
    return render(
        request, "engines/engine.html", card=card, managed=managed, slug=slug, notice=notice, copies=own, keys=keys,
        fields=forms.fields_of(card["input"], starts.defaults_of(card["parameters"])) if card else [],
        parameters=own_pages.parameter_fields(card["parameters"]) if card else [], key=secrets.token_urlsafe(16),
        days=days, periods=PERIODS, called=called(slug), base=base_of(request), cost=cost,
    )  # fmt: skip


@router.get("/engines/{slug}/versions/{number}")
async def version(request: Request, caller: PageCaller, slug: str, number: int) -> Response:
    """What a version says, for admins: to be put into the engine's page."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        found = await store.find(connection, tenant_id, slug)
        row = await store.version(connection, tenant_id, found["id"], number)
    return render(request, "engines/version.html", slug=slug, row=row, config=row["config"], shown=run_view.shown)


def _back(request: Request, slug: str, notice: str) -> Response:
    return redirect(request, f"/engines/{quote(slug, safe='')}?notice={notice}")


def _manages(caller: Caller) -> bool:
    return caller.identity.role != "user"


async def _cards(connection: asyncpg.Connection, caller: Caller) -> list[dict[str, Any]]:
    return [] if caller.outside else await store.cards(connection, caller.identity.tenant_id)


async def _card(connection: asyncpg.Connection, caller: Caller, slug: str) -> dict[str, Any] | None:
    return next((card for card in await _cards(connection, caller) if card["slug"] == slug), None)


def _meant(row: dict[str, Any]) -> dict[str, Any]:
    """The aliases of an engine by name."""
    return {alias["alias"]: alias for alias in row["aliases"]}


async def _managed(connection: asyncpg.Connection, caller: Caller, slug: str, days: int) -> dict[str, Any]:
    """What an admin of the tenant sees of an engine: `own` is None for one that the platform offers."""
    tenant_id = caller.identity.tenant_id
    rows = [row for row in await store.deployed(connection, tenant_id) if slug == row["slug"]]
    engine_id = rows[0]["id"] if rows else await store.offered_id(connection, tenant_id, slug)
    end = datetime.now(UTC)
    report = await store.report(connection, tenant_id, engine_id, end - timedelta(days=days), end)
    latest = await _latest(connection, caller, slug)
    return {
        "id": engine_id,
        "own": rows[0] if rows else None,
        "aliases": _meant(rows[0]) if rows else {},
        "versions": await store.versions(connection, tenant_id, engine_id) if rows else [],
        "latest": latest,
        "declared": documents.dump_yaml(latest["parameters"]) if latest and latest["parameters"] else "",
        "output": documents.dump_yaml(latest["output"]) if latest and latest["output"] else "",
        "workflows": await _flows(connection, tenant_id) if rows else [],
        "levels": await store.access(connection, tenant_id, engine_id),
        "assignments": await store.assignments(connection, tenant_id, engine_id),
        "copies": await store.copies_of(connection, tenant_id, engine_id),
        "report": _side_by_side(report),
        "of_platform": caller.identity.role == "superadmin",
    }


def _side_by_side(report: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Versions that ran as columns: stable, the canary beside it, then the others, newest first."""
    place = {"stable": 0, "canary": 1}
    return sorted(report, key=lambda row: (place.get(row["alias"] or "", 2), -row["version"]))


@router.post("/engines/{slug}/run")
async def run(request: Request, caller: PageCaller, slug: str) -> Response:
    """Runs what the name means to the person, with the form that was filled in."""
    form = await request.form()
    async with acting(request, caller, read_only=True) as connection:
        card = await _card(connection, caller, slug)
        if card is None:
            raise VanillaError("not_found", "no such engine", {"engine": slug})
        values = forms.read(forms.fields_of(card["input"], starts.defaults_of(card["parameters"])), form)
    return await own_pages.start(request, caller, slug, values, form.get("key"))


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
    name: Annotated[str | None, Form(max_length=200)] = None,
) -> Response:
    tenant_id = caller.identity.tenant_id
    description = (await request.form()).get("description")  # empty is one, too
    async with acting(request, caller) as connection:
        found = await store.find(connection, tenant_id, slug)
        await store.change(
            connection, tenant_id, found["id"], name=name,
            description=description if isinstance(description, str) else None, default_access=default_access,
            offered=offered,
        )  # fmt: skip
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
    valid_from: Annotated[datetime | None, Form()] = None,
    valid_to: Annotated[datetime | None, Form()] = None,
) -> Response:
    """`who` is a user's email, a level's slug or a tier's number; times are UTC."""
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
            priority=priority, valid_from=_utc(valid_from), valid_to=_utc(valid_to),
        )  # fmt: skip
    return _back(request, slug, "assigned")


def _utc(moment: datetime | None) -> datetime | None:
    """A field of a date and time says no zone."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


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
