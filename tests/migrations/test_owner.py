"""A login that is no superuser migrates its own database, on every major version, and the seed's commands act."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, LONG, Cluster
from tests.migrations.tools import FILES, Shell, throwaway_server
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.migrator import migrate

PLAIN = "create role plain login nosuperuser createrole"


@pytest.fixture(scope="module", params=[18, 15, *([16, 17] if LONG else [])])
def major(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def server(major: int) -> Iterator[Cluster]:
    """A server whose roles are this module's own: `plain` owns database owned."""
    with throwaway_server(major) as cluster:
        admin = Shell(cluster, major, "postgres")
        for statement in (PLAIN, "create role other login nosuperuser createrole", "create database owned owner plain"):
            admin.statement(statement)
        yield cluster


@pytest.fixture(scope="module")
def plain(server: Cluster, major: int) -> Shell:
    return Shell(server, major, "owned", "plain")


@pytest.fixture(scope="module")
def first_dump(plain: Shell) -> str:
    """What the first run of the sequence as `plain` made; on a server that had none of our roles."""
    plain.sequence()
    return plain.dump()


def test_an_owner_without_superuser_runs_the_sequence_any_number_of_times(plain: Shell, first_dump: str) -> None:
    for _ in range(2):
        plain.sequence()
        assert plain.dump() == first_dump


def test_a_superuser_makes_the_same_database(server: Cluster, major: int, plain: Shell, first_dump: str) -> None:
    Shell(server, major, "postgres").statement("create database super")
    shell = Shell(server, major, "super")
    shell.sequence()
    shell.sequence()
    assert shell.dump() == first_dump


async def test_migrate_runs_as_the_owner_too(plain: Shell, first_dump: str, signer: ContextSigner) -> None:
    assert set(await migrate(plain.url, signer)) <= set(FILES)
    assert await migrate(plain.url, signer) == []
    assert plain.dump() == first_dump


async def test_logins_of_an_owners_database_serve_requests(
    server: Cluster, plain: Shell, first_dump: str, signer: ContextSigner
) -> None:
    await migrate(plain.url, signer)
    for login in ("vanilla_app", "vanilla_runtime", "vanilla_readonly"):
        connection = await asyncpg.connect(server.url(login, "owned"))
        allowed = "select vanilla.run_maintenance()" if login == "vanilla_runtime" else "select count(*) from levels"
        await connection.fetchval(allowed)
        await connection.close()


def test_another_owner_is_told_what_to_grant_and_then_may(
    server: Cluster, major: int, plain: Shell, first_dump: str
) -> None:
    admin = Shell(server, major, "postgres")
    admin.statement("create database theirs owner other")
    theirs = Shell(server, major, "theirs", "other")
    if major > 15:  # before 16 CREATEROLE alone lets a login make itself a member of any role but superusers
        refused = theirs.file(FILES[0])
        assert "42501" not in refused.stdout
        assert "the vanilla_* roles of this cluster were made by another role" in refused.stderr
        hint = next(line for line in refused.stderr.splitlines() if "As a superuser: grant " in line)
        admin.statement(hint.split("As a superuser: ")[1])
    theirs.sequence()
    assert theirs.dump() == first_dump


def test_many_migrators_of_a_fresh_server_do_not_stop_each_other(major: int, signer: ContextSigner) -> None:
    with throwaway_server(major) as cluster:
        admin = Shell(cluster, major, "postgres")
        shells = [Shell(cluster, major, f"d{number}") for number in range(3)]
        for number in range(3):
            admin.statement(f"create database d{number}")

        async def all_at_once() -> None:
            await asyncio.gather(*(migrate(shell.url, signer) for shell in shells for _ in range(2)))

        asyncio.run(all_at_once())
        assert shells[0].dump() == shells[1].dump() == shells[2].dump()


def test_the_seeds_commands_change_rows_without_a_context(plain: Shell, first_dump: str) -> None:
    """As the plain owner, verbatim; rows are counted, because row-level security filters silently."""
    _insert_old_rows(plain)
    tag = plain.statement("DELETE FROM ai_executions WHERE created_at < now() - interval '90 days';")
    assert tag == "DELETE 3"
    tag = plain.statement("DELETE FROM audit_logs WHERE created_at < now() - interval '1 year';")
    assert tag == "DELETE 2"
    assert plain.statement("select count(*) from ai_executions") == "1"
    # what retention still covers cannot be deleted, however it is asked
    before = plain.statement("select count(*) from audit_logs")
    assert int(before) >= 1
    assert plain.statement("delete from audit_logs") == "DELETE 0"
    assert plain.statement("select count(*) from audit_logs") == before


def _insert_old_rows(plain: Shell) -> None:
    for age in (200, 120, 91, 10):
        plain.as_superuser(
            "insert into ai_executions (tenant_id, created_at, user_id, provider, model, status) values"
            f" ('{DEFAULT_TENANT}', now() - interval '{age} days', vanilla.uuid7(), 'p', 'm', 'succeeded')"
        )
    for age in (800, 400, 300):
        plain.as_superuser(
            "insert into audit_logs (tenant_id, created_at, actor_role, action) values"
            f" ('{DEFAULT_TENANT}', now() - interval '{age} days', 'operator', 'test')"
        )


def test_the_seeds_reset_resets_every_wallet_that_is_due(plain: Shell, first_dump: str) -> None:
    for name in ("one", "two"):
        plain.statement(f"select create_user('{name}@example.test', p_tenant_id => '{DEFAULT_TENANT}')")
    assert plain.statement("SELECT reset_monthly_tokens();") == "0"
    plain.statement(
        "begin; set local role vanilla_owner; create or replace function vanilla.clock() returns timestamptz"
        " language sql volatile parallel safe as 'select pg_catalog.clock_timestamp() + interval ''40 days'''; commit"
    )
    assert plain.statement("SELECT reset_monthly_tokens();") == "2"
    assert plain.statement("SELECT reset_monthly_tokens();") == "0"
    granted = plain.statement("select count(*) from user_token_ledger where reason = 'period allocation'")
    assert int(granted) >= 4
    assert plain.statement("select count(*) from reconcile_token_wallets()") == "0"
    assert plain.statement("select count(*) from verify_token_ledger()") == "0"
    plain.sequence(FILES[:1])
    assert plain.statement("select vanilla.clock() - clock_timestamp() < interval '1 minute'") == "t"


def test_ids_are_version_7_and_ordered_in_time(plain: Shell, first_dump: str) -> None:
    ordered = "select bool_and(v >= p) from (select v, lag(v) over (order by n) p from made) s where p is not null"
    made = "with made as materialized (select n, vanilla.uuid7() v from generate_series(1, 2000) n)"
    version = "select bool_and(substr(v::text, 15, 1) = '7' and substr(v::text, 20, 1) in ('8','9','a','b')) from made"
    assert plain.statement(f"{made} {version}") == "t"
    assert plain.statement("select count(distinct vanilla.uuid7()) from generate_series(1, 2000)") == "2000"
    if plain.bin.parent.name == "pginstall18":
        assert plain.statement(f"{made} {ordered}") == "t"
