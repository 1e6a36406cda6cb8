"""A backup and its restore: what comes back is what was there, and what is refused has changed nothing."""

import asyncio
import json
import re
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import orjson
import pytest

from tests.conftest import TEST_KEY, Cluster, create_database, migrated_database
from tests.migrations.tools import Shell, binaries, run, throwaway_server
from tests.operations.backup_support import SIGNER, copy_of, databases, drop, files_of, fill, rows_of
from vanilla_saas.database.context import PLATFORM, ContextSigner, Identity
from vanilla_saas.database.migrator import migrate
from vanilla_saas.operations import backup_manifest
from vanilla_saas.operations import restore as restoring
from vanilla_saas.operations.backup import Made, make_backup, roles_sql
from vanilla_saas.operations.backup_errors import BACKUP_CODES, BackupError
from vanilla_saas.operations.backup_manifest import ANCHOR, CATALOG, DUMP, MANIFEST, ROLES, open_backup
from vanilla_saas.operations.restore import restore, verify

TABLES = ("users", "user_token_ledger", "user_token_wallets", "ai_executions", "ai_providers", "audit_logs")
PASSPHRASE = "four short words here"
DESIGN = Path(__file__).parents[2] / "docs" / "design" / "backup.md"


@pytest.fixture(scope="module")
async def source(cluster: Cluster) -> AsyncIterator[str]:
    """The name of a database with rows of every kind; the tests of this file only read it."""
    async with migrated_database(cluster) as name:
        await fill(cluster.url(database=name))
        yield name


