"""Every operation on wallets, killed in the middle: nothing of it is there, and repeating it is doing it once.

Triggers of the test stop an operation behind its first write to each table; then the backend, the postmaster or the
client is killed with SIGKILL. An undisturbed run on a second user says what one effect is.
"""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from tests.concurrency.test_operations import END_PERIOD
from tests.conftest import LONG
from tests.processes import eventually, own_server, reached
from tests.tokens.support import Books, User
from vanilla_saas.checks import BOOKS, run_checks
from vanilla_saas.database import postmaster
from vanilla_saas.database.embedded import EmbeddedServer

STOP = 4711
CRASH_POINTS = f"""
create function public.crash_point() returns trigger language plpgsql as $f$
begin
    if strpos(current_setting('crash.seen', true), tg_argv[0]) = 0 then
        perform set_config('crash.seen', current_setting('crash.seen', true) || tg_argv[0] || ' ', false);
    end if;
    if current_setting('crash.at', true) = tg_argv[0] then perform pg_advisory_lock({STOP}); end if;
    return null;
end $f$;
do $do$
declare
    v_table text;
begin
    foreach v_table in array array['tenants', 'user_token_wallets', 'user_token_ledger', 'user_token_holds',
        'user_token_grants', 'level_token_policies', 'user_token_policies', 'api_keys', 'audit_logs', 'events']
    loop
        execute format('create trigger crash_point after insert or update on public.%I for each row'
            ' execute function public.crash_point(%L)', v_table, v_table);
    end loop;
end $do$
"""

OPERATIONS = {
    "credit": "select adjust_user_tokens('{user}', 70, 'credit', p_idempotency_key => 'k')",
    "debit": "select adjust_user_tokens('{user}', 70, 'debit', p_idempotency_key => 'k')",
    "debit that crosses the warning": "select adjust_user_tokens('{user}', 870, 'debit', p_idempotency_key => 'k')",
    "adjustment down": "select adjust_user_tokens('{user}', -70, 'adjustment', p_idempotency_key => 'k')",
    "adjustment up": "select adjust_user_tokens('{user}', 70, 'adjustment', p_idempotency_key => 'k')",
    "reserve": "select adjust_user_tokens('{user}', 70, 'reserve', p_idempotency_key => 'k')",
    "release": "select adjust_user_tokens('{user}', 100, 'release', p_reference_id => '{hold}',"
    " p_idempotency_key => 'k')",
    "batch": "select adjust_user_tokens_batch('["
    '{{"user_id": "{user}", "amount": 10, "direction": "debit", "idempotency_key": "k1"}},'
    '{{"user_id": "{user}", "amount": 20, "direction": "credit", "idempotency_key": "k2"}},'
    '{{"user_id": "{user}", "amount": 30, "direction": "reserve", "idempotency_key": "k3"}}]\')',
    "settle": "select settle_user_tokens('{hold}', 60, p_idempotency_key => 'k')",
    "settle above the hold": "select settle_user_tokens('{hold}', 1160, p_idempotency_key => 'k')",
    "settle a part": "select settle_user_tokens('{hold}', 60, p_final => false, p_idempotency_key => 'k')",
    "release a hold": "select release_token_hold('{hold}', 'test', p_idempotency_key => 'k')",
    "extend": "select extend_token_hold('{hold}', now() + interval '2 days')",
    "grant": "select grant_user_tokens('{user}', 70, p_idempotency_key => 'k')",
    "grant for later": "select grant_user_tokens('{user}', 70, p_effective_at => '2999-01-01',"
    " p_idempotency_key => 'k')",
    "void": "select void_token_grant('{grant}', 'test', p_idempotency_key => 'k')",
    "level": "select auto_allocate_tokens_for_level('{user}', '{level}')",
    "level policy": "select set_level_token_policy('{free}', 0, 500, 'warn', p_tenant_id => '{tenant}')",
    "user policy": "select set_user_token_policy('{user}', 400, 10, p_enforcement_mode => 'monitor')",
    "status": "select set_wallet_status('{user}', 'locked', 'test')",
    "reset": "select reset_monthly_tokens()",
    "look": "select refresh_token_wallet('{user}')",
    "close the tenant": "select close_tenant('{tenant}', 'test')",
    "erase": "select case when status <> 'deleted' then erase_user(id, 'test') end from users where id = '{user}'",
    "close the wallet of who was erased": "select vanilla.job_closings(20)",
}
DUE = {"reset", "look"}
"""Those that find a period that has ended."""
RECORDED_TWICE = {"level", "level policy", "user policy", "status"}
"""Those without a key: done again they change nothing but the log of who did what."""
WRITTEN = """
select w.available_tokens, w.reserved_tokens, w.borrowed_tokens, w.spent_tokens, w.seq, w.status, w.enforcement_mode,
    w.warn_below, l.slug, t.status as tenant,
    (select array_agg(row(g.kind, g.amount, g.remaining, g.state) order by g.id)::text
        from user_token_grants g where g.tenant_id = w.tenant_id) as grants,
    (select array_agg(row(h.amount, h.settled, h.state, h.expires_at > now() + interval '1 day') order by h.id)::text
        from user_token_holds h where h.tenant_id = w.tenant_id) as holds,
    (select array_agg(row(e.direction, e.amount, e.reserved_amount) order by e.seq)::text
        from user_token_ledger e where e.tenant_id = w.tenant_id) as entries,
    (select array_agg(v.type order by v.id)::text from events v where v.tenant_id = w.tenant_id) as events
from user_token_wallets w
join tenants t on t.id = w.tenant_id
left join levels l on l.tenant_id = w.tenant_id and l.id = w.level_id
where w.user_id = $1
"""


