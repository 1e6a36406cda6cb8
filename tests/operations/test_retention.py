"""Retention: months of logs that have passed are dropped, broken ones lose what has, and nothing else goes."""

import csv
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, Cluster, settings_for
from tests.operations.schedule_support import Time, own_time
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.operations.log_export import export_logs
from vanilla_saas.operations.schedules import JobContext

LOGS = ("ai_executions", "audit_logs", "events")


@pytest.fixture(scope="module")
async def database(cluster: Cluster) -> AsyncIterator[Time]:
    async with own_time(cluster) as made:
        yield made


@pytest.fixture
async def time(database: Time) -> AsyncIterator[Time]:
    """Everything a test writes is undone but what it drops, which it made itself."""
    await database.connection.execute(
        "update schedules set next_run_at = vanilla.clock(), last_run_at = vanilla.clock(), failures = 0,"
        " started_at = null, held_since = null, requested_at = null"
    )
    yield database
    await database.set("retention.export", False)
    await database.set("retention.whole_months", False)
    await database.set("retention.ai_executions_days", 90)
    await database.connection.execute("delete from log_exports; delete from ai_executions; delete from events")


def context(cluster: Cluster, time: Time, home: Path, **settings: Any) -> JobContext:
    where = Addresses(admin=time.url, app="", runtime="")
    return JobContext(where, settings_for(cluster, time.name, home, **settings))


async def count(time: Time, log: str) -> int:
    return await time.connection.fetchval(f"select count(*) from {log} where created_at < now()")


@pytest.mark.parametrize(
    ("log", "kept", "gone"),
    [
        ("ai_executions", 2, 5),
        ("events", 11, 14),
        ("audit_logs", 11, 14),
        ("worker_event_logs", 2, 5),
        ("routing_metrics", 0, 3),
        ("routing_decisions", 0, 3),
        ("engine_executions", 2, 5),
    ],
)
async def test_whole_months_past_retention_are_dropped_and_others_stay(
    time: Time, log: str, kept: int, gone: int
) -> None:
    old, young = await time.log_rows(log, gone, 20), await time.log_rows(log, kept, 20)
    result = await time.run("retention")
    assert result["months_dropped"] >= 1
    assert result["bytes_freed"] > 0
    assert old not in await time.months(log)
    assert young in await time.months(log)
    assert await time.connection.fetchval(f"select count(*) from {young}") == 20
    assert await time.connection.fetchval("select to_regclass($1) is null", f"public.{old}")
    told = await time.connection.fetchval(
        "select count(*) from audit_logs where action = 'retention.dropped' and actor_role = 'system'"
        " and details ->> 'log_table' = $1 and created_at > now() - interval '1 hour'",
        log,
    )
    assert told >= 1


async def test_of_a_broken_month_the_rows_past_retention_are_deleted_in_parts(time: Time) -> None:
    await time.connection.execute(
        "insert into ai_executions (tenant_id, created_at, user_id, provider, model, status)"
        " select $1, now() - make_interval(days => 90 + n), vanilla.uuid7(), 'p', 'm', 'succeeded'"
        " from generate_series(-2, 1) n, generate_series(1, 50)",
        DEFAULT_TENANT,
    )
    await time.connection.execute("select vanilla.ensure_partitions(3)")
    await time.connection.execute("update schedules set part_size = 30 where name = 'retention'")
    expected = await time.connection.fetchval(
        "select count(*) from ai_executions where created_at < now() - interval '90 days'"
        " and created_at >= date_trunc('month', (now() - interval '90 days') at time zone 'UTC') at time zone 'UTC'"
    )
    assert expected >= 50
    part = await time.part("retention")
    while part["figures"].get("months_dropped"):
        part = await time.part("retention")
    assert part["figures"] == {"rows_deleted": 30, "more": True}
    await time.run("retention")
    assert await time.connection.fetchval("select min(now() - created_at) < interval '90 days' from ai_executions")
    assert await count(time, "ai_executions") == 100


async def test_with_whole_months_no_row_is_deleted_before_its_month_has_passed(time: Time) -> None:
    await time.set("retention.whole_months", True)
    await time.connection.execute(
        "insert into ai_executions (tenant_id, created_at, user_id, provider, model, status)"
        " select $1, now() - interval '90 days 1 hour', vanilla.uuid7(), 'p', 'm', 'succeeded'",
        DEFAULT_TENANT,
    )
    await time.connection.execute("select vanilla.ensure_partitions(3)")
    old = await time.log_rows("ai_executions", 6, 5)
    whole = await time.connection.fetchval(
        "select extract(day from (now() - interval '90 days' - interval '1 hour') at time zone 'UTC') < 28"
    )
    await time.run("retention")
    assert old not in await time.months("ai_executions")
    if whole:
        assert await count(time, "ai_executions") == 1


