"""Uses of a feature, counted up to a limit, against the least that counts: one prepared upsert. And what a level with
every restriction costs the metered call (admitted and settled in SQL, without the model), against a level with none.

Floor and product stand on one server and count for users of their own; slices alternate and a ratio is taken within
its round. Slices are long, because each has new connections, which plan what they call first. Afterwards the counters
and the executions must say what was answered.
"""

import asyncio
import tempfile
from pathlib import Path

import asyncpg

from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.processes import temporary_home
from benchmarks.wallet_pgbench import PREFIX, Measured, Pgbench, Slice, user_id
from benchmarks.wallets import check_durable
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import ContextSigner, Identity, load_signer
from vanilla_saas.database.embedded import DATABASE, EmbeddedServer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations.first_run import DEFAULT_TENANT
from vanilla_saas.settings import Settings

FLOOR = (
    "one prepared INSERT ... ON CONFLICT DO UPDATE SET used = used + 1 WHERE used < limit on a table with the same key"
)
USERS, CLIENTS = 1000, 32
_PICK = "\\set n random(:first, :last)\n"
_USER = f"('{PREFIX}' || lpad(:n::text, 12, '0'))::uuid"
UPSERT = f"""{_PICK}insert into bench_usage as u
    (tenant_id, user_id, feature, period, period_start, used, usage_limit, updated_at) values
    ('{DEFAULT_TENANT}', {_USER}, 'bench', 'monthly', '2026-01-01', 1, 1000000000, clock_timestamp())
    on conflict (tenant_id, user_id, feature, period, period_start) do update set used = u.used + 1,
        updated_at = excluded.updated_at where u.used + 1 <= excluded.usage_limit returning used;
"""
CONSUME = f"{_PICK}select consume_feature({_USER}, 'bench');\n"
KEYED = f"{_PICK}select consume_feature({_USER}, 'bench', 1, gen_random_uuid()::text);\n"
CONTEXT = f"{_PICK}begin;\nselect vanilla.set_context(:token);\nselect consume_feature({_USER}, 'bench');\ncommit;\n"
POINTS = {"consume": CONSUME, "consume_keyed": KEYED, "consume_in_context": CONTEXT}
"""As the operator; with an idempotency key; as a request does it, four statements."""
CALL = f"""{_PICK}select vanilla.admit_call(sha256(convert_to({_USER}::text, 'UTF8')), null, null, 'sandbox-small', 100, 100, 50, 1, gen_random_uuid(), false, '11 minutes') ->> 'hold_id' as hold \\gset
select vanilla.settle_call('{DEFAULT_TENANT}', :hold::uuid, 'succeeded', 80, 20, 0, 0);
"""  # noqa: E501
RESTRICTIONS = {
    "requests_per_minute": 10**9, "tokens_per_minute": 10**12, "requests_per_day": 10**9,
    "concurrent_executions": 10**6, "max_output_tokens": 10**6, "max_prompt_tokens": 10**6, "api_keys": 5,
    "history_days": 30, "allowed_models": ["sandbox-*", "gpt-*"], "denied_models": ["*-opus-*"],
}  # fmt: skip
"""All of them, none of which refuses."""
MAKE = f"""
create table public.bench_usage (like public.level_feature_usage including defaults);
alter table public.bench_usage set (fillfactor = 70),
    add primary key (tenant_id, user_id, feature, period, period_start);
select set_level_feature(id, 'bench', 1000000000, 'monthly', p_tenant_id => tenant_id) from levels
    where tenant_id = '{DEFAULT_TENANT}' and is_default;
select vanilla.make_user('{DEFAULT_TENANT}', null, 'bench-' || n, '', case n when 0 then 'admin' else 'user' end, null,
    false, null, ('{PREFIX}' || lpad(n::text, 12, '0'))::uuid) from generate_series(0, {2 * USERS}) n;
select create_api_key('bench', 'bench', sha256(convert_to(id::text, 'UTF8')), '{{chat}}', p_user_id => id,
    p_tenant_id => tenant_id) from users where external_id like 'bench-%';
select auto_allocate_tokens_for_level(u.id, l.id) from users u
    join levels l on l.tenant_id = u.tenant_id and l.slug = 'premium'
    where u.external_id like 'bench-%' and u.id > '{PREFIX}{USERS:012d}';
select adjust_user_tokens(id, 1000000000, 'credit', 'bench') from users where external_id like 'bench-%';
"""
RESTRICT = """
select set_level_restriction(id, $1, $2, $3, tenant_id) from levels where tenant_id = $4 and slug = 'premium'
"""
CALLS = "select count(*) from ai_executions"
COUNTED = "select coalesce(sum(used), 0)::bigint from level_feature_usage where feature = 'bench'"


