"""Statements of engines: lists under row-level security, all else through the functions of 005."""

import re
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database

Answer = dict[str, Any]
SLUG = r"[a-z0-9][a-z0-9_-]{0,62}"

_ENGINE = """
select e.id, e.slug, e.name, e.description, e.status, e.default_access, e.offered, e.created_at, e.updated_at,
    (select count(*) from public.engine_versions v where v.tenant_id = e.tenant_id and v.engine_id = e.id) as versions,
    (select coalesce(jsonb_agg(jsonb_build_object('alias', a.alias, 'version', a.version, 'weight', a.weight,
            'earlier', a.earlier, 'updated_at', a.updated_at) order by a.alias desc), '[]')
        from public.engine_aliases a where a.tenant_id = e.tenant_id and a.engine_id = e.id) as aliases
from public.ai_engines e
where e.tenant_id = $1
"""
DEPLOYED = f"{_ENGINE} order by e.slug"
FIND = f"{_ENGINE} and (e.slug = $2 or e.id::text = lower($2)) order by e.slug = $2 desc limit 1"
ID_OF = """
select e.id from public.ai_engines e
where (e.tenant_id = $1 or e.tenant_id = vanilla.platform() and e.offered) and (e.slug = $2 or e.id::text = lower($2))
order by e.tenant_id = $1 desc, e.slug = $2 desc
limit 1
"""
VERSIONS = """
select v.version, v.state, encode(v.hash, 'hex') as hash, encode(v.price_hash, 'hex') as price_hash, v.mode, v.at_once,
    v.workflow_id, w.slug as workflow, v.workflow_version, v.deployed_at, v.deployed_by, v.retired_at
from public.engine_versions v
left join public.ai_workflows w on w.tenant_id = v.tenant_id and w.id = v.workflow_id
where v.tenant_id = $1 and v.engine_id = $2
order by v.version desc
"""
VERSION = """
select v.version, v.state, encode(v.hash, 'hex') as hash, encode(v.price_hash, 'hex') as price_hash, v.mode, v.at_once,
    v.workflow_id, w.slug as workflow, v.workflow_version, v.deployed_at, v.deployed_by, v.retired_at, v.config
from public.engine_versions v
left join public.ai_workflows w on w.tenant_id = v.tenant_id and w.id = v.workflow_id
where v.tenant_id = $1 and v.engine_id = $2 and v.version = $3
"""
ACCESS = """
select l.id as level_id, l.slug as level, l.name, l.tier, x.access
from public.levels l
left join public.level_engines x on x.tenant_id = l.tenant_id and x.level_id = l.id and x.engine_id = $2
where l.tenant_id = $1
order by l.tier, l.slug
"""
ASSIGNMENTS = """
select a.id, a.engine_id, e.slug as engine, a.engine_tenant_id = vanilla.platform() as platform,
    a.target, coalesce(a.user_id, a.level_id) as target_id, coalesce(u.email, u.external_id, l.slug) as target_name,
    a.tier, coalesce(a.pin_version::text, a.pin_alias) as pin, a.priority,
    nullif(a.valid_from, '-infinity') as valid_from, nullif(a.valid_to, 'infinity') as valid_to,
    a.assigned_at, a.assigned_by
from public.engine_assignments a
left join public.ai_engines e on e.tenant_id = a.engine_tenant_id and e.id = a.engine_id
left join public.users u on u.tenant_id = a.tenant_id and u.id = a.user_id
left join public.levels l on l.tenant_id = a.tenant_id and l.id = a.level_id
where a.tenant_id = $1 and ($2::uuid is null or a.engine_id = $2)
order by array_position(array['user', 'level', 'tier', 'tenant', 'platform'], a.target), a.priority desc, a.id
"""
COPIES = """
select c.id, c.user_id, c.slug, 'my/' || c.slug as ref, c.engine_id, c.version, c.overlay, c.is_default, c.created_at,
    c.updated_at
from public.user_engines c
where c.tenant_id = $1 and ($2::uuid is null or c.user_id = $2)
order by c.user_id, c.slug
"""
COPIES_OF = """
select c.id, c.slug, 'my/' || c.slug as ref, c.version, c.overlay, c.is_default, c.updated_at,
    coalesce(u.email, u.external_id) as owner
from public.user_engines c
left join public.users u on u.tenant_id = c.tenant_id and u.id = c.user_id
where c.tenant_id = $1 and c.engine_id = $2
order by c.updated_at desc
limit 100
"""
KEYS_OF = """
select k.id, k.name, k.prefix, k.engine_ref, k.budget_tokens, k.used_tokens, k.last_used_at,
    nullif(k.expires_at, 'infinity') as expires_at, coalesce(u.email, u.external_id) as owner,
    case when k.revoked_at is not null then 'revoked' when k.expires_at <= vanilla.clock() then 'expired'
        else 'active' end as state
from public.api_keys k
left join public.users u on u.tenant_id = k.tenant_id and u.id = k.user_id
where k.tenant_id = $1 and k.engine_id = $2
order by k.id desc
limit 100
"""
RUN = """
select x.id as execution_id, x.user_id, x.engine_id, x.version, x.alias, x.source, x.source_id,
    encode(x.config_hash, 'hex') as config_hash, x.estimate_p50, x.estimate_p95, x.estimated_from,
    e.status, e.reason, e.error, e.output, e.charged_tokens, e.cost_micros, e.started_at, e.finished_at
from public.engine_executions x
join public.workflow_executions e on e.tenant_id = x.tenant_id and e.id = x.id
where x.tenant_id = $1 and x.id = $2 and ($3::uuid is null or x.api_key_id = $3)
"""
ENDED = """
select e.finished_at is not null from public.workflow_executions e where e.tenant_id = $1 and e.id = $2
"""
COMPARED = """
select e.status, e.reason, e.error, e.output, e.charged_tokens, e.cost_micros,
    (extract(epoch from e.finished_at - e.started_at) * 1000)::bigint as ms, g.gates, g.gates_passed
from public.workflow_executions e
cross join lateral (
    select count(*) as gates, count(*) filter (where q.passed) as gates_passed
    from public.quality_gate_results q
    where q.tenant_id = e.tenant_id and q.execution_id = e.id) g
where e.tenant_id = $1 and e.id = $2 and e.finished_at is not null
"""
MINE = """
select engine_id, platform, slug, name, description, access, version, alias, mode, input, output, parameters
from public.my_engines($1, $2)
"""
OFFERED = """
select engine_id, slug, name, description, default_access, version, mode, input, output, parameters, hidden, levels
from public.offered_engines($1)
"""
REPORT = """
select version, alias, weight, runs, succeeded, failed, cancelled, running, p50_ms, p95_ms,
    charged_tokens::bigint as charged_tokens, p50_tokens, p95_tokens, cost_micros::bigint as cost_micros, p50_micros,
    p95_micros, gates, gates_passed, gate_pass_rate::float8 as gate_pass_rate
from public.engine_report($1, $2, $3, $4)
"""
DEPLOY = "select public.deploy_engine($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
SET = "select public.set_engine($1, $2, $3, $4, $5, $6)"
PROMOTE = "select public.promote_engine($1, $2, $3, $4, $5)"
ROLLBACK = "select public.rollback_engine($1, $2, $3)"
RETIRE = "select public.retire_engine($1, $2, $3)"
SET_ACCESS = "select public.set_level_engine($1, $2, $3, $4)"
ASSIGN = "select public.assign_engine($1, $2, $3, $4, $5, $6, $7, $8, $9)"
UNASSIGN = "select public.unassign_engine($1, $2)"
RESOLVE = "select public.resolve_engine($1, $2, $3)"
EXPLAIN = "select public.explain_engine($1, $2, $3)"
FORK = "select public.fork_engine($1, $2, $3, $4, $5, $6)"
REBASE = "select public.rebase_engine_copy($1, $2, $3, $4, $5, $6)"
REBASE_ALL = "select public.rebase_engine_copies($1, $2, $3, $4, $5)"
DELETE_COPY = "select public.delete_engine_copy($1, $2)"
PREVIEW = "select public.preview_engine($1, $2, $3, $4, $5, $6)"
PREVIEW_BY_KEY = "select vanilla.preview_by_key($1, $2, $3, $4)"
EXECUTE = "select public.execute_engine($1, $2, $3, $4, $5, $6)"
EXECUTE_BY_KEY = "select vanilla.execute_by_key($1, $2, $3, $4, $5, $6)"
CREATE_KEY = """
select public.create_engine_key($1, $2, $3, $4, coalesce($5::timestamptz, 'infinity'), $6, $7, $8)
"""


