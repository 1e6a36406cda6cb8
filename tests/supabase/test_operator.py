"""The operator's commands act without a context: as superuser, as Supabase's postgres, as a plain owner."""

import re
from collections.abc import Iterator

import pytest

from tests.conftest import DEFAULT_TENANT, Cluster
from tests.migrations.tools import Shell, run, throwaway_server
from tests.supabase.project import ADMIN, make_project, make_roles

WORLDS = ("superuser", "supabase", "owner")
PLAIN = "create role plain login nosuperuser createrole nobypassrls"


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def operator(world: str, major: int) -> Iterator[Shell]:
    """psql as the login that migrated, in a database with old rows."""
    superuser = ADMIN if world == "supabase" else "postgres"
    with throwaway_server(major, superuser=superuser) as cluster:
        shell = _database(cluster, major, world)
        shell.sequence()
        _insert_rows(shell)
        yield shell


def _database(cluster: Cluster, major: int, world: str) -> Shell:
    if world == "supabase":
        make_roles(cluster, major)
        return make_project(cluster, major).shell()
    admin = Shell(cluster, major, "postgres")
    login = "postgres" if world == "superuser" else "plain"
    if world == "owner":
        admin.statement(PLAIN)
    admin.statement(f"create database ours owner {login}")
    return Shell(cluster, major, "ours", login)


def _insert_rows(shell: Shell) -> None:
    for name in ("one", "two"):
        shell.statement(f"select create_user('{name}@example.test', p_tenant_id => '{DEFAULT_TENANT}')")
    for age in (200, 120, 91, 10):
        shell.as_superuser(
            "insert into ai_executions (tenant_id, created_at, user_id, provider, model, status) values"
            f" ('{DEFAULT_TENANT}', now() - interval '{age} days', vanilla.uuid7(), 'p', 'm', 'succeeded')"
        )
    for age in (800, 400, 300):
        shell.as_superuser(
            "insert into audit_logs (tenant_id, created_at, actor_role, action) values"
            f" ('{DEFAULT_TENANT}', now() - interval '{age} days', 'operator', 'test')"
        )


def test_the_login_is_what_the_world_says(operator: Shell, world: str) -> None:
    attributes = operator.statement("select rolsuper, rolbypassrls, rolcreaterole from pg_roles where rolname = user")
    assert attributes == {"superuser": "t|t|t", "supabase": "f|t|t", "owner": "f|f|t"}[world]


def test_a_dump_holds_every_row(operator: Shell, world: str) -> None:
    """Before the deletions of the other tests: rows of partitions, of the ledger and of tables without a login."""
    command = [operator.bin / "pg_dump", "--data-only", "-d", operator.url]
    if world != "superuser":
        command.append("--exclude-table=vanilla.context_keys")  # nobody but the keyring reads it
    if world == "owner":
        command.append("--enable-row-security")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    tables = operator.as_superuser(
        "select string_agg(c.oid::regclass::text, ' ') from pg_class c where c.relkind = 'r' and"
        " c.relnamespace in ('public'::regnamespace, 'vanilla'::regnamespace) and c.relname <> 'context_keys'"
    ).split()
    dumped = _rows_of(done.stdout)
    expected = {table.split(".")[-1]: int(operator.as_superuser(f"select count(*) from {table}")) for table in tables}
    assert {name: dumped.get(name, 0) for name in expected} == expected
    assert sum(rows for name, rows in dumped.items() if name.startswith("ai_executions")) == 4
    assert expected["user_token_ledger"] >= 4


def _rows_of(dump: str) -> dict[str, int]:
    """Rows by table, from the COPY blocks of a dump."""
    blocks = re.findall(r"^COPY \w+\.(\w+) \([^)]*\) FROM stdin;\n(.*?)^\\\.$", dump, re.MULTILINE | re.DOTALL)
    return {name: rows.count("\n") for name, rows in blocks}


def test_a_dump_that_row_level_security_would_filter_is_refused(operator: Shell, world: str) -> None:
    done = run(operator.bin / "pg_dump", "--exclude-table=vanilla.context_keys", "-d", operator.url)
    assert (done.returncode == 0) == (world != "owner"), done.stderr
    assert ("row-level security" in done.stderr) == (world == "owner")


def test_old_rows_are_deleted_and_counted(operator: Shell) -> None:
    old = "DELETE FROM ai_executions WHERE created_at < now() - interval '90 days';"
    assert operator.statement(old) == "DELETE 3"
    assert operator.statement(old) == "DELETE 0"
    assert operator.statement("DELETE FROM audit_logs WHERE created_at < now() - interval '1 year';") == "DELETE 2"
    assert operator.statement("select count(*) from ai_executions") == "1"


def test_the_ledger_cannot_be_deleted_by_whom_no_superuser_is(operator: Shell, world: str) -> None:
    before = operator.as_superuser("select count(*) from user_token_ledger")
    url = operator.url
    done = run(
        operator.bin / "psql", "-X", "-d", url, "-c", "begin", "-c", "delete from user_token_ledger", "-c", "abort"
    )
    assert ("permission denied" in done.stderr) == (world != "superuser")
    assert operator.as_superuser("select count(*) from user_token_ledger") == before


def test_the_reset_counts_the_wallets_that_are_due(operator: Shell) -> None:
    assert operator.statement("SELECT reset_monthly_tokens();") == "0"
    operator.statement(
        "begin; set local role vanilla_owner; create or replace function vanilla.clock() returns timestamptz"
        " language sql volatile parallel safe as 'select pg_catalog.clock_timestamp() + interval ''40 days'''; commit"
    )
    assert operator.statement("SELECT reset_monthly_tokens();") == "2"
    assert operator.statement("SELECT reset_monthly_tokens();") == "0"
    assert operator.statement("select count(*) from verify_token_ledger()") == "0"
