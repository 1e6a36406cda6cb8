"""Strategies are set by admins, decisions recorded, explained and replayed; nobody sees or drains what is another's."""

import uuid
from collections.abc import Awaitable
from typing import Any

import asyncpg
import pytest

from tests.conftest import SUPER_ADMIN, People
from tests.routing.conftest import Workers
from tests.routing.test_strategies import WITHOUT_CURSOR
from tests.routing.test_workers import refused
from vanilla_saas.database.context import PLATFORM, Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database

THREE: list[dict[str, Any]] = [
    {"id": "a", "name": "anna", "capacity": 4, "in_flight": 3, "health": 90},
    {"id": "b", "name": "bert", "capacity": 4, "in_flight": 1, "health": 80},
    {"id": "c", "name": "carl", "capacity": 4, "in_flight": 0, "health": 10},
]


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(VanillaError) as error:
        await call
    return error.value.name


async def test_a_decision_is_recorded_explained_and_replayed(database: Database, people: People) -> None:
    admin = await people.user("admin", await people.tenant())
    async with database.transaction(admin.identity) as connection:
        made = await connection.fetchval("select route_decision('least_loaded', $1, $2, 7)", THREE, {"pool": "x"})
        assert (made["chosen"], made["seed"], made["panic"]) == ("b", 7, False)
        told = await connection.fetchval("select explain_routing($1)", uuid.UUID(made["decision_id"]))
    assert told["replayed"] is True
    assert told["explanation"] == [
        "least_loaded (least_loaded) chose b among 3 candidates.",
        "The smallest share of slots taken comes first.",
        "1. bert: 1 of 4 slots taken.",
        "2. anna: 3 of 4 slots taken.",
        "carl was left out: its health is 10.",
    ]
    assert (told["actor_id"], told["strategy"], told["candidates"]) == (
        str(admin.identity.user_id),
        "least_loaded",
        THREE,
    )


@pytest.mark.parametrize("kind", [*WITHOUT_CURSOR, "round_robin", "weighted", "fair_share"])
async def test_every_kind_is_explained_and_replayed(operator: asyncpg.Connection, kind: str) -> None:
    candidates = [one | {"input_price": 1, "output_price": 2, "latency_ms": 5, "region": "eu"} for one in THREE]
    context = {"key": "k", "region": "eu", "input_tokens": 1000, "exclude": ["x"]}
    made = await operator.fetchval("select route_decision($1, $2, $3)", kind, candidates, context)
    told = await operator.fetchval("select explain_routing($1)", uuid.UUID(made["decision_id"]))
    assert told["replayed"] is True
    assert told["chosen"] == made["chosen"]
    assert len(told["explanation"]) == 5
    assert all(sentence and sentence.endswith((".", ")")) for sentence in told["explanation"])


async def test_a_replay_sees_a_row_that_was_changed(operator: asyncpg.Connection) -> None:
    made = await operator.fetchval(
        "select route_decision('power_of_two_choices', $1, '{}', 3)", [*THREE[:2], {"id": "z"}]
    )
    again = (
        "select vanilla.replay_routing(d) from routing_decisions r,"
        " lateral jsonb_populate_record(r, $2) d where r.id = $1"
    )
    id_ = uuid.UUID(made["decision_id"])
    assert await operator.fetchval(again, id_, {}) is True
    assert await operator.fetchval(again, id_, {"chosen": "nobody"}) is False
    assert await operator.fetchval(again, id_, {"kind": "fallback"}) is False
    assert await operator.fetchval(again, id_, {"candidates": [{"id": "a", "status": "dead"}]}) is False
    assert {await operator.fetchval(again, id_, {"seed": seed}) for seed in range(20)} == {True, False}