@dataclass
class Victim:
    """The server that is killed; `connected` waits until it is back."""

    server: EmbeddedServer
    tables: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.dsn(database="crash")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await reached(dsn=self.url)
        try:
            yield connection
        finally:
            connection.terminate()

    async def rows(self, connection: asyncpg.Connection) -> dict[str, str]:
        """A digest of every table."""
        return {
            table: await connection.fetchval(f"select md5(string_agg(t::text, ',' order by t::text)) from {table} t")
            for table in self.tables
        }


@pytest.fixture(scope="module")
async def victim() -> AsyncIterator[Victim]:
    async with own_server("crash") as (server, _):
        made = Victim(server)
        async with made.connected() as operator:
            await operator.execute(CRASH_POINTS)
            made.tables = [
                row["name"]
                for row in await operator.fetch(
                    "select c.oid::regclass::text as name from pg_class c where c.relkind in ('r', 'p')"
                    " and c.relnamespace = 'public'::regnamespace and not c.relispartition"
                )
            ]
        yield made


async def prepared(operator: asyncpg.Connection, name: str) -> tuple[User, str]:
    """A user with 900 available, a hold of 100 and a promotion, alone in a tenant; and the operation's statement."""
    await operator.execute("set crash.at = ''; set crash.seen = ''")
    books = Books(operator)
    user = await books.user(monthly_allocation=400, warning_percent=20)
    await books.adjust(user, 500, "credit")
    grant = await operator.fetchval("select grant_user_tokens($1, 100, 'promo')", user.id)
    hold = await books.adjust(user, 100, "reserve")
    if name in DUE:
        await operator.execute(END_PERIOD, user.id)
    if name == "close the wallet of who was erased":
        await operator.fetchval("select erase_user($1, 'test')", user.id)
        await operator.fetchval("select settle_user_tokens($1, 40)", uuid.UUID(hold["hold_id"]))
    statement = OPERATIONS[name].format(
        user=user.id,
        tenant=user.tenant_id,
        hold=hold["hold_id"],
        grant=grant["id"],
        level=user.levels["basic"],
        free=user.levels["free"],
    )
    return user, statement


