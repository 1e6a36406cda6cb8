"""The scheduler in processes that serve, and the ways to it: HTTP, commands, the console's page."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, TEST_KEY, Cluster, People, serve, settings_for
from tests.console.console_support import PASSWORD, look, signed_in, submit, super_admin
from tests.operations.schedule_support import Time, own_time
from tests.processes import eventually, over
from tests.tokens.test_cli import Cli
from vanilla_saas.app import create_app
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.operations.backup_manifest import MANIFEST
from vanilla_saas.operations.schedules import Job, JobContext, Scheduler
from vanilla_saas.operations.schedules_jobs import JOBS


@pytest.fixture(scope="module")
async def own(cluster: Cluster) -> AsyncIterator[Time]:
    async with own_time(cluster) as made:
        yield made


@pytest.fixture
async def time(own: Time) -> AsyncIterator[Time]:
    await own.move(timedelta(0))
    await own.connection.execute(
        "update schedules set next_run_at = date_bin(period, vanilla.clock(), '2026-01-01 00:00+00') + period,"
        " enabled = true, failures = 0, last_error = null, held_since = null, requested_at = null, started_at = null,"
        " last_run_at = vanilla.clock()"
    )
    yield own
    for name in ("probe", "slow"):
        await own.forget(name)


@asynccontextmanager
async def scheduler(
    cluster: Cluster, time: Time, signer: ContextSigner, home: Path, jobs: dict[str, Job], **settings: Any
) -> AsyncIterator[Scheduler]:
    """A process's scheduler that looks when it is told."""
    app, runtime = cluster.url("vanilla_app", time.name), cluster.url("vanilla_runtime", time.name)
    database = await Database.open(app, runtime, signer, size=4)
    context = JobContext(Addresses(time.url, app, runtime), settings_for(cluster, time.name, home, **settings))
    made = Scheduler(database, context, jobs)
    try:
        yield made
    finally:
        await made.close()
        await database.close()


async def test_two_schedulers_run_what_is_due_once_and_catch_up_a_wallet_month_by_month(
    cluster: Cluster, time: Time, signer: ContextSigner, tmp_path: Path
) -> None:
    for number in range(25):
        await time.connection.fetchval(
            "select create_user($1, p_tenant_id => $2)", f"u{number}@example.test", DEFAULT_TENANT
        )
    await time.move(timedelta(days=70))
    await time.connection.execute("update schedules set part_size = 4 where name = 'monthly_reset'")
    async with (
        scheduler(cluster, time, signer, tmp_path, {}) as one,
        scheduler(cluster, time, signer, tmp_path, {}) as two,
    ):
        rounds = []
        for _ in range(3):
            await asyncio.gather(one.tick(), two.tick())
            await asyncio.gather(one.drain(), two.drain())
            rounds.append((await time.job("monthly_reset"))["last_result"])
    assert (
        await time.connection.fetchval("select count(*) from user_token_wallets where next_reset_at <= vanilla.clock()")
        == 0
    )
    months = await time.connection.fetch(
        "select count(*) from user_token_ledger where reason = 'period allocation' group by user_id"
    )
    # the month of joining and each that ended since, none twice
    assert {row[0] for row in months} <= {3, 4}
    assert len({row[0] for row in months}) == 1
    assert await time.connection.fetch("select * from reconcile_token_wallets()") == []
    assert await time.connection.fetch("select * from verify_token_ledger()") == []
    # at the turn of a minute it is due once more, and finds nothing
    assert rounds[0] == {"wallets": 25}
    assert (await time.job("monthly_reset"))["failures"] == 0


async def test_a_coroutine_runs_in_one_process_and_its_figures_are_kept(
    cluster: Cluster, time: Time, signer: ContextSigner, tmp_path: Path
) -> None:
    ran: list[str] = []
    go = asyncio.Event()

    def job(who: str) -> Job:
        async def run(context: JobContext) -> dict[str, Any]:
            ran.append(who)
            await go.wait()
            return {"files": 2}

        return run

    await time.add_python_job("probe")
    async with (
        scheduler(cluster, time, signer, tmp_path, {"probe": job("one")}) as one,
        scheduler(cluster, time, signer, tmp_path, {"probe": job("two")}) as two,
        scheduler(cluster, time, signer, tmp_path, {}) as older,
    ):
        await older.tick()
        await asyncio.gather(one.tick(), two.tick())
        await eventually(lambda: _truth(bool(ran)))
        await asyncio.gather(one.tick(), two.tick())
        assert (await time.job("probe"))["state"] == "running"
        go.set()
        await asyncio.gather(one.drain(), two.drain(), older.drain())
    assert len(ran) == 1
    assert (await time.job("probe"))["last_result"] == {"files": 2}