async def cards(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID | None = None) -> list[Answer]:
    """`my_engines`: what the caller, or a user whom an admin names, may read or run."""
    return [dict(row) for row in await connection.fetch(MINE, user_id, tenant_id)]


async def offered(connection: asyncpg.Connection, tenant_id: UUID) -> list[Answer]:
    """`offered_engines`: those of the platform that an admin of the tenant can permit to levels, permitted or not."""
    return [dict(row) for row in await connection.fetch(OFFERED, tenant_id)]


async def deployed(connection: asyncpg.Connection, tenant_id: UUID) -> list[Answer]:
    """Every engine of the tenant with its aliases; none for who is no admin."""
    return [dict(row) for row in await connection.fetch(DEPLOYED, tenant_id)]


async def find(connection: asyncpg.Connection, tenant_id: UUID, name: str) -> Answer:
    """An engine of the tenant with its aliases, by slug or id. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(FIND, tenant_id, name)
    if row is None:
        raise VanillaError("not_found", "no such engine", {"engine": name})
    return dict(row)


async def engine_id(connection: asyncpg.Connection, tenant_id: UUID, name: str) -> UUID:
    """The id of an engine of the tenant, or of one that the platform offers. Raises VanillaError `not_found`.

    Whether there is one of an id that the caller may not read is left to the function that is called with it.
    """
    found: UUID | None = await connection.fetchval(ID_OF, tenant_id, name)
    if found is not None:
        return found
    try:
        return UUID(name)
    except ValueError:
        return await offered_id(connection, tenant_id, name)


async def offered_id(connection: asyncpg.Connection, tenant_id: UUID, slug: str) -> UUID:
    """The id of an engine that the platform offers, whose rows tenants do not read. Raises VanillaError `not_found`."""
    told = await resolve(connection, tenant_id, None, slug) if re.fullmatch(SLUG, slug) else {"engine_id": None}
    if told["engine_id"] is None:
        raise VanillaError("not_found", "no such engine", {"engine": slug})
    return UUID(told["engine_id"])


async def versions(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID) -> list[Answer]:
    """Every version, newest first, without its config."""
    return [dict(row) for row in await connection.fetch(VERSIONS, tenant_id, engine_id)]


async def version(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID, number: int) -> Answer:
    """A version with its config. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(VERSION, tenant_id, engine_id, number)
    if row is None:
        raise VanillaError("not_found", "no such version", {"version": number})
    return dict(row)


