"""Statements of workflows: reads under row-level security, writes through the functions of 006."""

from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError

LIST = """
select w.id, w.slug, w.name, w.description, w.user_id, w.shared, w.status, w.revision, w.latest_version,
    w.created_at, w.updated_at
from public.ai_workflows w
where w.tenant_id = $1 and w.origin_tenant_id is null
order by w.slug
"""
FIND = """
select w.id, w.slug, w.name, w.description, w.user_id, w.shared, w.status, w.revision, w.latest_version,
    w.created_at, w.updated_at, w.draft
from public.ai_workflows w
where w.tenant_id = $1 and w.origin_tenant_id is null and (w.slug = $2 or w.id::text = lower($2))
order by w.slug = $2 desc
limit 1
"""
VERSIONS = """
select v.version, v.state, encode(v.hash, 'hex') as hash, v.published_at, v.published_by, v.retired_at
from public.workflow_versions v
where v.tenant_id = $1 and v.workflow_id = $2
order by v.version desc
"""
VERSION = """
select v.version, v.state, encode(v.hash, 'hex') as hash, v.published_at, v.published_by, v.retired_at, v.definition
from public.workflow_versions v
where v.tenant_id = $1 and v.workflow_id = $2 and v.version = $3
"""
TEMPLATES = """
select t.slug, t.name, t.description, t.parameters, t.definition, t.tenant_id = $1 as own
from public.workflow_templates t
where t.tenant_id in ($1, vanilla.platform()) and ($2::text is null or t.slug = $2)
order by t.slug, own desc
"""
VALIDATE = "select public.validate_workflow($1)"
SAVE = "select public.save_workflow($1, $2, $3, $4, $5, $6)"
PUBLISH = "select public.publish_workflow($1, $2, $3, $4)"
RETIRE = "select public.retire_workflow($1, $2, $3)"
DELETE = "select public.delete_workflow($1, $2)"


async def workflows(connection: asyncpg.Connection, tenant_id: UUID) -> list[dict[str, Any]]:
    """Those the caller may read, by slug, without their drafts."""
    return [dict(row) for row in await connection.fetch(LIST, tenant_id)]


async def find(connection: asyncpg.Connection, tenant_id: UUID, name: str) -> dict[str, Any]:
    """A workflow with its draft, by slug or id. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(FIND, tenant_id, name)
    if row is None:
        raise VanillaError("not_found", "no such workflow", {"workflow": name})
    return dict(row)


async def graph_problems(connection: asyncpg.Connection, definition: object) -> list[dict[str, Any]]:
    """`validate_workflow`."""
    found: list[dict[str, Any]] = await connection.fetchval(VALIDATE, definition)
    return found


async def save(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    slug: str,
    definition: dict[str, Any],
    *,
    shared: bool | None = None,
    expected_revision: int | None = None,
    user_id: UUID | None = None,
) -> dict[str, Any]:
    """`save_workflow`. Raises VanillaError `invalid_state` for a slug that is taken or a revision that has passed."""
    saved: dict[str, Any] = await connection.fetchval(
        SAVE, slug, definition, shared, expected_revision, user_id, tenant_id
    )
    return saved


async def publish(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    workflow_id: UUID,
    expected_revision: int | None,
    definition: dict[str, Any],
) -> dict[str, Any]:
    """`publish_workflow`. Raises VanillaError `invalid_definition`, `invalid_state`."""
    published: dict[str, Any] = await connection.fetchval(
        PUBLISH, workflow_id, expected_revision, definition, tenant_id
    )
    return published


async def retire(
    connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID, version: int | None
) -> dict[str, Any]:
    """`retire_workflow`: a version, or without one the workflow."""
    retired: dict[str, Any] = await connection.fetchval(RETIRE, workflow_id, version, tenant_id)
    return retired


async def delete(connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID) -> None:
    """`delete_workflow`."""
    await connection.execute(DELETE, workflow_id, tenant_id)


async def versions(connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID) -> list[dict[str, Any]]:
    """Every version, newest first, without its definition."""
    return [dict(row) for row in await connection.fetch(VERSIONS, tenant_id, workflow_id)]


async def version(connection: asyncpg.Connection, tenant_id: UUID, workflow_id: UUID, number: int) -> dict[str, Any]:
    """A version with its definition. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(VERSION, tenant_id, workflow_id, number)
    if row is None:
        raise VanillaError("not_found", "no such version", {"version": number})
    return dict(row)


async def definition(connection: asyncpg.Connection, tenant_id: UUID, name: str, number: int | None) -> dict[str, Any]:
    """That of a version, or without a number the draft. Raises VanillaError `not_found`."""
    found = await find(connection, tenant_id, name)
    row = await version(connection, tenant_id, found["id"], number) if number else None
    wanted: dict[str, Any] = row["definition"] if row else found["draft"]
    return wanted


async def templates(connection: asyncpg.Connection, tenant_id: UUID) -> list[dict[str, Any]]:
    """The platform's and the tenant's own; of one slug the own first."""
    return [dict(row) for row in await connection.fetch(TEMPLATES, tenant_id, None)]


async def template(connection: asyncpg.Connection, tenant_id: UUID, slug: str) -> dict[str, Any]:
    """A template, the tenant's own before the platform's. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(TEMPLATES, tenant_id, slug)
    if row is None:
        raise VanillaError("not_found", "no such template", {"template": slug})
    return dict(row)