@pytest.fixture(scope="module")
async def made(cluster: Cluster, source: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return await make_backup(cluster.url(database=source), tmp_path_factory.mktemp("backups"))


@pytest.fixture(scope="module")
async def sealed(cluster: Cluster, source: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("sealed")
    return await make_backup(cluster.url(database=source), folder, passphrase=PASSPHRASE)


async def refused(code: str, coroutine: object) -> BackupError:
    with pytest.raises(BackupError) as refusal:
        await coroutine  # type: ignore[misc]
    assert refusal.value.name == code, refusal.value.message
    return refusal.value


async def test_a_backup_tells_what_it_holds_and_nobody_else_may_read_it(
    cluster: Cluster, source: str, made: Made
) -> None:
    manifest = open_backup(made.path, None).manifest
    assert set(manifest.files) == {DUMP, ROLES, CATALOG, ANCHOR}
    assert manifest.schema == backup_manifest.our_schema()
    assert manifest.context_keys == [SIGNER.key_id]
    counted = {table["name"]: table["rows"] for table in manifest.tables}
    connection = await asyncpg.connect(cluster.url(database=source))
    for table in TABLES:
        assert counted[f"public.{table}"] == await connection.fetchval(f"select count(*) from {table}") > 0
    await connection.close()
    assert manifest.ledger["entries"] == counted["public.user_token_ledger"]
    anchor = open_backup(made.path, None).read(ANCHOR).splitlines()
    assert orjson.loads(anchor[-1])["count"] == len(anchor) - 1 == 3
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700


async def test_no_context_key_is_in_a_backup(made: Made) -> None:
    listed = run(binaries(18) / "pg_restore", "--list", made.path / DUMP).stdout
    assert "user_token_ledger" in listed
    assert "context_keys" not in [word for line in listed.splitlines() if " TABLE" in line for word in line.split()]
    as_text = run(binaries(18) / "pg_restore", "--file=-", made.path / DUMP).stdout
    assert bytes(a ^ 0x36 for a in bytes.fromhex(TEST_KEY)).hex() not in as_text
    assert TEST_KEY not in as_text


@pytest.mark.parametrize("kind", ["made", "sealed"])
async def test_a_restore_elsewhere_is_equal_and_rejects_the_originals_tokens(
    cluster: Cluster, source: str, made: Made, sealed: Made, kind: str
) -> None:
    """Into an empty cluster that has none of our roles, under another context key."""
    backup = open_backup({"made": made, "sealed": sealed}[kind].path, PASSPHRASE)
    other = ContextSigner(b"o" * 32)
    with throwaway_server(18) as there:
        Shell(there, 18, "postgres").statement("create database vanilla_saas")
        url = there.url(database="vanilla_saas")
        done = await restore(backup, url, other)
        assert (done.database, done.kept, done.new_key, done.proof.errors) == ("vanilla_saas", None, False, [])
        assert done.proof.chains == 3
        original = cluster.url(database=source)
        assert await rows_of(url, *TABLES[:-1]) == await rows_of(original, *TABLES[:-1])
        # beside the dump's rows there is the one that says it was restored
        assert {*await _lines(url)} > {*await _lines(original)}
        assert Shell(there, 18, "vanilla_saas").statement("select count(*) from verify_token_ledger()") == "0"
        connection = await asyncpg.connect(there.url("vanilla_app", "vanilla_saas"))
        admin = Identity(PLATFORM, await _super_admin(original), "superadmin")
        await connection.execute("select vanilla.set_context($1)", other.sign(admin))
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await connection.execute("select vanilla.set_context($1)", SIGNER.sign(admin))
        assert refusal.value.sqlstate == "VS401"
        await connection.close()
        # what protects is what migrate would have made
        assert [name for name in await databases(there) if name.startswith("vanilla_saas_")] == []


async def _lines(url: str) -> list[str]:
    return (await rows_of(url, "audit_logs"))["audit_logs"]


async def _super_admin(url: str) -> object:
    connection = await asyncpg.connect(url)
    found = await connection.fetchval("select id from users where role = 'superadmin'")
    await connection.close()
    return found


async def test_a_copy_with_the_originals_key_is_refused_until_that_is_said(made: Made, tmp_path: Path) -> None:
    backup = open_backup(made.path, None)
    with throwaway_server(18) as there:
        Shell(there, 18, "postgres").statement("create database vanilla_saas")
        url = there.url(database="vanilla_saas")
        refusal = await refused("restore_key_shared", restore(backup, url, SIGNER))
        assert "--key keep" in str(refusal.hint)
        await refused("restore_key_shared", restore(backup, url, SIGNER, key="new"))  # of the environment
        assert Shell(there, 18, "vanilla_saas").statement("select to_regclass('public.users') is null") == "t"
        file = tmp_path / "context.key"
        file.write_text(TEST_KEY + "\n")
        done = await restore(backup, url, ContextSigner(bytes.fromhex(TEST_KEY), path=file), key="new")
        assert done.new_key
        present = ContextSigner(bytes.fromhex(file.read_text().strip()))
        shell = Shell(there, 18, "vanilla_saas")
        assert shell.statement("select key_id from vanilla.context_key_states()") == present.key_id != SIGNER.key_id
        again = await restore(backup, url, SIGNER, key="keep", replace=True)
        assert shell.statement("select key_id from vanilla.context_key_states()") == SIGNER.key_id
        assert again.kept in await databases(there)


async def test_verify_proves_a_backup_and_leaves_nothing(cluster: Cluster, source: str, made: Made) -> None:
    proof = await verify(open_backup(made.path, None), cluster.url(database=source))
    assert proof.errors == []
    assert {"files", "restore", "rows", "catalog", "migrate", "checks", "chains"} == set(proof.seconds)
    assert (proof.rows, proof.chains) == (made.manifest.rows, 3)
    assert [name for name in await databases(cluster) if name.startswith(source)] == [source]


SPOILS = {
    "a row changed": "update public.users set display_name = 'x' where role = 'user'",
    "a row gone": "delete from public.webhook_attempts; delete from public.ai_executions where ctid in"
    " (select ctid from public.ai_executions limit 1)",
    "a policy dropped": "drop policy app_select on public.users",
    "a policy changed": "alter policy app_select on public.users using (true)",
    "a grant more": "grant select on public.levels to vanilla_runtime",
    "a grant of a function more": "grant execute on function public.reset_monthly_tokens(integer) to public",
    "a function changed": "create or replace function vanilla.platform() returns uuid language sql immutable"
    " return null::uuid",
    "an index gone": "drop index public.users_id_idx",
    "a constraint gone": "alter table public.users drop constraint users_role_check",
    "a default gone": "alter table public.users alter column role drop default",
    "row-level security off": "alter table public.users no force row level security",
    "a table more": "create table public.more ()",
}


async def test_each_thing_that_a_restored_copy_lacks_is_noticed(cluster: Cluster, made: Made) -> None:
    """The comparison itself: the copy is spoiled before it is compared, one thing at a time."""
    backup = open_backup(made.path, None)
    expected = json.loads(backup.read(CATALOG))
    async with create_database(cluster, "test_backup_spoiled") as name:
        url = cluster.url(database=name)
        await restoring._pg_restore(binaries(18), url, backup, 2)
        connection = await restoring.store.connect(url)
        compared = [await _compared(connection, backup, expected)]
        for spoil in SPOILS.values():
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(spoil)
            compared.append(await _compared(connection, backup, expected))
            await transaction.rollback()
        await connection.close()
    assert compared[0] == []
    unnoticed = [what for what, found in zip(SPOILS, compared[1:], strict=True) if not found]
    assert unnoticed == []


async def _compared(connection: asyncpg.Connection, backup: backup_manifest.Backup, expected: dict) -> list[str]:
    store = restoring.store
    found = [await store.digest(connection, table) for table in await store.tables(connection)]
    said = restoring.compare_tables(backup.manifest.tables, found)
    return said + restoring.compare_catalogs(expected, await store.catalog(connection))


async def test_a_chain_that_was_rewritten_before_the_restore_is_found_by_the_anchor(
    cluster: Cluster, made: Made, tmp_path: Path
) -> None:
    """An anchor that names another end: the ledger of the copy is whole in itself, and not what was backed up."""
    copy = copy_of(made, tmp_path)
    lines = (copy.path / ANCHOR).read_bytes().splitlines(keepends=True)
    end = orjson.loads(lines[0])
    end["hash"] = "00" * 32
    _rewrite(copy.path, ANCHOR, _anchored([orjson.dumps(end) + b"\n", *lines[1:-1]]))
    proof = await verify(copy.opened(), cluster.url())
    assert [line for line in proof.errors if line.startswith("chain of user")]


def _anchored(lines: list[bytes]) -> bytes:
    import hashlib

    seal = {"count": len(lines), "at": "2026-01-01T00:00:00Z", "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    return b"".join(lines) + orjson.dumps(seal) + b"\n"


def _rewrite(folder: Path, name: str, content: bytes) -> None:
    """Changes a file and the manifest with it, as somebody who knows how."""
    import hashlib

    (folder / name).write_bytes(content)
    body = json.loads((folder / MANIFEST).read_text())
    body.pop("seal")
    body["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_bytes(backup_manifest.Manifest(**body).sealed(None))


async def test_a_database_that_holds_something_is_replaced_only_when_that_is_said(
    cluster: Cluster, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, name = open_backup(made.path, None), "test_backup_replaced"
    kept = None
    try:
        async with create_database(cluster, name):
            url = cluster.url(database=name)
            await migrate(url, SIGNER)
            refusal = await refused("restore_not_empty", restore(backup, url, SIGNER))
            assert "--replace" in str(refusal.hint)
            somebody = await asyncpg.connect(url)
            with monkeypatch.context() as early:
                early.setattr(restoring, "_fill", None)  # refused before any work is done
                early.setattr(restoring, "LEAVING_S", 0.3)
                await refused("restore_in_use", restore(backup, url, SIGNER, replace=True))
            assert await somebody.fetchval("select count(*) from users") == 1
            await somebody.close()
            done = await restore(backup, url, SIGNER, replace=True)
            kept = done.kept
            assert len((await rows_of(url, "users"))["users"]) == 4
            # what was there is whole under its new name
            assert len((await rows_of(cluster.url(database=str(kept)), "users"))["users"]) == 1
            connection = await asyncpg.connect(url)
            said = await connection.fetchval("select value from system_configurations where key = 'backup.restored'")
            assert json.loads(said)["backup"] == made.path.name
            await connection.close()
    finally:
        await drop(cluster, kept)


async def test_somebody_who_connects_during_a_restore_stops_it_and_it_changes_nothing(
    cluster: Cluster, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create_database(cluster, "test_backup_late") as name:
        url = cluster.url(database=name)
        late: list[asyncpg.Connection] = []
        prove = restoring._prove

        async def proven(*arguments: object, **options: object) -> None:
            await prove(*arguments, **options)  # type: ignore[arg-type]
            late.append(await asyncpg.connect(url))

        monkeypatch.setattr(restoring, "_prove", proven)
        await refused("restore_in_use", restore(open_backup(made.path, None), url, SIGNER))
        assert await late[0].fetchval("select to_regclass('public.users') is null")
        await late[0].close()


@pytest.mark.parametrize("major", [18, 16])
async def test_the_seeds_commands_restore_into_an_empty_cluster(
    cluster: Cluster, source: str, major: int, tmp_path: Path
) -> None:
    """`pg_dump -U postgres vanilla_saas > backup.sql` and `psql -U postgres vanilla_saas < backup.sql`, as printed."""
    with throwaway_server(major) as here, throwaway_server(major) as there:
        for server in (here, there):
            Shell(server, major, "postgres").statement("create database vanilla_saas")
        original, copy = Shell(here, major, "vanilla_saas"), Shell(there, major, "vanilla_saas")
        await migrate(original.url, SIGNER)
        await fill(original.url)
        script = tmp_path / "backup.sql"
        _sh(f"pg_dump -U postgres vanilla_saas > {script}", here, major)
        (tmp_path / "roles.sql").write_text(roles_sql())
        for _ in range(2):
            said = _sh(f"psql -v ON_ERROR_STOP=1 -q -U postgres vanilla_saas < {tmp_path / 'roles.sql'}", there, major)
            assert said == ""
        said = _sh(f"psql -v ON_ERROR_STOP=1 -q -U postgres vanilla_saas < {script}", there, major)
        assert [line for line in said.splitlines() if "ERROR" in line] == []
        assert _comparable(copy.dump()) == _comparable(original.dump())
        await migrate(copy.url, SIGNER)
        assert copy.statement("select count(*) from verify_token_ledger()") == "0"
        connection = await asyncpg.connect(there.url("vanilla_runtime", "vanilla_saas"))
        assert await connection.fetchval("select vanilla.run_maintenance() is not null")
        await connection.close()


def _comparable(dump: str) -> str:
    """Without parentheses of checks, which PostgreSQL prints differently once they were read back."""
    return re.sub(r"(CHECK) (.*)", lambda m: m[1] + m[2].replace("(", "").replace(")", ""), dump)


def _sh(command: str, server: Cluster, major: int) -> str:
    environment = {"PGHOST": server.host, "PGPORT": str(server.port), "PATH": f"{binaries(major)}:/usr/bin:/bin"}
    done = run("sh", "-c", command, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_roles_are_those_that_the_files_make() -> None:
    """Attributes and memberships after roles.sql and after 001, in clusters of their own."""
    with throwaway_server(18) as one, throwaway_server(18) as other:
        by_file, by_roles = Shell(one, 18, "postgres"), Shell(other, 18, "postgres")
        by_file.sequence()
        done = run(by_roles.bin / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", by_roles.url, input=roles_sql())
        assert (done.returncode, done.stderr) == (0, "")
        found = [
            shell.statement(
                "select string_agg((to_jsonb(r) - 'oid')::text, ',' order by rolname) from pg_roles r"
                " where rolname like 'vanilla%'"
            )
            + shell.statement(
                "select string_agg(concat_ws(' ', roleid::regrole, member::regrole, inherit_option, set_option), ','"
                " order by roleid::regrole::text, member::regrole::text) from pg_auth_members"
                " where roleid::regrole::text like 'vanilla%'"
            )
            for shell in (by_file, by_roles)
        ]
        assert found[0] == found[1]
        assert found[0].count("rolname") == 8
        assert by_roles.statement("select count(*) from pg_authid where rolpassword is not null") == "0"


@pytest.fixture(scope="module")
def owned(made: Made) -> Iterator[Shell]:
    """A database of a login that is no superuser, in a cluster of its own."""
    with throwaway_server(18) as cluster:
        admin = Shell(cluster, 18, "postgres")
        admin.statement("create role plain login nosuperuser createrole")
        admin.statement("create database owned owner plain")
        plain = Shell(cluster, 18, "owned", "plain")
        plain.sequence()
        asyncio.run(migrate(plain.url, SIGNER))
        yield plain


def test_a_login_that_row_level_security_filters_makes_no_backup_and_is_told_who_may(
    owned: Shell, tmp_path: Path
) -> None:
    error = asyncio.run(refused("backup_filtered", make_backup(owned.url, tmp_path)))
    assert files_of(tmp_path) == []
    statements = str(error.hint).split("with: ")[1].replace("'...'", "'secret'")
    for statement in statements.split("; "):
        owned.as_superuser(statement)
    url = owned.url.replace("plain@", "vanilla_backup@")
    made = asyncio.run(make_backup(url, tmp_path))
    by_superuser = asyncio.run(make_backup(owned.admin_url, tmp_path / "super"))
    assert made.manifest.tables == by_superuser.manifest.tables
    # and it may do nothing else
    done = run(owned.bin / "psql", "-X", "-d", url, "-c", "update users set role = 'admin'")
    assert "permission denied" in done.stderr
    forbidden = asyncio.run(refused("restore_forbidden", restore(open_backup(made.path, None), owned.url, SIGNER)))
    assert "superuser" in str(forbidden.hint)
    owned.as_superuser("revoke select on users from vanilla_operator")
    asyncio.run(refused("backup_filtered", make_backup(url, tmp_path)))
    owned.as_superuser("grant select on users to vanilla_operator")


async def test_the_newest_sets_of_this_database_are_kept_and_those_of_others_left_alone(
    cluster: Cluster, source: str, made: Made, tmp_path: Path
) -> None:
    foreign = copy_of(made, tmp_path)
    body = json.loads((foreign.path / MANIFEST).read_text())
    body.pop("seal")
    body["database"]["name"] = "another"
    (foreign.path / MANIFEST).write_bytes(backup_manifest.Manifest(**body).sealed(None))
    foreign.path = foreign.path.rename(tmp_path / "vanilla-saas-20200101T000000Z")
    (tmp_path / "notes.txt").write_text("mine")
    left = tmp_path / ".unfinished-vanilla-saas-20200101T000000Z-1"
    left.mkdir()
    (left / DUMP).write_text("cut short by a kill")
    names = [(await make_backup(cluster.url(database=source), tmp_path, keep=2)).path.name for _ in range(3)]
    assert files_of(tmp_path) == sorted(["notes.txt", foreign.path.name, *names[1:]])
    assert backup_manifest.find_backup(tmp_path, "latest").name == names[-1]


def test_every_refusal_stands_in_the_design_page_and_every_line_there_is_a_refusal() -> None:
    lines = re.findall(r"^\| `(\w+)` \| (.+?) \|$", DESIGN.read_text(), re.MULTILINE)
    assert dict(lines) == BACKUP_CODES