async def access(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID) -> list[Answer]:
    """Every level of the tenant and what it says of the engine; null: the engine's default."""
    return [dict(row) for row in await connection.fetch(ACCESS, tenant_id, engine_id)]


async def assignments(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID | None = None) -> list[Answer]:
    """Assignments of the tenant, what precedes first; of one engine or of all."""
    return [dict(row) for row in await connection.fetch(ASSIGNMENTS, tenant_id, engine_id)]


async def copies(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID | None = None) -> list[Answer]:
    """Copies that the caller may read, of one user or of all."""
    return [dict(row) for row in await connection.fetch(COPIES, tenant_id, user_id)]


async def copies_of(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID) -> list[Answer]:
    """Copies of an engine that the caller may read, with their owners; the last changed first, at most 100."""
    return [dict(row) for row in await connection.fetch(COPIES_OF, tenant_id, engine_id)]


async def keys_of(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID) -> list[Answer]:
    """Keys that run an engine and that the caller may read, with their owners; newest first, at most 100."""
    return [dict(row) for row in await connection.fetch(KEYS_OF, tenant_id, engine_id)]


async def deploy(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    slug: str,
    workflow_id: UUID,
    *,
    workflow_version: int | None = None,
    name: str | None = None,
    description: str | None = None,
    mode: str = "parallel",
    at_once: int | None = None,
    parameters: Answer | None = None,
    output: Answer | None = None,
) -> Answer:
    """`deploy_engine`. Raises VanillaError `invalid_definition` with problems, `not_found`, `invalid_state`."""
    made: Answer = await connection.fetchval(
        DEPLOY, slug, workflow_id, workflow_version, name, description, mode, at_once, parameters or {}, output,
        tenant_id,
    )  # fmt: skip
    return made


