"""Pages of what people make of engines for themselves: copies with values of their own, keys that run one engine."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import asyncpg
from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import page_router, redirect, render
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import starts, store
from vanilla_saas.engines.models import Ref, Slug
from vanilla_saas.tenancy import store as tenancy_store
from vanilla_saas.tenancy.identity import Caller, acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, prefix_of, token_hash
from vanilla_saas.workflows import forms

router = page_router()


def parameter_fields(parameters: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> list[forms.Field]:
    """A field for each declared parameter with the copy's value; left empty it is the default, which the hint names."""
    if not parameters:
        return []
    properties = {
        name: {key: part[key] for key in ("type", "enum", "title") if key in part} | {"description": hint_of(part)}
        for name, part in parameters.items()
    }
    return forms.fields_of({"properties": properties}, values or {})


def hint_of(part: Mapping[str, Any]) -> str:
    """What a parameter is and what fits it, as sentences."""
    least, most, longest = (part.get(name) for name in ("minimum", "maximum", "maxLength"))
    bounds = (
        f"From {least} to {most}." if None not in (least, most)
        else f"At least {least}." if least is not None
        else f"At most {most}." if most is not None
        else f"At most {longest} characters." if longest is not None else ""
    )  # fmt: skip
    default = part.get("default")
    word = {True: "Yes", False: "No"}[default] if isinstance(default, bool) else forms.written(default)
    described = str(part.get("description") or "").strip()
    left_empty = f"Left empty: {word}" if default is not None else ""
    return " ".join(filter(None, (_sentence(described), bounds, _sentence(left_empty))))


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


async def own_copies(connection: asyncpg.Connection, caller: Caller) -> list[dict[str, Any]]:
    return await store.copies(connection, caller.identity.tenant_id, caller.identity.user_id)


async def _own_copy(connection: asyncpg.Connection, caller: Caller, slug: str) -> dict[str, Any]:
    found = next((copy for copy in await own_copies(connection, caller) if copy["slug"] == slug), None)
    if found is None:
        raise VanillaError("not_found", "no such copy", {"copy": slug})
    return found


@router.post("/engines/{slug}/copies")
async def make_copy(
    request: Request,
    caller: PageCaller,
    slug: str,
    copy_name: Annotated[Slug, Form()],
    default: Annotated[bool, Form()] = False,
) -> Response:
    """A copy of what the name means to the person; one that is there already has its own page to be changed on."""
    form = await request.form()
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        told = await store.resolve(connection, tenant_id, None, slug)
        values = forms.read(parameter_fields(told.get("parameters") or {}), form)
        if any(one["slug"] == copy_name for one in await own_copies(connection, caller)):
            raise VanillaError(
                "invalid_state", f"the name {copy_name} is taken", {"param": "copy_name"}, "Change it on its page."
            )
        await store.fork(connection, tenant_id, slug, copy_name, values, is_default=default)
    return _to_copy(request, copy_name, "made")


def _to_copy(request: Request, slug: str, notice: str) -> Response:
    return redirect(request, f"/engines/my/{quote(slug, safe='')}?notice={notice}")


@router.get("/engines/my/{copy}")
async def copy(request: Request, caller: PageCaller, copy: str, notice: str = "") -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        found = await _own_copy(connection, caller, copy)
        told = await store.resolve(connection, tenant_id, None, found["ref"])
        cards = await store.cards(connection, tenant_id)
        may = told["denied_reason"] is None
        cost = await store.preview(connection, tenant_id, found["ref"], {}) if may else None
    card = next((card for card in cards if card["engine_id"] == found["engine_id"]), None)
    parameters = told.get("parameters") or {}
    return render(
        request, "engines/copy.html", copy=found, told=told, card=card, notice=notice, key=secrets.token_urlsafe(16),
        fields=forms.fields_of(told.get("input"), starts.defaults_of(parameters) | found["overlay"]),
        parameters=parameter_fields(parameters, found["overlay"]), cost=cost,
    )  # fmt: skip