async def test_the_period_is_a_setting_of_the_platform(time: Time) -> None:
    month = await time.log_rows("ai_executions", 2, 5)
    await time.set("retention.ai_executions_days", 7)
    await time.run("retention")
    assert month not in await time.months("ai_executions")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("retention.ai_executions_days", "ninety"), ("retention.ai_executions_days", 6),
        ("retention.ai_executions_days", 90.5), ("retention.ai_executions_days", 36501),
        ("retention.ai_executions_days", [90]), ("retention.ai_executions_days", -90),
        ("retention.audit_logs_days", 364), ("retention.export", "yes"), ("retention.whole_months", 1),
    ],
)  # fmt: skip
async def test_a_setting_that_is_not_valid_is_refused_when_it_is_written(time: Time, key: str, value: Any) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="system_configurations_retention_check"):
        await time.set(key, value)


@pytest.mark.parametrize(
    ("tenant", "key"), [("platform", "retention.ai_execution"), ("default", "retention.events_days")]
)
async def test_a_setting_that_would_mean_nothing_is_refused(time: Time, tenant: str, key: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="system_configurations_retention_check"):
        await time.connection.execute(
            "insert into system_configurations (tenant_id, key, value)"
            " select id, $2, '90' from tenants where slug = $1",
            tenant, key,
        )  # fmt: skip


async def test_without_a_setting_nothing_of_that_log_is_removed(time: Time) -> None:
    month = await time.log_rows("events", 20, 5)
    async with time.connection.transaction() as _:
        await time.connection.execute("delete from system_configurations where key = 'retention.events_days'")
        await time.run("retention")
        assert month in await time.months("events")
        await time.connection.execute(
            "insert into system_configurations (tenant_id, key, value)"
            " values (vanilla.platform(), 'retention.events_days', '365')"
        )


async def test_who_reads_a_log_is_not_kept_waiting_and_retention_tries_again(cluster: Cluster, time: Time) -> None:
    month = await time.log_rows("ai_executions", 5, 5)
    reader = await asyncpg.connect(cluster.url(database=time.name))
    try:
        await reader.execute("begin")
        await reader.fetchval("select count(*) from ai_executions")
        while (part := await time.part("retention"))["more"]:
            pass  # months of other logs, which nobody reads
        assert "lock timeout" in part["error"]
        assert (await time.job("retention"))["state"] == "failing"
        assert month in await time.months("ai_executions")
    finally:
        await reader.close()
    await time.make_due("retention")
    await time.run("retention")
    assert month not in await time.months("ai_executions")


async def test_stopped_between_its_parts_retention_goes_on(time: Time) -> None:
    months = [await time.log_rows("ai_executions", ago, 5) for ago in (8, 7, 6)]
    await time.part("retention")
    left = await time.months("ai_executions")
    assert [month in left for month in months] == [False, True, True]
    await time.run("retention")
    assert not set(months) & await time.months("ai_executions")


async def test_with_export_on_no_month_is_dropped_before_it_is_written_and_every_row_is_in_the_file(
    cluster: Cluster, time: Time, tmp_path: Path
) -> None:
    await time.set("retention.export", True)
    month = await time.log_rows("ai_executions", 5, 40)
    await time.run("retention")
    assert month in await time.months("ai_executions")
    rows = await time.connection.fetch(f"select * from {month} order by created_at")
    job = context(cluster, time, tmp_path, export_to=str(tmp_path / "kept"))
    assert (await export_logs(job))["rows"] == 40
    file = next((tmp_path / "kept").iterdir())
    assert [entry.name for entry in (tmp_path / "kept").iterdir()] == [file.name]
    assert file.name.endswith(".csv.gz")
    assert file.stat().st_mode & 0o777 == 0o600
    with gzip.open(file, "rt", newline="") as text:
        read = list(csv.DictReader(text))
    assert [line["id"] for line in sorted(read, key=lambda line: line["created_at"])] == [
        str(row["id"]) for row in rows
    ]
    assert {line["model"] for line in read} == {'a "m", 1'}
    kept = await time.connection.fetchrow("select * from log_exports")
    assert (kept["rows"], kept["bytes"], kept["location"]) == (40, file.stat().st_size, str(file.resolve()))
    assert kept["sha256"] == hashlib.sha256(file.read_bytes()).digest()
    assert kept["dropped_at"] is None
    assert await export_logs(job) == {"months": 0}
    await time.make_due("retention")
    await time.run("retention")
    assert month not in await time.months("ai_executions")
    assert await time.connection.fetchval("select dropped_at is not null from log_exports")


async def test_rows_that_come_in_after_the_export_are_exported_too_before_the_month_goes(
    cluster: Cluster, time: Time, tmp_path: Path
) -> None:
    await time.set("retention.export", True)
    month = await time.log_rows("ai_executions", 5, 4)
    job = context(cluster, time, tmp_path, export_to=str(tmp_path / "kept"))
    await export_logs(job)
    await time.log_rows("ai_executions", 5, 1)
    await time.run("retention")
    assert month in await time.months("ai_executions")
    assert (await export_logs(job))["rows"] == 5
    await time.make_due("retention")
    await time.run("retention")
    assert month not in await time.months("ai_executions")