async def test_a_strategy_that_explains_keeps_every_decision_and_another_none(
    operator: asyncpg.Connection, people: People
) -> None:
    tenant = await people.tenant()
    decide = "select vanilla.decide_routing($1, vanilla.routing_strategy($1, $2), $3) ->> 'decision_id'"
    for slug, explain in (("loud", True), ("quiet", False)):
        await operator.fetchval(
            "select set_routing_strategy($1, 'least_loaded', p_explain => $2, p_tenant_id => $3)", slug, explain, tenant
        )
        assert (await operator.fetchval(decide, tenant, slug, THREE) is not None) == explain
    assert await operator.fetchval("select count(*) from routing_decisions where tenant_id = $1", tenant) == 1


async def test_a_tenants_strategy_stands_before_the_platforms_and_applies_to_its_pool(
    operator: asyncpg.Connection, people: People, database: Database
) -> None:
    tenant, other = await people.tenant(), await people.tenant()
    admin = await people.user("admin", tenant)
    applies = "select (vanilla.pool_strategy($1, 'worker', 'default')).slug"
    assert await operator.fetchval(applies, tenant) == "capacity_aware"
    async with database.transaction(admin.identity) as connection:
        made = await connection.fetchval(
            "select set_routing_strategy('round_robin', 'sticky', p_config => $1, p_pool => 'default')",
            {"mode": "hard"},
        )
        assert (made["kind"], made["pool"], made["status"]) == ("sticky", "default", "active")
    assert await operator.fetchval(applies, tenant) == "round_robin"
    assert await operator.fetchval(applies, other) == "capacity_aware"
    kind = "select (vanilla.routing_strategy($1, 'round_robin')).kind"
    assert [await operator.fetchval(kind, each) for each in (tenant, other)] == ["sticky", "round_robin"]
    async with database.transaction(admin.identity) as connection:
        await connection.fetchval("select set_routing_strategy('round_robin', 'sticky', p_status => 'disabled')")
    assert await operator.fetchval(applies, tenant) == "capacity_aware"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("'A b', 'sticky'", "invalid_request"),
        ("'x', 'odd'", "invalid_request"),
        ("'x', 'sticky', 'nobody'", "invalid_request"),
        ("'x', 'sticky', p_config => '[]'", "invalid_request"),
        ("'x', 'sticky', p_config => '{\"mode\": \"odd\"}'", "invalid_request"),
        ("'x', 'weighted', p_config => '{\"mode\": \"hard\"}'", "invalid_request"),
        ("'x', 'sticky', p_config => '{\"quantum\": 1}'", "invalid_request"),
        ("'x', 'fair_share', p_config => '{\"quantum\": -1}'", "invalid_request"),
        ("'x', 'region', p_config => '{\"residency\": 1}'", "invalid_request"),
        ("'x', 'sticky', p_pool => 'A'", "invalid_request"),
        ("'x', 'sticky', p_status => 'odd'", "invalid_request"),
        ("'x', null", "invalid_request"),
        ("'x', 'sticky', p_pool => 'taken'", "invalid_state"),
    ],
)
async def test_a_strategy_that_makes_no_sense_is_refused(
    database: Database, people: People, arguments: str, code: str
) -> None:
    admin = await people.user("admin", await people.tenant())
    async with database.transaction(admin.identity) as connection:
        await connection.fetchval("select set_routing_strategy('first', 'sticky', p_pool => 'taken')")

    async def run() -> None:
        async with database.transaction(admin.identity) as connection:
            await connection.fetchval(f"select set_routing_strategy({arguments})")

    assert await refusal(run()) == code


# rights -----------------------------------------------------------------------------------------------------------
CALLS = {
    "set": "select set_routing_strategy('x', 'sticky')",
    "route": "select route_decision('least_loaded', '[]')",
    "drain": "select drain_worker($1)",
    "explain": "select explain_routing($1)",
}


@pytest.mark.parametrize("call", CALLS)
async def test_users_and_nobody_may_not(database: Database, people: People, call: str) -> None:
    person = await people.user()
    arguments = [uuid.uuid4()] if "$1" in CALLS[call] else []

    async def run(identity: Identity | None) -> None:
        async with database.transaction(identity) as connection:
            await connection.fetchval(CALLS[call], *arguments)

    assert await refusal(run(person.identity)) == "forbidden"
    assert await refusal(run(None)) == "context_invalid"