@router.post("/engines/my/{copy}/run")
async def run_copy(request: Request, caller: PageCaller, copy: str) -> Response:
    form = await request.form()
    async with acting(request, caller, read_only=True) as connection:
        found = await _own_copy(connection, caller, copy)
        told = await store.resolve(connection, caller.identity.tenant_id, None, found["ref"])
    shown = starts.defaults_of(told.get("parameters")) | found["overlay"]
    values = forms.read(forms.fields_of(told.get("input"), shown), form)
    return await start(request, caller, found["ref"], values, form.get("key"))


async def start(request: Request, caller: Caller, ref: str, values: dict[str, Any], key: object) -> Response:
    """Runs an engine with the values of a form, which `key` makes one run however often it is sent."""
    started = await starts.start(
        lambda: acting(request, caller), caller.identity.tenant_id, ref, values,
        key=key if isinstance(key, str) and key else None,
    )  # fmt: skip
    return redirect(request, f"/runs/{started['execution_id']}")


@router.post("/engines/my/{copy}/change")
async def change_copy(
    request: Request, caller: PageCaller, copy: str, default: Annotated[bool, Form()] = False
) -> Response:
    """Other values; the version stays."""
    form = await request.form()
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller) as connection:
        found = await _own_copy(connection, caller, copy)
        told = await store.resolve(connection, tenant_id, None, found["ref"])
        values = forms.read(parameter_fields(told.get("parameters") or {}), form)
        await store.fork(connection, tenant_id, found["ref"], copy, values, is_default=default)
    return _to_copy(request, copy, "changed")


@router.post("/engines/my/{copy}/renew")
async def renew_copy(request: Request, caller: PageCaller, copy: str) -> Response:
    """The version that the engine's name means to the person now, with the values that the copy has."""
    async with acting(request, caller) as connection:
        found = await _own_copy(connection, caller, copy)
        await store.rebase(connection, caller.identity.tenant_id, found["id"])
    return _to_copy(request, copy, "renewed")


@router.post("/engines/my/{copy}/default")
async def default_copy(
    request: Request, caller: PageCaller, copy: str, default: Annotated[bool, Form()] = True
) -> Response:
    async with acting(request, caller) as connection:
        found = await _own_copy(connection, caller, copy)
        await store.fork(
            connection, caller.identity.tenant_id, found["ref"], copy, found["overlay"], is_default=default
        )
    return _to_copy(request, copy, "default" if default else "no-default")


@router.post("/engines/copies/{copy_id}/delete")
async def delete_copy(request: Request, caller: PageCaller, copy_id: UUID) -> Response:
    """Own, or any of the tenant's by an admin."""
    async with acting(request, caller) as connection:
        await store.delete_copy(connection, caller.identity.tenant_id, copy_id)
    return redirect(request, "/engines?notice=copy-deleted")


@router.post("/engines/{slug}/keys")
async def make_key(
    request: Request,
    caller: PageCaller,
    slug: str,
    ref: Annotated[Ref, Form()],
    name: Annotated[str, Form(max_length=100)],
    lifetime_days: Annotated[int | None, Form(ge=1, le=36_500)] = None,
    budget_tokens: Annotated[int | None, Form(ge=1, le=2**63 - 1)] = None,
) -> Response:
    """A key of the person's own, shown in the answer and nowhere else."""
    key, expires = new_token(KEY_PREFIX), None
    if lifetime_days:
        expires = datetime.now(UTC) + timedelta(days=lifetime_days)
    async with acting(request, caller) as connection:
        await store.create_key(
            connection, caller.identity.tenant_id, ref, name=name.strip(), prefix=prefix_of(key),
            key_hash=token_hash(key), expires_at=expires, budget_tokens=budget_tokens,
        )  # fmt: skip
    return render(request, "tenancy/key_made.html", name=name.strip(), key=key, back=f"/engines/{quote(slug, safe='')}")


@router.post("/engines/{slug}/keys/{key_id}/revoke")
async def revoke_key(request: Request, caller: PageCaller, slug: str, key_id: UUID) -> Response:
    async with acting(request, caller) as connection:
        await tenancy_store.revoke_api_key(connection, caller.identity.tenant_id, key_id)
    return redirect(request, f"/engines/{quote(slug, safe='')}?notice=key-revoked")