async def change(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    engine_id: UUID,
    *,
    name: str | None = None,
    description: str | None = None,
    default_access: str | None = None,
    offered: bool | None = None,
) -> Answer:
    """`set_engine`; what is None stays."""
    told: Answer = await connection.fetchval(SET, engine_id, name, description, default_access, offered, tenant_id)
    return told


async def promote(
    connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID, version: int, alias: str, weight: int | None
) -> Answer:
    """`promote_engine`. Raises VanillaError `not_found`, `invalid_state` for a retired version."""
    told: Answer = await connection.fetchval(PROMOTE, engine_id, version, alias, weight, tenant_id)
    return told


async def rollback(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID, alias: str) -> Answer:
    """`rollback_engine`. Raises VanillaError `invalid_state` when there is nothing to go back to."""
    told: Answer = await connection.fetchval(ROLLBACK, engine_id, alias, tenant_id)
    return told


async def retire(connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID, version: int | None) -> Answer:
    """`retire_engine`: a version, or without one the engine."""
    told: Answer = await connection.fetchval(RETIRE, engine_id, version, tenant_id)
    return told


async def set_access(
    connection: asyncpg.Connection, tenant_id: UUID, level_id: UUID, engine_id: UUID, access: str | None
) -> None:
    """`set_level_engine`; None leaves it to the engine's default."""
    await connection.execute(SET_ACCESS, level_id, engine_id, access, tenant_id)


async def assign(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    engine_id: UUID,
    target: str,
    *,
    target_id: UUID | None = None,
    tier: int | None = None,
    pin: str | None = None,
    priority: int = 0,
    valid_from: datetime | None = None,
    valid_to: datetime | None = None,
) -> UUID:
    """`assign_engine`: the id of the assignment, which is the same one for the same target."""
    made: UUID = await connection.fetchval(
        ASSIGN, engine_id, target, target_id, tier, pin, priority, valid_from, valid_to, tenant_id
    )
    return made


async def unassign(connection: asyncpg.Connection, tenant_id: UUID, assignment_id: UUID) -> None:
    """`unassign_engine`."""
    await connection.execute(UNASSIGN, assignment_id, tenant_id)


async def resolve(connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID | None, ref: str | None) -> Answer:
    """`resolve_engine`: engine_id is null, or denied_reason set, when they may not run it."""
    told: Answer = await connection.fetchval(RESOLVE, user_id, ref, tenant_id)
    return told


async def explain(
    connection: asyncpg.Connection, tenant_id: UUID, user_id: UUID | None, ref: str | None
) -> list[Answer]:
    """`explain_engine`: every candidate in order."""
    told: list[Answer] = await connection.fetchval(EXPLAIN, user_id, ref, tenant_id)
    return told


async def fork(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    ref: str,
    slug: str,
    overlay: Answer,
    *,
    is_default: bool = False,
    user_id: UUID | None = None,
) -> Answer:
    """`fork_engine`. Raises VanillaError `invalid_definition` with problems of the overlay, `invalid_state`."""
    made: Answer = await connection.fetchval(FORK, ref, slug, overlay, is_default, user_id, tenant_id)
    return made