async def test_an_admin_neither_sees_nor_drains_the_platforms_workers_nor_reads_its_decisions(
    database: Database, people: People, operator: asyncpg.Connection
) -> None:
    worker = await operator.fetchval("select vanilla.register_worker('mine', '{default}', 2)")
    decision = await operator.fetchval("select route_decision('least_loaded', $1) ->> 'decision_id'", THREE)
    admin = await people.user("admin", await people.tenant())
    for table in ("worker_registry", "worker_event_logs", "routing_metrics", "routing_decisions"):
        async with database.transaction(admin.identity) as connection:
            assert await connection.fetchval(f"select count(*) from {table}") == 0
    for call, id_ in (("drain", worker), ("explain", uuid.UUID(decision))):

        async def run(call: str = call, id_: uuid.UUID = id_) -> None:
            async with database.transaction(admin.identity) as connection:
                await connection.fetchval(CALLS[call], id_)

        assert await refusal(run()) == "not_found"
    async with database.transaction(admin.identity) as connection:
        assert await connection.fetchval("select count(*) from routing_strategies") == 14
        # none of the platform's workers is a candidate of a tenant
        assert (await connection.fetchval("select route_decision('least_loaded')"))["chosen"] is None
    await operator.fetchval("select vanilla.stop_worker($1)", worker)


async def test_a_super_admin_drains_a_worker_and_it_is_audited_once(
    database: Database, operator: asyncpg.Connection
) -> None:
    worker = await operator.fetchval("select vanilla.register_worker('mine', '{default}', 2)")
    root = Identity(PLATFORM, SUPER_ADMIN, "superadmin")
    for _ in range(2):
        async with database.transaction(root) as connection:
            await connection.fetchval("select drain_worker($1, 'a new release')", worker)
    event = await operator.fetchrow(
        "select * from worker_event_logs where worker_id = $1 order by id desc limit 1", worker
    )
    assert (event["event"], event["reason"], event["actor_id"]) == ("draining", "a new release", SUPER_ADMIN)
    audited = "select count(*) from audit_logs where action = 'worker.drained' and target_id = $1"
    assert await operator.fetchval(audited, worker) == 1
    await operator.fetchval("select vanilla.stop_worker($1)", worker)
    with pytest.raises(VanillaError) as late:
        async with database.transaction(root) as connection:
            await connection.fetchval("select drain_worker($1)", worker)
    assert late.value.name == "invalid_state"


# what time takes off ------------------------------------------------------------------------------------------------
async def test_health_fades_with_the_time_since_the_last_heartbeat(workers: Workers) -> None:
    worker = await workers.register()
    await workers.beat(worker)
    for seconds, least, most in ((0, 100, 100), (4, 100, 100), (7.5, 45, 50), (20, 0, 0)):
        await workers.silent(worker, seconds)
        [one] = await workers.connection.fetchval("select vanilla.worker_candidates(vanilla.platform())")
        assert least <= one["health"] <= most


async def test_the_operators_decision_without_candidates_is_among_live_workers(workers: Workers) -> None:
    busy, free, draining = [await workers.register(name) for name in ("busy", "free", "draining")]
    for worker in (busy, free, draining):
        await workers.beat(worker, in_flight=5 if worker == busy else 0)
    await workers.connection.fetchval("select vanilla.drain_worker($1)", draining)
    made = await workers.connection.fetchval("select route_decision('least_loaded', null, '{\"pool\": \"default\"}')")
    assert (made["chosen"], made["refused"]) == (str(free), [{"id": str(draining), "reason": "status"}])
    assert (await refused(workers.connection.fetchval("select route_decision('latency')"))).sqlstate == "VS400"
    assert (await refused(workers.connection.fetchval("select route_decision('none')"))).sqlstate == "VS404"
