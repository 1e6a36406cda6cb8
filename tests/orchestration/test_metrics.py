"""Figures of models, agents and tools: counted once however often they are, and gone by when models are picked."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.orchestration.studio import Studio, agent, calls, says

COPY_MODEL = """
insert into ai_models (tenant_id, provider_tenant_id, provider_id, slug, upstream_model, name, kind, context_window, max_output_tokens, input_price,
    output_price, input_weight, output_weight, status)
select $2, provider_tenant_id, provider_id, $1, upstream_model, $1, kind, context_window, max_output_tokens, input_price, output_price, input_weight,
    output_weight, 'active' from ai_models where slug = 'sandbox-small' limit 1
"""
NOBODY = """
insert into ai_providers (tenant_id, slug, name, kind, base_url, status) values ($1, $2, $2, 'custom', 'http://127.0.0.1:9/v1', 'active') returning id
"""
CALLED = """
insert into ai_executions (tenant_id, created_at, id, user_id, provider, model, status, latency_ms)
select $1, $2, gen_random_uuid(), $3, 'sandbox', $4, $5, $6 from generate_series(1, 10)
"""


async def model(desk: Studio) -> str:
    """A model of the tenant that is another name for the sandbox's."""
    slug = f"m{uuid.uuid4().hex[:10]}"
    await desk.shop.operator.execute(COPY_MODEL, slug, desk.shop.admin.identity.tenant_id)
    return slug


async def did(desk: Studio, name: str, status: str, latency_ms: int, ago_s: float = 1) -> None:
    """Ten calls of a model a moment ago, as far as its health is concerned."""
    when = datetime.now(UTC) - timedelta(seconds=ago_s)
    who = desk.shop.admin.identity
    await desk.shop.operator.execute(CALLED, who.tenant_id, when, who.user_id, name, status, latency_ms)


async def picked(desk: Studio, models: list[str], turns: int = 100) -> list[str]:
    rows = await desk.shop.operator.fetch(
        "select vanilla.pick_model($1, $2, $3, n) as model from generate_series(1, $4::integer) n",
        desk.shop.admin.identity.tenant_id, models, uuid.uuid4(), turns,
    )  # fmt: skip
    return [row["model"] for row in rows]


async def busy(desk: Studio) -> Any:
    """A run under way: health is measured for tenants that have one."""
    person = await desk.shop.person()
    return await desk.start(person, await desk.save(agent(says("Late.", latency_ms=120_000))))


async def test_a_model_that_fails_loses_its_work_and_gets_it_back(desk: Studio) -> None:
    run_id = await busy(desk)
    good, bad = await model(desk), await model(desk)
    assert await picked(desk, [bad, good]) == [bad] * 100
    await did(desk, bad, "failed", 100)
    await did(desk, good, "succeeded", 100)
    await desk.shop.operator.execute("select vanilla.measure_health()")
    chosen = await picked(desk, [bad, good], 1000)
    assert 0 < chosen.count(bad) <= 200  # one in ten looks whether it is well again
    assert chosen.count(good) >= 800
    # it is: what it did in the last half minute is all that counts
    await desk.shop.operator.execute(
        "update ai_executions set created_at = created_at - interval '40 seconds' where model = $1", bad
    )
    await did(desk, bad, "succeeded", 100)
    await desk.shop.operator.execute("select vanilla.measure_health()")
    assert await picked(desk, [bad, good]) == [bad] * 100
    await desk.shop.ask(desk.shop.admin, "cancel_execution", (await desk.run(run_id))["execution_id"])


async def test_a_model_that_is_much_slower_than_another_is_left_out(desk: Studio) -> None:
    run_id = await busy(desk)
    quick, slow = await model(desk), await model(desk)
    await did(desk, quick, "succeeded", 100)
    await did(desk, slow, "succeeded", 1000)
    await desk.shop.operator.execute("select vanilla.measure_health()")
    assert (await picked(desk, [slow, quick], 1000)).count(quick) >= 800
    assert await picked(desk, [slow]) == [slow] * 100
    await desk.shop.ask(desk.shop.admin, "cancel_execution", (await desk.run(run_id))["execution_id"])


async def test_a_model_that_cannot_answer_is_replaced_within_the_turn(desk: Studio) -> None:
    person = await desk.shop.person()
    broken = await model(desk)
    provider = await desk.shop.operator.fetchval(NOBODY, desk.shop.admin.identity.tenant_id, f"p{broken}")
    await desk.shop.operator.execute(
        "update ai_models set provider_tenant_id = tenant_id, provider_id = $2 where slug = $1", broken, provider
    )
    slug = await desk.save({"instructions": "You help.", "model": broken, "fallbacks": ["sandbox-small"]})
    run = await desk.ended(await desk.start(person, slug))
    assert (run["stop_reason"], run["turns"]) == ("done", 1), run
    rows = await desk.shop.operator.fetch(
        "select model, status from ai_executions where user_id = $1 order by status", person.identity.user_id
    )
    assert [tuple(row) for row in rows] == [(broken, "failed"), ("sandbox-small", "succeeded")]
    assert run["charged_tokens"] == await desk.charged(run["id"])


async def test_counting_a_window_again_writes_the_same(desk: Studio) -> None:
    person = await desk.shop.person()
    slug = await desk.save(
        agent(calls(("look_up", {"name": "A"}), ("breaks", {})), says("Done."), tools=["look_up", "breaks"])
    )
    run = await desk.ended(await desk.start(person, slug))
    now = datetime.now(UTC)
    window = (now - timedelta(minutes=5), now + timedelta(minutes=2))
    await desk.shop.operator.execute("select vanilla.metrics_rollup($1, $2)", *window)
    counted = "select created_at, grain, kind, resource, calls, ok, latency, charged_tokens from resource_performance_metrics where tenant_id = $1 order by 1, 2, 3, 4"
    first = [tuple(row) for row in await desk.shop.operator.fetch(counted, person.identity.tenant_id)]
    await desk.shop.operator.execute("select vanilla.metrics_rollup($1, $2)", *window)
    assert [tuple(row) for row in await desk.shop.operator.fetch(counted, person.identity.tenant_id)] == first
    totals = "select grain, sum(calls), sum(ok), sum(charged_tokens), sum((select sum(x) from unnest(latency) x)) from resource_performance_metrics where kind = $1 and resource = $2 group by grain order by 1"
    of_agent = await desk.shop.operator.fetch(totals, "agent", slug)
    assert [tuple(row) for row in of_agent] == [(grain, 1, 1, run["charged_tokens"], 1) for grain in ("hour", "minute")]
    of_tool = await desk.shop.operator.fetchrow(totals, "tool", "breaks")
    assert of_tool["sum"] >= 1
    failed = await desk.shop.operator.fetchrow(
        "select sum(calls) as calls, sum(ok) as ok from resource_performance_metrics where kind = 'tool' and resource = 'breaks' and grain = 'minute'"
    )
    assert (failed["calls"] >= 1, failed["ok"]) == (True, 0)


async def test_the_platform_is_measured_once_a_minute(desk: Studio) -> None:
    for _ in range(3):
        await desk.shop.operator.execute("select vanilla.job_metrics(100)")
    rows = await desk.shop.operator.fetch("select created_at, count(*) as names from system_metrics group by 1")
    assert {row["names"] for row in rows} == {6}
    assert len(rows) <= 2