async def _truth(value: bool) -> bool:
    return value


async def test_a_coroutine_that_fails_is_recorded_and_a_slow_one_keeps_no_other_from_running(
    cluster: Cluster, time: Time, signer: ContextSigner, tmp_path: Path
) -> None:
    never = asyncio.Event()

    async def slow(context: JobContext) -> dict[str, Any]:
        await never.wait()
        return {}

    async def broken(context: JobContext) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    await time.add_python_job("slow")
    await time.add_python_job("probe")
    await time.make_due("holds")
    async with scheduler(cluster, time, signer, tmp_path, {"probe": broken, "slow": slow}) as one:
        await one.tick()
        await eventually(lambda: _settled(time, "probe", "holds"))
        job = await time.job("probe")
        assert (job["state"], job["last_error"]) == ("failing", "OSError: [Errno 28] No space left on device")
        assert (await time.job("slow"))["state"] == "running"
    # cut off when its process ends: nothing is recorded, and the next process begins it again
    assert (await time.job("slow"))["state"] == "due"


async def _settled(time: Time, *names: str) -> bool:
    return all([(await time.job(name))["state"] in ("failing", "waiting") for name in names])


async def test_a_coroutine_whose_session_is_lost_is_stopped_because_another_may_have_begun(
    cluster: Cluster, time: Time, signer: ContextSigner, tmp_path: Path
) -> None:
    began, stopped = asyncio.Event(), asyncio.Event()

    async def job(context: JobContext) -> dict[str, Any]:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return {}

    await time.add_python_job("slow")
    async with scheduler(cluster, time, signer, tmp_path, {"slow": job}) as one:
        await one.tick()
        await began.wait()
        await time.connection.execute(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        await asyncio.wait_for(stopped.wait(), 20)
        await one.drain()
    job_now = await time.job("slow")
    assert (job_now["state"], job_now["last_run_at"]) == ("due", None)


async def test_a_server_runs_what_is_due_and_what_a_super_admin_asks_for(
    cluster: Cluster, time: Time, tmp_path: Path
) -> None:
    people = People(time.connection)
    await time.add_job("probe", "return '{\"rows\": 3}'")
    async with serve(create_app(settings_for(cluster, time.name, tmp_path))) as api:
        await eventually(lambda: _has(time, "probe", 3))
        root = await super_admin(people)
        async with aiohttp.ClientSession(api) as http:
            body = {"tenant": "platform", "email": root.email, "password": PASSWORD}
            async with http.post("/api/v1/auth/sign-in", json=body) as answer:
                headers = {"authorization": f"Bearer {(await answer.json())['access_token']}"}
            async with http.get("/api/v1/schedules", headers=headers) as answer:
                found = {row["name"]: row for row in (await answer.json())["data"]}
            assert found["probe"]["state"] == "waiting"
            assert found["retention"]["period_s"] == 86400
            await time.change_job("probe", "return '{\"rows\": 4}'")
            async with http.post("/api/v1/schedules/probe/run", headers=headers) as answer:
                assert answer.status == 202
            await eventually(lambda: _has(time, "probe", 4))
            for act, state in (("pause", "paused"), ("resume", "waiting")):
                async with http.post(f"/api/v1/schedules/probe/{act}", headers=headers) as answer:
                    assert (await answer.json())["state"] == state
            async with http.post("/api/v1/schedules/nothing/run", headers=headers) as answer:
                assert (answer.status, (await answer.json())["code"]) == (404, "not_found")
            admin = await people.user("admin", scopes=["admin"])
            for method, path in (("GET", ""), ("GET", "/probe"), ("POST", "/probe/run"), ("POST", "/probe/pause")):
                async with http.request(method, f"/api/v1/schedules{path}", headers=admin.headers) as answer:
                    assert (answer.status, (await answer.json())["code"]) == (403, "forbidden")
            async with http.get("/api/v1/schedules") as answer:
                assert answer.status == 401
    audited = await time.connection.fetch(
        "select action, actor_role, details from audit_logs where action like 'schedule.%'"
        " and details ->> 'schedule' = 'probe' order by created_at"
    )
    assert [(row["action"], row["actor_role"]) for row in audited] == [
        ("schedule.requested", "superadmin"), ("schedule.changed", "superadmin"), ("schedule.changed", "superadmin")
    ]  # fmt: skip


async def _has(time: Time, name: str, rows: int) -> bool:
    return (await time.job(name))["last_result"] == {"rows": rows}


async def test_the_page_shows_every_job_and_its_buttons_act(cluster: Cluster, time: Time, tmp_path: Path) -> None:
    people = People(time.connection)
    await time.add_job("probe", "return 1 / (p_limit - p_limit)")
    await time.part("probe")
    async with serve(create_app(settings_for(cluster, time.name, tmp_path, run_schedules=False))) as api:
        root = await super_admin(people)
        async with signed_in(api, people, root) as http:
            status, page, _ = await look(http, "/schedules")
            assert status == 200
            for word in ("monthly_reset", "retention", "division by zero", "1 failed", "30 s", "1 d"):
                assert word in page.text
            for act, state in (("pause", "paused"), ("resume", "due"), ("run", "due")):
                status, _, headers = await submit(http, "/schedules/probe", act=act)
                assert (status, headers["location"]) == (303, f"/schedules?notice={act}")
                assert (await time.job("probe"))["state"] == state
            status, _, _ = await submit(http, "/schedules/nothing", act="run")
            assert status == 404
        admin = await people.user("admin")
        async with signed_in(api, people, admin) as http:
            assert (await look(http, "/schedules"))[0] == 403
            assert (await submit(http, "/schedules/probe", act="pause"))[0] == 403


@pytest.fixture
def vs(monkeypatch: pytest.MonkeyPatch, time: Time, tmp_path: Path) -> Cli:
    monkeypatch.setenv("DATABASE_URL", time.url)
    monkeypatch.setenv("VANILLA_SAAS_HOME", str(tmp_path))
    monkeypatch.setenv("VANILLA_SAAS_CONTEXT_KEY", TEST_KEY)
    monkeypatch.setenv("COLUMNS", "200")
    return Cli()


async def test_commands_list_run_pause_and_resume(vs: Cli, time: Time) -> None:
    await time.add_job("probe", "return '{\"rows\": 7}'")
    listed = {row["name"]: row for row in await vs.json("schedules", "list")}
    assert listed["probe"]["state"] == "due"
    assert "monthly_reset" in (await vs("schedules", "list")).stdout
    assert "probe is done: rows 7." in (await vs("schedules", "run", "probe")).stdout
    await vs("schedules", "pause", "probe")
    assert (await time.job("probe"))["state"] == "paused"
    assert (await vs.json("schedules", "run", "probe"))["result"] == {"rows": 7}
    await vs("schedules", "resume", "probe")
    assert (await time.job("probe"))["state"] == "waiting"
    for command in ("run", "pause", "resume"):
        assert (await vs.refused("schedules", command, "nothing")).name == "not_found"
    await time.change_job("probe", "return 1 / (p_limit - p_limit)")
    failed = await vs.refused("schedules", "run", "probe")
    assert (failed.name, failed.message) == ("invalid_state", "The job probe failed: division by zero")
    await time.add_python_job("slow")
    assert (await vs.refused("schedules", "run", "slow")).message == "This release has no job slow."
    assert (await vs.refused("schedules", "pg-cron")).name == "invalid_state"


async def test_a_command_leaves_a_job_to_the_process_that_runs_it(vs: Cli, cluster: Cluster, time: Time) -> None:
    await time.make_due("log_export")
    other = await asyncpg.connect(cluster.url("vanilla_runtime", time.name))
    await other.execute("begin; select vanilla.begin_schedule('log_export')")
    try:
        refused: VanillaError = await vs.refused("schedules", "run", "log_export")
    finally:
        await other.close()
    assert "Another process runs log_export" in refused.message


async def test_cleanup_says_what_it_would_remove_and_removes_it(
    vs: Cli, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await vs.json("cleanup", "--dry-run") == []
    assert "None." in (await vs("cleanup", "--dry-run")).stdout
    month = await time.log_rows("ai_executions", 6, 9)
    would = await vs.json("cleanup", "--dry-run")
    assert [(row["log_table"], row["action"], row["rows"]) for row in would] == [("ai_executions", "drop", 9)]
    await time.set("retention.export", True)
    assert [row["action"] for row in await vs.json("cleanup", "--dry-run")] == ["export"]
    assert "VANILLA_SAAS_EXPORT_TO" in (await vs.refused("cleanup")).message
    assert month in await time.months("ai_executions")
    monkeypatch.setenv("VANILLA_SAAS_EXPORT_TO", str(tmp_path / "kept"))
    done = await vs.json("cleanup")
    assert done["log_export"]["rows"] == 9
    assert done["retention"]["months_dropped"] == 1
    assert month not in await time.months("ai_executions")
    assert await vs.json("cleanup", "--dry-run") == []
    await time.set("retention.export", False)


async def test_a_reset_that_is_killed_goes_on_where_it_was(cluster: Cluster, time: Time, tmp_path: Path) -> None:
    """More than one part, the process killed while it works; the rest is done by running it again."""
    wallets = 420
    await time.connection.execute(
        "select count(create_user('r' || n || '@example.test', p_tenant_id => $1)) from generate_series(1, $2::int) n",
        DEFAULT_TENANT,
        wallets,
    )
    await time.move(timedelta(days=100))
    left = "select count(*) from user_token_wallets where next_reset_at <= vanilla.clock()"
    before = await time.connection.fetchval(left)
    installation = over(cluster, time.name, tmp_path)
    installation.environment["DATABASE_URL"] = time.url
    running = installation.start("reset-tokens")
    try:
        await eventually(lambda: _less(time, left, before), 60, lambda: running.err)
        running.send(signal.SIGKILL)
        await running.wait()
    finally:
        await running.end()
    assert running.process.returncode == -signal.SIGKILL
    done = await asyncio.to_thread(installation.run, "reset-tokens", "--json")
    assert done.code == 0, done
    # the part that the killed process had asked for ends by itself, and until then its wallets are passed by
    await eventually(lambda: _less(time, left, 1), 60)
    assert await time.connection.fetch("select * from reconcile_token_wallets()") == []
    assert await time.connection.fetch("select * from verify_token_ledger()") == []


async def _less(time: Time, statement: str, before: int) -> bool:
    return await time.connection.fetchval(statement) < before


async def test_servers_that_are_killed_in_the_middle_of_a_reset_lose_and_repeat_nothing(
    cluster: Cluster, time: Time, tmp_path: Path
) -> None:
    await time.move(timedelta(days=135))
    await time.connection.execute("update schedules set part_size = 10 where name = 'monthly_reset'")
    left = "select count(*) from user_token_wallets where next_reset_at <= vanilla.clock()"
    installation = over(cluster, time.name, tmp_path)
    for _ in range(2):
        before = await time.connection.fetchval(left)
        assert before > 0
        async with installation.serving("serve") as server:
            await eventually(lambda before=before: _less(time, left, before), 60)  # type: ignore[misc]
            os.killpg(server.process.pid, signal.SIGKILL)
            await server.wait()
        if await time.connection.fetchval(left) == 0:
            break
    await time.connection.execute("select request_schedule('monthly_reset')")

    async def done() -> bool:
        # the session of the killed server may still be at its part, and nobody else runs one meanwhile
        await time.run("monthly_reset")
        return not await time.connection.fetchval(left)

    await eventually(done, 60)
    assert await time.connection.fetch("select * from reconcile_token_wallets()") == []
    assert await time.connection.fetch("select * from verify_token_ledger()") == []


async def test_backups_and_their_rehearsals_run_as_jobs_and_fail_as_jobs(
    cluster: Cluster, time: Time, signer: ContextSigner, tmp_path: Path
) -> None:
    jobs = {name: JOBS[name] for name in ("backup", "backup_rehearsal")}
    async with scheduler(cluster, time, signer, tmp_path, jobs, backup_dir=tmp_path / "kept") as one:
        await time.make_due("backup")
        await one.tick()
        await one.drain()
        made = await time.job("backup")
        assert made["failures"] == 0, made["last_error"]
        (folder,) = [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]
        assert made["last_result"] == {"backup": folder.name, "removed": 0}
        await time.make_due("backup_rehearsal")
        await one.tick()
        await one.drain()
        stood = await time.job("backup_rehearsal")
        assert stood["failures"] == 0, stood["last_error"]
        assert stood["last_result"]["rows"] > 0
        (folder / MANIFEST).write_text("{}")
        await time.make_due("backup_rehearsal")
        await one.tick()
        await one.drain()
        fell = await time.job("backup_rehearsal")
    assert (fell["state"], fell["failures"]) == ("failing", 1)
    assert folder.name in fell["last_error"]
    # neither the one that stood nor the one that fell leaves its scratch database
    scratch = await time.connection.fetch("select datname from pg_database where datname like $1", f"{time.name}_%")
    assert scratch == []