async def test_an_export_without_a_place_or_into_one_that_refuses_drops_nothing_and_leaves_no_half_file(
    cluster: Cluster, time: Time, tmp_path: Path
) -> None:
    await time.set("retention.export", True)
    month = await time.log_rows("ai_executions", 5, 4)
    with pytest.raises(VanillaError, match="VANILLA_SAAS_EXPORT_TO") as refusal:
        await export_logs(context(cluster, time, tmp_path))
    assert refusal.value.name == "invalid_state"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        await export_logs(context(cluster, time, tmp_path, export_to=str(tmp_path / "file")))
    with pytest.raises(OSError):
        await export_logs(context(cluster, time, tmp_path, export_to="/proc/vanilla"))
    await time.run("retention")
    assert month in await time.months("ai_executions")
    assert await time.connection.fetchval("select count(*) from log_exports") == 0


async def test_a_month_that_does_not_wait_cannot_be_said_to_be_exported(time: Time) -> None:
    await time.set("retention.export", True)
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await time.connection.execute(
            "select vanilla.record_log_export('ai_executions', current_date, 1, 1, sha256('x'), 'x')"
        )
    assert refusal.value.sqlstate == "VS409"


async def test_parquet_holds_the_same_rows_with_their_types(cluster: Cluster, time: Time, tmp_path: Path) -> None:
    from pyarrow import parquet

    await time.set("retention.export", True)
    month = await time.log_rows("ai_executions", 5, 12)
    await time.log_rows("audit_logs", 15, 3)
    rows = await time.connection.fetch(f"select id, created_at, streamed, input_tokens from {month} order by 2")
    kept = tmp_path / "kept"
    await export_logs(context(cluster, time, tmp_path, export_to=str(kept), export_format="parquet"))
    found = parquet.read_table(next(kept.glob("ai_executions*.parquet"))).sort_by("created_at").to_pylist()
    assert [(line["id"], line["created_at"], line["streamed"], line["input_tokens"]) for line in found] == [
        (str(row["id"]), row["created_at"], row["streamed"], row["input_tokens"]) for row in rows
    ]
    assert {line["error_code"] for line in found} == {None}
    details = parquet.read_table(next(kept.glob("audit_logs*.parquet"))).to_pylist()
    assert [json.loads(line["details"]) for line in details] == [{"a": 1}] * 3
    await time.run("retention")


async def test_without_the_extra_parquet_and_buckets_are_refused_in_words(
    cluster: Cluster, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    await time.set("retention.export", True)
    await time.log_rows("ai_executions", 5, 1)
    for module, settings in (
        ("pyarrow", {"export_format": "parquet", "export_to": str(tmp_path)}),
        ("minio", {"export_to": "s3://kept"}),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(VanillaError, match=f"{module} is not installed") as refusal:
            await export_logs(context(cluster, time, tmp_path, **settings))
        assert refusal.value.hint == "pip install 'vanilla-saas[export]'"


async def test_sessions_links_and_throttles_go_when_they_have_ended_and_not_before(time: Time) -> None:
    call = time.connection.execute
    user = await time.connection.fetchval(
        "select create_user('keeper@example.test', p_tenant_id => $1)", DEFAULT_TENANT
    )
    session = (
        "insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at)"
        " values ($1, $2, vanilla.uuid7(), sha256($3), sha256($3), now() - $4::interval, now() - $5::interval)"
    )
    for number, (ended, refresh) in enumerate([(31, 31), (40, 29), (29, 40), (0, -1)]):
        await call(session, DEFAULT_TENANT, user, bytes([number]), timedelta(days=ended), timedelta(days=refresh))
    link = (
        "insert into one_time_tokens (tenant_id, user_id, purpose, token_hash, expires_at, used_at)"
        " values ($1, $2, 'set_password', sha256($3), now() - $4::interval, now() - $5::interval)"
    )
    for number, (ended, used) in enumerate([(31, None), (-1, 31), (29, None), (-1, 29), (-1, None)]):
        at = None if used is None else timedelta(days=used)
        await call(link, DEFAULT_TENANT, user, bytes([number]), timedelta(days=ended), at)
    throttle = "insert into sign_in_throttles values ($1, sha256($2), 1, now() + $3::interval)"
    for number, minutes in enumerate((-1, 5)):
        await call(throttle, DEFAULT_TENANT, bytes([number]), timedelta(minutes=minutes))
    await call("update schedules set part_size = 1 where name = 'sign_ins'")
    assert await time.run("sign_ins") == {"sessions": 1, "links": 2, "throttles": 1}
    assert await time.connection.fetchval("select count(*) from sessions where user_id = $1", user) == 3
    assert await time.connection.fetchval("select count(*) from one_time_tokens where user_id = $1", user) == 3
    assert await time.connection.fetchval("select count(*) from sign_in_throttles") == 1


async def test_the_preview_counts_what_then_goes_and_changes_nothing(time: Time) -> None:
    await time.log_rows("ai_executions", 6, 8)
    preview = "select log_table, action, rows from vanilla.preview_retention() where rows > 0"
    before = await time.connection.fetch(preview)
    assert [tuple(row) for row in before] == [("ai_executions", "drop", 8)]
    assert await time.connection.fetch(preview) == before
    await time.run("retention")
    assert await time.connection.fetch(preview) == []