async def one_effect(victim: Victim, name: str) -> tuple[asyncpg.Record, list[str]]:
    """What the operation comes to when nothing happens to it, and the tables that it writes to, in order."""
    async with victim.connected() as operator:
        user, statement = await prepared(operator, name)
        await operator.execute("set crash.seen = ''")
        await operator.fetchval(statement)
        seen = await operator.fetchval("select current_setting('crash.seen')")
        return await operator.fetchrow(WRITTEN, user.id), seen.split()


async def stopped(operator: asyncpg.Connection) -> int:
    """The backend that waits at the crash point."""

    async def waiting() -> int | None:
        return await operator.fetchval(
            "select pid from pg_locks where locktype = 'advisory' and objid = $1 and not granted", STOP
        )

    pid: int = await eventually(waiting, 60)
    return pid


async def killed(victim: Victim, how: str, table: str, statement: str) -> None:
    """Runs the statement in psql until it stops at the table, kills, and returns when nobody works on it any more."""
    async with victim.connected() as operator:
        await operator.execute(f"select pg_advisory_lock({STOP})")
        client = await asyncio.create_subprocess_exec(
            victim.server.bin_dir / "psql",
            *(
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                f"set crash.seen = ''; set crash.at = '{table}'",
                "-c",
                statement,
            ),
            env=victim.server.pg_environment() | {"PGDATABASE": "crash"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        backend = await stopped(operator)
        if how == "client":
            client.kill()
            await client.communicate()
            await operator.execute(f"select pg_advisory_unlock({STOP})")

            async def gone() -> bool:
                return not await operator.fetchval("select count(*) from pg_stat_activity where pid = $1", backend)

            await eventually(gone, 60)
            return
        pid = backend if how == "backend" else postmaster.postmaster_pid(victim.server.data_dir)
        os.kill(pid, signal.SIGKILL)
        out, _ = await client.communicate()
        assert (client.returncode, out) != (0, b""), "the client was told that it was done"

        async def noticed() -> bool:
            return operator.is_closed()

        await eventually(noticed, 60)  # before that the old server still lets somebody in


def cases() -> Iterator[Any]:
    for number, name in enumerate(OPERATIONS):
        for how in ("backend", "client", "postmaster"):
            if LONG or how == "backend" or number % 8 == {"client": 1, "postmaster": 5}[how]:
                yield pytest.param(name, how, id=f"{name}, {how}")


@pytest.mark.parametrize(("name", "how"), list(cases()))
async def test_an_operation_that_is_killed_is_not_there_in_parts_and_repeated_it_is_done_once(
    victim: Victim, name: str, how: str
) -> None:
    expected, tables = await one_effect(victim, name)
    assert tables, "the operation writes nothing"
    # behind the last table all of it is written, and nothing committed; the long form stops behind each
    for table in tables if LONG else tables[-1:]:
        async with victim.connected() as operator:
            user, statement = await prepared(operator, name)
            before, was = await operator.fetchrow(WRITTEN, user.id), await victim.rows(operator)
        await killed(victim, how, table, statement)
        async with victim.connected() as operator:
            now = await operator.fetchrow(WRITTEN, user.id)
            if how == "client":  # the server may have noticed or not: all of it, or nothing
                assert now in (before, expected)
            else:
                assert now == before
                assert await victim.rows(operator) == was
            assert await run_checks(operator, BOOKS) == []
            answers = [await operator.fetchval(statement) for _ in range(2)]
            found = await operator.fetchrow(WRITTEN, user.id)
            assert _but_log(name, found) == _but_log(name, expected)
            assert await run_checks(operator, BOOKS) == []
            if isinstance(answers[1], dict) and "replayed" in answers[1]:
                assert answers[1] == answers[0] | {"replayed": True}


def _but_log(name: str, row: asyncpg.Record) -> dict[str, Any]:
    """The row without the events of what is done again without a key."""
    values = dict(row)
    if name in RECORDED_TWICE:
        values.pop("events")
    return values