async def rebase(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    copy_id: UUID,
    *,
    to: str | None = None,
    overlay: Answer | None = None,
    drop: bool = False,
    dry_run: bool = False,
) -> Answer:
    """`rebase_engine_copy`. Raises VanillaError `invalid_definition` with problems, unless it is a dry run."""
    told: Answer = await connection.fetchval(REBASE, copy_id, to, overlay or {}, drop, dry_run, tenant_id)
    return told


async def rebase_all(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    engine_id: UUID,
    *,
    to: str | None = None,
    drop: bool = False,
    dry_run: bool = False,
) -> list[Answer]:
    """`rebase_engine_copies`: every copy of the tenant's users, those with conflicts as they were."""
    told: list[Answer] = await connection.fetchval(REBASE_ALL, engine_id, to, drop, dry_run, tenant_id)
    return told


async def delete_copy(connection: asyncpg.Connection, tenant_id: UUID, copy_id: UUID) -> None:
    """`delete_engine_copy`."""
    await connection.execute(DELETE_COPY, copy_id, tenant_id)


async def preview(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    ref: str | None,
    given: Answer,
    *,
    key: str | None = None,
    priority: int | None = None,
    user_id: UUID | None = None,
) -> Answer:
    """`preview_engine`: replayed, else the whole input, its schema, estimate and prices. Raises what `start` would."""
    told: Answer = await connection.fetchval(PREVIEW, ref, given, key, priority, user_id, tenant_id)
    return told


async def preview_by_key(
    database: Database, key_hash: bytes, ref: str | None, given: Answer, key: str | None
) -> Answer:
    """`preview_by_key`, which looks the key up itself. Raises what `start_by_key` would."""
    told: Answer = await database.call(PREVIEW_BY_KEY, key_hash, ref, given, key)
    return told


async def start(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    ref: str | None,
    given: Answer,
    *,
    key: str | None = None,
    priority: int | None = None,
    user_id: UUID | None = None,
) -> Answer:
    """`execute_engine`: execution_id, engine_id, version, alias, source, estimate, status, replayed."""
    started: Answer = await connection.fetchval(EXECUTE, ref, given, key, priority, user_id, tenant_id)
    return started


async def start_by_key(
    database: Database,
    key_hash: bytes,
    ref: str | None,
    given: Answer,
    key: str | None,
    request_id: str,
    client_ip: str,
) -> Answer:
    """`execute_by_key`, which looks the key up itself. Raises VanillaError `authentication_failed`, `limit_reached`."""
    started: Answer = await database.call(EXECUTE_BY_KEY, key_hash, ref, given, key, request_id, client_ip)
    return started


async def run(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID, key_id: UUID | None) -> Answer:
    """A run with its output; with a key only one that this key began. Raises VanillaError `not_found`."""
    row = await connection.fetchrow(RUN, tenant_id, execution_id, key_id)
    if row is None:
        raise VanillaError("not_found", "no such run of an engine", {"execution_id": str(execution_id)})
    return dict(row)


async def compared(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> Answer | None:
    """What a run came to, with the judgements of its gates; None while it is not over."""
    row = await connection.fetchrow(COMPARED, tenant_id, execution_id)
    return None if row is None else dict(row)


async def ended(connection: asyncpg.Connection, tenant_id: UUID, execution_id: UUID) -> bool:
    """Whether a run is over, or not to be read."""
    found: bool | None = await connection.fetchval(ENDED, tenant_id, execution_id)
    return found is not False


async def create_key(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    ref: str,
    *,
    name: str,
    prefix: str,
    key_hash: bytes,
    expires_at: datetime | None = None,
    budget_tokens: int | None = None,
    user_id: UUID | None = None,
) -> UUID:
    """`create_engine_key`: a key that runs one engine and opens nothing else."""
    made: UUID = await connection.fetchval(
        CREATE_KEY, ref, name, prefix, key_hash, expires_at, budget_tokens, user_id, tenant_id
    )
    return made


async def report(
    connection: asyncpg.Connection, tenant_id: UUID, engine_id: UUID, begin: datetime, end: datetime
) -> list[Answer]:
    """`engine_report`: a row for each version that ran."""
    return [dict(row) for row in await connection.fetch(REPORT, engine_id, begin, end, tenant_id)]