def run(options: Options) -> Result:
    """Each point on many users and on one, 32 connections. Raises BenchmarkError when a use is not in the books."""
    rounds, seconds = (1, 1) if options.quick else (3, 10)
    with temporary_home() as home, tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=home, DATABASE_URL=None)
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            assert where.server is not None
            asyncio.run(_make(where.admin, signer))
            found = _measure(where.server, signer, Path(folder), rounds, seconds)
            uses = sum(m.count for (target, _), every in found.items() if target in POINTS for m in every)
            calls = sum(m.count for (target, _), every in found.items() if target.endswith("call") for m in every)
            asyncio.run(_check(where.admin, uses, calls))
    return _report(found, rounds)


async def _make(url: str, signer: ContextSigner) -> None:
    await migrate(url, signer)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(MAKE)
        for kind, value in RESTRICTIONS.items():
            amount, patterns = (None, value) if isinstance(value, list) else (value, None)
            await connection.execute(RESTRICT, kind, amount, patterns, DEFAULT_TENANT)
        await connection.execute("analyze")
        await check_durable(connection)
    finally:
        await connection.close()


async def _check(url: str, uses: int, calls: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        counted, executed = await connection.fetchval(COUNTED), await connection.fetchval(CALLS)
    finally:
        await connection.close()
    if (counted, executed) != (uses, calls):
        raise BenchmarkError(
            f"{uses} uses and {calls} calls were answered; {counted} were counted and {executed} executions written"
        )


def _measure(
    server: EmbeddedServer, signer: ContextSigner, folder: Path, rounds: int, seconds: int
) -> dict[tuple[str, str], list[Measured]]:
    pgbench = Pgbench(server, folder)
    token = {"token": signer.sign(Identity(DEFAULT_TENANT, user_id(0), "admin"), 3600)}
    found: dict[tuple[str, str], list[Measured]] = {}
    for _ in range(rounds):
        for place, last in (("", USERS), ("hot_", 1)):
            for target, script in {"upsert": UPSERT, **POINTS}.items():
                login = "vanilla_app" if target == "consume_in_context" else "postgres"
                wanted = Slice([script], CLIENTS, 1, last, DATABASE, login, variables=token)
                found.setdefault((target, place), []).append(pgbench.run(wanted, seconds=seconds))
            for target, first in (("free_call", 1), ("restricted_call", USERS + 1)):
                wanted = Slice([CALL], CLIENTS, first, first + last - 1, DATABASE, "vanilla_runtime")
                found.setdefault((target, place), []).append(pgbench.run(wanted, seconds=seconds))
    return found


def _report(found: dict[tuple[str, str], list[Measured]], rounds: int) -> Result:
    ratios, figures = {}, dict[str, Figure](rounds=rounds, users=USERS, connections=CLIENTS)
    for (target, place), every in found.items():
        figures[f"{place}{target}_per_s"] = middle([m.tps for m in every])
        base = "free_call" if target == "restricted_call" else "upsert"
        if target not in ("upsert", "free_call"):
            pairs = zip(every, found[base, place], strict=True)
            ratios[f"{place}{target}_to_{base}"] = middle([ours.tps / bare.tps for ours, bare in pairs])
    return Result("levels", FLOOR, judge("levels", ratios), figures, {})
