"""Engines from deploy to retire: what is frozen stays frozen, who may run does, and a run keeps the version it began with."""

import asyncio
import json
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT
from tests.engines.shop import PLATFORM, Made, Shop, asking, plain
from tests.workflows.hands import Step, workflow
from tests.workflows.test_claims import call
from vanilla_saas.database.errors import VanillaError, from_postgres
from vanilla_saas.tenancy.secret_tokens import token_hash

CALL = {
    "status": "succeeded",
    "input": 5,
    "output": 7,
    "cached": 0,
    "reasoning": 0,
    "estimated": False,
    "latency_ms": 1,
}


async def refused(shop: Shop, who: Any, code: str, function: str, *arguments: Any, **named: Any) -> VanillaError:
    with pytest.raises(VanillaError) as found:
        await shop.ask(who, function, *arguments, **named)
    assert found.value.name == code, found.value.message
    return found.value


async def finish(shop: Shop, output: Any = 1) -> list[str]:
    async with shop.room.worker() as hands:
        return await hands.run(lambda step: step.done(output=output))


# versions


async def test_a_version_says_all_that_it_is_made_of_under_one_hash(floor: Shop) -> None:
    shape = asking(input={"type": "object", "properties": {"tone": {"type": "string"}}})
    engine = await floor.deploy(
        shape, p_parameters={"tone": {"type": "string", "default": "plain"}}, p_mode="sequential"
    )
    row = await floor.operator.fetchrow(
        "select *, hash = sha256(convert_to(config::text, 'UTF8')) as right from engine_versions where engine_id = $1",
        engine.id,
    )
    flow = await floor.operator.fetchval(
        "select encode(hash, 'hex') from workflow_versions where workflow_id = $1", engine.flow
    )
    assert row["right"]
    assert row["config"]["flow"] == {"workflow_id": str(engine.flow), "version": 1, "hash": flow}
    assert row["config"]["models"]["sandbox-small"]["provider"] == "sandbox"
    assert row["config"]["prices"]["sandbox-small"]["output_weight"] is not None
    assert (row["config"]["mode"], row["at_once"]) == ("sequential", 1)
    assert row["config"]["input"] == shape["input"]


async def test_the_same_again_is_no_new_version_and_another_is_the_next(floor: Shop) -> None:
    engine = await floor.deploy()
    again = await floor.ask(floor.admin, "deploy_engine", engine.slug, engine.flow)
    assert (again["version"], again["unchanged"]) == (1, True)
    assert (await floor.ask(floor.admin, "deploy_engine", engine.slug, engine.flow, p_mode="sequential"))[
        "version"
    ] == 2


@pytest.mark.parametrize(
    "change",
    [
        'config = config || \'{"mode": "sequential"}\'',
        "workflow_version = 2",
        "hash = sha256('x')",
        "deployed_by = null",
        "version = 9",
    ],
)
async def test_a_version_does_not_change_for_anybody(floor: Shop, change: str) -> None:
    engine = await floor.deploy()
    with pytest.raises(asyncpg.PostgresError, match="does not change") as found:
        await floor.operator.execute(f"update engine_versions set {change} where engine_id = $1", engine.id)
    assert found.value.sqlstate == "VS409"


async def test_a_retired_version_does_not_come_back(floor: Shop) -> None:
    engine = await floor.deploy()
    await floor.deploy_again(engine)
    await floor.ask(floor.admin, "retire_engine", engine.id, 2)
    with pytest.raises(asyncpg.PostgresError, match="does not change"):
        await floor.operator.execute(
            "update engine_versions set state = 'published', retired_at = null where engine_id = $1 and version = 2",
            engine.id,
        )


# what is refused, with nothing left behind


async def test_a_flow_that_was_never_published_makes_no_engine(floor: Shop) -> None:
    saved = await floor.ask(
        floor.admin, "save_workflow", "never_published", {"name": "X", **workflow("a b", "a>b b>a")}
    )
    assert saved["problems"]
    await refused(floor, floor.admin, "invalid_state", "deploy_engine", "none", uuid.UUID(saved["id"]))
    await refused(floor, floor.admin, "invalid_definition", "publish_workflow", uuid.UUID(saved["id"]))
    assert not await floor.operator.fetchval("select count(*) from ai_engines where slug = 'none'")


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        (asking("nobody-knows-it"), "model_not_callable"),
        (asking("openai/gpt-unpriced"), "model_not_callable"),
        (
            {
                "nodes": [
                    {
                        "id": "g",
                        "kind": "gate",
                        "of": "1",
                        "checks": [{"check": "judge", "model": "absent", "prompt": "?"}],
                    }
                ]
            },
            "model_not_callable",
        ),
        (
            {
                "nodes": [
                    {"id": "m", "kind": "map", "over": "[]", "item": {"kind": "llm", "model": "absent", "prompt": "?"}}
                ]
            },
            "model_not_callable",
        ),
        (
            {
                "nodes": [
                    {"id": "g", "kind": "gate", "of": "1", "check": "similarity", "to": "1", "model": "sandbox-small"}
                ]
            },
            "model_kind",
        ),
        ({"nodes": [{"id": "w", "kind": "workflow", "ref": "other"}]}, "not_self_contained"),
        (
            {"nodes": [{"id": "m", "kind": "map", "over": "[]", "item": {"kind": "engine", "ref": "other"}}]},
            "not_self_contained",
        ),
    ],
)
async def test_a_flow_whose_models_or_nodes_do_not_hold_makes_no_engine(
    floor: Shop, definition: dict[str, Any], code: str
) -> None:
    slug = f"e{uuid.uuid4().hex[:8]}"
    found = await refused(
        floor,
        floor.admin,
        "invalid_definition",
        "deploy_engine",
        slug,
        await floor.flow({"connections": [], **definition}),
    )
    assert [problem["code"] for problem in found.detail["problems"]] == [code]
    assert found.hint
    assert not await floor.operator.fetchval("select count(*) from ai_engines where slug = $1", slug)


@pytest.mark.parametrize(
    "parameters",
    [
        {"tone": {"type": "list"}},
        {"tone": {"type": "string", "pattern": "x"}},
        {"Tone": {"type": "string"}},
        {"tone": {"type": "integer", "minimum": 3, "default": 2}},
        {"tone": {"type": "integer", "minimum": "3"}},
        {"tone": {"type": "string", "enum": []}},
        {"other": {"type": "string"}},
        [],
    ],
)
async def test_a_parameter_that_is_none_is_named(floor: Shop, parameters: Any) -> None:
    shape = plain(input={"type": "object", "properties": {"tone": {}}})
    found = await refused(
        floor,
        floor.admin,
        "invalid_definition",
        "deploy_engine",
        "e-none",
        await floor.flow(shape),
        p_parameters=parameters,
    )
    assert [problem["code"] for problem in found.detail["problems"]] == ["parameter_invalid"]


async def test_bad_words_are_refused_by_name(floor: Shop) -> None:
    engine = await floor.deploy()
    admin = floor.admin
    cases = [
        ("invalid_request", "mode", "deploy_engine", ("x", engine.flow), {"p_mode": "odd"}),
        ("invalid_request", "at_once", "deploy_engine", ("x", engine.flow), {"p_at_once": 1}),
        ("invalid_request", "at_once", "deploy_engine", ("x", engine.flow), {"p_mode": "sequential", "p_at_once": 2}),
        ("invalid_request", "slug", "deploy_engine", ("A b", engine.flow), {}),
        ("invalid_request", "output", "deploy_engine", ("x", engine.flow), {"p_output": []}),
        ("not_found", "workflow_id", "deploy_engine", ("x", uuid.uuid4()), {}),
        ("not_found", "version", "promote_engine", (engine.id, 7), {}),
        ("invalid_request", "alias", "promote_engine", (engine.id, 1, "odd"), {}),
        ("invalid_request", "weight", "promote_engine", (engine.id, 1, "canary", 101), {}),
        ("invalid_request", "weight", "promote_engine", (engine.id, 1, "stable", 5), {}),
        ("not_found", "alias", "rollback_engine", (engine.id, "canary"), {}),
        ("not_found", "version", "retire_engine", (engine.id, 7), {}),
        ("invalid_request", "target", "assign_engine", (engine.id, "user"), {}),
        ("invalid_request", "target", "assign_engine", (engine.id, "odd"), {}),
        ("not_found", "target_id", "assign_engine", (engine.id, "level", uuid.uuid4()), {}),
        ("not_found", "pin", "assign_engine", (engine.id, "tenant"), {"p_pin": "9"}),
        ("invalid_request", "pin", "assign_engine", (engine.id, "tenant"), {"p_pin": "odd"}),
        ("invalid_request", "access", "set_level_engine", (await floor.level("free"), engine.id, "odd"), {}),
        ("invalid_request", "default_access", "set_engine", (engine.id,), {"p_default_access": "odd"}),
        ("invalid_request", "offered", "set_engine", (engine.id,), {"p_offered": True}),
        ("invalid_request", "ref", "execute_engine", ("no such@name",), {}),
        ("invalid_request", "input", "execute_engine", (engine.slug, []), {}),
        ("invalid_request", "priority", "execute_engine", (engine.slug,), {"p_priority": 10}),
        ("not_found", "ref", "execute_engine", ("no-such-engine",), {}),
    ]
    for code, param, function, arguments, named in cases:
        found = await refused(floor, admin, code, function, *arguments, **named)
        assert found.detail.get("param") == param, (function, arguments, named, found.detail)
    assert not await floor.operator.fetchval("select count(*) from ai_engines where slug = 'x'")


async def test_another_tenants_people_levels_and_engines_are_not_there(floor: Shop) -> None:
    engine = await floor.deploy()
    tenant = await floor.room.people.tenant()
    stranger = await floor.person(tenant=tenant)
    other = await floor.room.people.user("admin", tenant_id=tenant)
    await refused(floor, floor.admin, "not_found", "assign_engine", engine.id, "user", stranger.identity.user_id)
    await refused(
        floor, floor.admin, "not_found", "assign_engine", engine.id, "level", await floor.level("free", tenant)
    )
    await refused(floor, other, "not_found", "assign_engine", engine.id, "tenant")
    await refused(floor, other, "not_found", "promote_engine", engine.id, 1)
    await refused(
        floor, other, "not_found", "set_level_engine", await floor.level("free", tenant), engine.id, "execute"
    )
    await refused(floor, other, "not_found", "deploy_engine", "theirs", engine.flow)
    await refused(floor, stranger, "not_found", "execute_engine", engine.slug)
    await refused(floor, stranger, "forbidden", "assign_engine", engine.id, "tenant")
    assert not await floor.operator.fetchval("select count(*) from engine_assignments where engine_id = $1", engine.id)


# who may


async def test_what_may_only_be_read_is_shown_and_not_run(floor: Shop) -> None:
    engine = await floor.deploy(access="read")
    user = await floor.person()
    assert (await floor.ask(user, "resolve_engine", p_ref=engine.slug))["denied_reason"] == "read_only"
    found = await refused(floor, user, "forbidden", "execute_engine", engine.slug)
    assert (found.detail["access"], found.detail["need"]) == ("read", "execute")
    assert engine.slug in await cards(floor, user)
    await refused(floor, user, "forbidden", "fork_engine", engine.slug, "mine")


async def cards(shop: Shop, who: Any) -> dict[str, Any]:
    rows = await shop.operator.fetch("select * from my_engines($1)", who.identity.user_id)
    return {row["slug"]: dict(row) for row in rows}


async def test_what_may_not_be_read_is_not_there_even_when_it_is_assigned(floor: Shop) -> None:
    engine = await floor.deploy(access="none")
    user = await floor.person()
    await floor.ask(floor.admin, "assign_engine", engine.id, "user", user.identity.user_id)
    for ref in (engine.slug, None):
        await refused(floor, user, "not_found", "execute_engine", ref)
    assert (await floor.ask(user, "resolve_engine", p_ref=engine.slug))["engine_id"] is None
    assert await floor.ask(user, "explain_engine") == []
    assert engine.slug not in await cards(floor, user)
    (seen,) = await floor.ask(floor.admin, "explain_engine", user.identity.user_id)
    assert (seen["source"], seen["reason"], seen["chosen"]) == ("user", "not_entitled", False)


async def test_a_level_allows_what_the_engine_does_not_and_forbids_what_it_does(floor: Shop) -> None:
    engine = await floor.deploy(access="execute")
    free, premium = await floor.person("free"), await floor.person("premium")
    await floor.ask(floor.admin, "set_level_engine", await floor.level("free"), engine.id, "none")
    await refused(floor, free, "not_found", "execute_engine", engine.slug)
    assert (await floor.run(premium, engine.slug))["status"] == "running"
    await floor.ask(floor.admin, "set_level_engine", await floor.level("free"), engine.id, None)
    assert (await floor.run(free, engine.slug))["status"] == "running"
    await finish(floor)


# which


async def test_a_name_means_stable_and_for_some_always_the_same_canary(floor: Shop) -> None:
    engine = await floor.deploy()
    await floor.deploy_again(engine)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 40)
    people = [await floor.person() for _ in range(12)]
    for _ in range(2):
        for person in people:
            bucket = await floor.operator.fetchval(
                "select vanilla.engine_bucket($1, $2)", person.identity.user_id, engine.id
            )
            found = await floor.ask(person, "resolve_engine", p_ref=engine.slug)
            assert (found["version"], found["alias"]) == ((2, "canary") if bucket < 40 else (1, "stable"))
    assert (await floor.ask(people[0], "resolve_engine", p_ref=f"{engine.slug}@canary"))["version"] == 2
    assert (await floor.ask(people[0], "resolve_engine", p_ref=f"{engine.slug}@stable"))["version"] == 1
    # all of them have it: it is the stable one and no canary any more
    await floor.ask(floor.admin, "promote_engine", engine.id, 2)
    assert {(await floor.ask(p, "resolve_engine", p_ref=engine.slug))["version"] for p in people} == {2}
    await refused(floor, people[0], "not_found", "execute_engine", f"{engine.slug}@canary")


async def test_back_goes_to_the_last_that_can_be_started(floor: Shop) -> None:
    engine = await floor.deploy()
    for version in (2, 3, 4):
        await floor.deploy_again(engine, str(version))
        await floor.ask(floor.admin, "promote_engine", engine.id, version)
    await floor.ask(floor.admin, "retire_engine", engine.id, 3)
    assert (await floor.ask(floor.admin, "rollback_engine", engine.id))["version"] == 2
    assert (await floor.ask(floor.admin, "rollback_engine", engine.id))["version"] == 1
    await refused(floor, floor.admin, "invalid_state", "rollback_engine", engine.id)
    await refused(floor, floor.admin, "invalid_state", "retire_engine", engine.id, 1)
    await refused(floor, floor.admin, "invalid_state", "promote_engine", engine.id, 3)


async def test_a_run_keeps_its_version_whatever_is_done_to_the_engine(floor: Shop) -> None:
    engine = await floor.deploy(workflow("a b", "a>b"))
    user = await floor.person()
    began = await floor.run(user, engine.slug)
    async with floor.room.worker() as hands:
        step = await hands.one()
        await floor.deploy_again(engine)
        await floor.ask(floor.admin, "promote_engine", engine.id, 2)
        await floor.ask(floor.admin, "rollback_engine", engine.id)
        await floor.ask(floor.admin, "promote_engine", engine.id, 2)
        await floor.ask(floor.admin, "retire_engine", engine.id, 1)
        await floor.ask(floor.admin, "retire_engine", engine.id)
        last = await hands.one(step.done(output=1))
        assert (last.node, last.version) == ("b", 1)
        await hands.tick(last.done(output=2))
    ended = await floor.room.execution(uuid.UUID(began["execution_id"]))
    assert (ended["status"], ended["output"]) == ("succeeded", {"b": 2})
    row = await floor.operator.fetchrow(
        "select * from engine_executions where id = $1", uuid.UUID(began["execution_id"])
    )
    assert (row["version"], row["source"], row["alias"]) == (1, "reference", "stable")
    assert row["config_hash"] == await floor.operator.fetchval(
        "select hash from engine_versions where engine_id = $1 and version = 1", engine.id
    )
    found = await refused(floor, user, "invalid_state", "execute_engine", engine.slug)
    assert found.detail["reason"] == "engine_retired"


async def test_a_run_that_failed_is_repeated_on_its_own_version_alone(floor: Shop) -> None:
    engine = await floor.deploy(workflow("a"))
    user = await floor.person()
    began = uuid.UUID((await floor.run(user, engine.slug))["execution_id"])
    async with floor.room.worker() as hands:
        step = await hands.one()
        await hands.tick(step.failed(), n=0)
        await floor.deploy_again(engine)
        found = await refused(floor, user, "invalid_state", "restart_execution", began, p_version=2)
        assert "keeps its version" in found.message
        await floor.ask(user, "restart_execution", began)
        again = await hands.one()
        assert again.version == 1
        await hands.tick(again.done())
    assert (await floor.room.execution(began))["status"] == "succeeded"


async def test_an_assignment_counts_from_its_beginning_to_its_end(floor: Shop) -> None:
    first, second = await floor.deploy(), await floor.deploy()
    user = await floor.person()
    now = await floor.operator.fetchval("select vanilla.clock()")
    assign = ("assign_engine", first.id, "user", user.identity.user_id)
    await floor.ask(floor.admin, "assign_engine", second.id, "tenant")
    await floor.ask(floor.admin, *assign, p_valid_from=now + timedelta(hours=1))
    assert (await floor.ask(user, "resolve_engine"))["engine"] == second.slug
    await floor.ask(floor.admin, *assign, p_valid_to=now - timedelta(hours=1), p_valid_from=now - timedelta(hours=2))
    assert [c["reason"] for c in await floor.ask(user, "explain_engine")] == ["expired", None]
    await floor.ask(floor.admin, *assign)
    assert (await floor.ask(user, "resolve_engine"))["source"] == "user"
    await refused(floor, floor.admin, "invalid_request", *assign, p_valid_from=now, p_valid_to=now)
    for id_ in await floor.operator.fetch(
        "select id from engine_assignments where engine_id = any($1)", [first.id, second.id]
    ):
        await floor.ask(floor.admin, "unassign_engine", id_["id"])
    await refused(floor, user, "not_found", "execute_engine")


# copies


async def test_a_copy_says_what_its_user_left_out_and_nothing_that_is_not_declared(floor: Shop) -> None:
    shape = plain(
        input={"type": "object", "properties": {"tone": {"type": "string"}, "size": {"type": "integer"}, "text": {}}}
    )
    parameters = {
        "tone": {"type": "string", "enum": ["plain", "kind"], "default": "plain"},
        "size": {"type": "integer", "minimum": 1, "default": 3},
    }
    engine = await floor.deploy(shape, p_parameters=parameters)
    user = await floor.person()
    for overlay, code in (
        ({"text": "x"}, "parameter_undeclared"),
        ({"tone": "rude"}, "parameter_invalid"),
        ({"size": 0}, "parameter_invalid"),
        ({"size": 1.5}, "parameter_invalid"),
    ):
        found = await refused(floor, user, "invalid_definition", "fork_engine", engine.slug, "mine", overlay)
        assert [problem["code"] for problem in found.detail["problems"]] == [code]
    assert not await floor.operator.fetchval("select count(*) from user_engines where engine_id = $1", engine.id)
    await floor.ask(user, "fork_engine", engine.slug, "mine", {"tone": "kind"}, True)
    run = await floor.run(user, size=9)
    assert run["source"] == "copy"
    inputs = "select input from workflow_executions where id = $1"
    assert await floor.operator.fetchval(inputs, uuid.UUID(run["execution_id"])) == {"tone": "kind", "size": 9}
    named = await floor.run(user, engine.slug)
    assert await floor.operator.fetchval(inputs, uuid.UUID(named["execution_id"])) == {"tone": "plain", "size": 3}


async def test_a_copy_stays_on_its_version_until_it_is_made_again(floor: Shop) -> None:
    engine = await floor.deploy()
    user, other = await floor.person(), await floor.person()
    copy = await floor.ask(user, "fork_engine", engine.slug, "mine")
    await floor.deploy_again(engine)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2)
    assert (await floor.ask(user, "resolve_engine", p_ref="my/mine"))["version"] == 1
    assert (await floor.ask(user, "fork_engine", engine.slug, "mine", {}, True))["id"] == copy["id"]
    assert (await floor.ask(user, "resolve_engine"))["version"] == 2
    await refused(floor, other, "not_found", "execute_engine", "my/mine")
    await refused(floor, other, "not_found", "delete_engine_copy", uuid.UUID(copy["id"]))
    another = await floor.deploy()
    await refused(floor, user, "invalid_state", "fork_engine", another.slug, "mine")
    await floor.ask(user, "fork_engine", another.slug, "second", {}, True)
    assert (
        await floor.operator.fetchval(
            "select count(*) from user_engines where user_id = $1 and is_default", user.identity.user_id
        )
        == 1
    )
    await floor.ask(user, "delete_engine_copy", uuid.UUID(copy["id"]))


# runs


async def test_the_same_key_starts_once_and_answers_with_the_same_run(floor: Shop) -> None:
    engine = await floor.deploy()
    user = await floor.person()
    first = await floor.ask(user, "execute_engine", engine.slug, {"a": 1}, "k1")
    await floor.deploy_again(engine)
    await floor.ask(floor.admin, "promote_engine", engine.id, 2)
    again = await floor.ask(user, "execute_engine", engine.slug, {"a": 1}, "k1")
    assert again == first | {"replayed": True}
    await refused(floor, user, "idempotency_key_reused", "execute_engine", engine.slug, {"a": 2}, "k1")
    assert await floor.operator.fetchval("select count(*) from engine_executions where engine_id = $1", engine.id) == 1


async def test_what_a_run_costs_is_what_the_ledger_says_and_the_next_is_estimated_from_it(floor: Shop) -> None:
    await finish(floor)
    engine = await floor.deploy(asking())
    user = await floor.person()
    admit = "select vanilla.admit_call(null, null, null, 'sandbox-small', 10, 10, 40, 1, $1, false, '11 minutes', null, null, $2)"
    began = [await floor.run(user, engine.slug)]
    assert began[0]["estimate"] == {"p50": None, "p95": None, "runs": 0}
    async with floor.room.worker() as hands:
        for _ in range(3):
            step = await hands.one()
            lease = {key: step.claim[key] for key in ("tenant_id", "execution_id", "n", "item", "lease")} | {
                "worker": str(hands.worker)
            }
            admitted = await hands.connection.fetchval(admit, uuid.uuid4(), lease)
            await hands.tick(step.done(output={"text": "x"}, calls=[{"hold_id": admitted["hold_id"], **CALL}]))
            began.append(await floor.run(user, engine.slug))
        await hands.run(lambda step: step.done(output=1))
    spent = await floor.operator.fetchrow(
        "select -sum(l.amount) as ledger, sum(distinct e.charged_tokens) as one, count(distinct e.id) as runs from user_token_ledger l"
        " join workflow_executions e on e.tenant_id = l.tenant_id and e.id = l.reference_id where e.workflow_id = $1",
        engine.flow,
    )
    (report,) = await floor.operator.fetch("select * from engine_report($1, '-infinity', 'infinity')", engine.id)
    assert report["charged_tokens"] == spent["ledger"] == 3 * spent["one"]
    assert (report["runs"], report["succeeded"]) == (4, 4)
    assert began[3]["estimate"] == {"p50": spent["one"], "p95": spent["one"], "runs": 3}


async def test_a_price_that_has_changed_since_shows_in_the_run(floor: Shop) -> None:
    await floor.operator.execute(
        "insert into ai_models (tenant_id, provider_tenant_id, provider_id, slug, upstream_model, name, input_price, output_price, context_window, max_output_tokens)"
        " select $1, m.provider_tenant_id, m.provider_id, 'own-model', m.upstream_model, 'Own', 1, 1, 1000, 100 from ai_models m where m.slug = 'sandbox-small'",
        DEFAULT_TENANT,
    )
    engine = await floor.deploy(asking("own-model"))
    user = await floor.person()
    same = "select x.price_hash = v.price_hash from engine_executions x join engine_versions v on v.tenant_id = x.engine_tenant_id and v.engine_id = x.engine_id and v.version = x.version where x.id = $1"
    assert await floor.operator.fetchval(same, uuid.UUID((await floor.run(user, engine.slug))["execution_id"]))
    await floor.operator.execute("update ai_models set input_price = 2 where slug = 'own-model'")
    assert not await floor.operator.fetchval(same, uuid.UUID((await floor.run(user, engine.slug))["execution_id"]))
    await floor.operator.execute("update ai_models set status = 'disabled' where slug = 'own-model'")
    await refused(floor, floor.admin, "invalid_definition", "deploy_engine", f"{engine.slug}-2", engine.flow)
    await finish(floor)


async def test_input_that_does_not_fit_ends_the_run_before_it_costs_anything(floor: Shop) -> None:
    engine = await floor.deploy(asking(input={"type": "object", "required": ["text"]}))
    user = await floor.person()
    run = await floor.run(user, engine.slug)
    async with floor.room.worker() as hands:
        step = await hands.one()
        assert step.node == "$start"
        await hands.tick(step.failed("input_invalid"))
    ended = await floor.room.execution(uuid.UUID(run["execution_id"]))
    assert (ended["status"], ended["reason"], ended["charged_tokens"]) == ("failed", "input_invalid", 0)


async def test_two_first_runs_of_the_platforms_engine_bring_its_flow_once(floor: Shop) -> None:
    engine = await offered(floor)
    tenant = await floor.room.people.tenant()
    people = [await floor.person(tenant=tenant) for _ in range(2)]
    start = "select execute_engine($1, '{}', p_user_id => $2)"
    others = [await asyncpg.connect(floor.room.cluster.url(database=floor.room.name)) for _ in people]
    started = await asyncio.gather(
        *(c.fetchval(start, engine.slug, p.identity.user_id) for c, p in zip(others, people, strict=True))
    )
    for connection in others:
        await connection.close()
    assert len({json.loads(s)["execution_id"] for s in started}) == 2
    kept = await floor.operator.fetchrow(
        "select w.user_id, w.origin_tenant_id, v.hash = o.hash as same from ai_workflows w join workflow_versions v using (tenant_id)"
        " join workflow_versions o on o.tenant_id = $2 and o.workflow_id = v.workflow_id and o.version = v.version where w.tenant_id = $1",
        tenant,
        PLATFORM,
    )
    assert (kept["user_id"], kept["origin_tenant_id"], kept["same"]) == (None, PLATFORM, True)
    assert "a" in await finish(floor)
    # what was brought is the engine's alone
    owner = await floor.room.people.user("admin", tenant_id=tenant)
    for function in ("publish_workflow", "retire_workflow", "delete_workflow", "start_workflow"):
        await refused(floor, owner, "not_found", function, engine.flow)


async def offered(shop: Shop) -> Made:
    flow = await shop.ask(shop.boss, "save_workflow", f"w{uuid.uuid4().hex[:8]}", {"name": "Platform's", **plain()})
    await shop.ask(shop.boss, "publish_workflow", uuid.UUID(flow["id"]))
    slug = f"p{uuid.uuid4().hex[:8]}"
    made = await shop.ask(shop.boss, "deploy_engine", slug, uuid.UUID(flow["id"]))
    await shop.ask(shop.boss, "set_engine", uuid.UUID(made["engine_id"]), p_default_access="execute", p_offered=True)
    return Made(uuid.UUID(made["engine_id"]), slug, 1, uuid.UUID(flow["id"]))


async def test_the_platforms_engine_is_there_while_it_is_offered_and_a_tenants_own_goes_before(floor: Shop) -> None:
    engine = await offered(floor)
    user = await floor.person()
    assert (await floor.ask(user, "resolve_engine", p_ref=engine.slug))["engine_tenant_id"] == str(PLATFORM)
    await floor.ask(floor.boss, "assign_engine", engine.id, "platform")
    assert (await floor.ask(user, "resolve_engine"))["source"] == "platform"
    await refused(floor, floor.admin, "forbidden", "assign_engine", engine.id, "platform")
    await refused(floor, floor.admin, "not_found", "promote_engine", engine.id, 1)
    await floor.ask(floor.boss, "set_engine", engine.id, p_offered=False)
    await refused(floor, user, "not_found", "execute_engine", engine.slug)
    await refused(floor, user, "not_found", "execute_engine")
    await floor.ask(floor.boss, "set_engine", engine.id, p_offered=True)
    own = await floor.deploy(slug=engine.slug, access="none")
    await refused(floor, user, "not_found", "execute_engine", own.slug)
    await floor.operator.execute("delete from engine_assignments where engine_id = $1", engine.id)


async def test_a_flow_that_an_engine_runs_is_neither_retired_nor_deleted(floor: Shop) -> None:
    engine = await floor.deploy()
    for arguments in ((engine.flow,), (engine.flow, 1)):
        assert (await refused(floor, floor.admin, "invalid_state", "retire_workflow", *arguments)).detail[
            "engine"
        ] == engine.slug
    await refused(floor, floor.admin, "invalid_state", "delete_workflow", engine.flow)
    await floor.ask(floor.admin, "retire_engine", engine.id)
    await floor.ask(floor.admin, "retire_workflow", engine.flow)
    await refused(floor, floor.admin, "invalid_state", "delete_workflow", engine.flow)


# keys


async def by_key(shop: Shop, key: str, ref: str | None = None, **values: Any) -> Any:
    try:
        return await shop.runtime.fetchval("select vanilla.execute_by_key($1, $2, $3)", token_hash(key), ref, values)
    except asyncpg.PostgresError as error:
        raise from_postgres(error) or error from error


async def test_a_key_runs_its_engine_as_its_user_and_nothing_else(floor: Shop) -> None:
    engine, other = await floor.deploy(), await floor.deploy()
    user = await floor.person()
    key, key_id = await floor.key(user, engine.slug)
    run = await by_key(floor, key)
    assert (run["source"], run["engine_id"]) == ("key", str(engine.id))
    row = await floor.operator.fetchrow(
        "select user_id, api_key_id from engine_executions where id = $1", uuid.UUID(run["execution_id"])
    )
    assert tuple(row) == (user.identity.user_id, key_id)
    with pytest.raises(VanillaError, match="no such engine"):
        await by_key(floor, key, other.slug)
    admit = "select vanilla.admit_call($1, null, null, 'sandbox-small', 10, 10, 40, 1, $2, false, '1 minute')"
    with pytest.raises(asyncpg.PostgresError, match="lacks the scope chat"):
        await floor.runtime.fetchval(admit, token_hash(key), uuid.uuid4())
    with pytest.raises(VanillaError, match="lacks the scope engine"):
        await by_key(floor, user.key)
    for scopes in (["engine"], ["chat", "engine"]):
        await refused(floor, user, "invalid_request", "create_api_key", "x", "x", b"0" * 32, scopes)
    await finish(floor)


async def test_a_key_ends_with_its_revocation_its_expiry_and_what_allowed_it(floor: Shop) -> None:
    engine = await floor.deploy()
    user = await floor.person()
    key, key_id = await floor.key(user, engine.slug)
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="read")
    with pytest.raises(VanillaError, match="read, not run"):
        await by_key(floor, key)
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="execute")
    await floor.ask(user, "revoke_api_key", key_id)
    with pytest.raises(VanillaError, match="wrong, revoked or expired"):
        await by_key(floor, key)
    other, other_id = await floor.key(user, engine.slug)
    await floor.operator.execute("update api_keys set expires_at = vanilla.clock() where id = $1", other_id)
    with pytest.raises(VanillaError, match="wrong, revoked or expired"):
        await by_key(floor, other)


async def test_model_calls_of_a_run_count_on_its_keys_budget(floor: Shop) -> None:
    engine = await floor.deploy(asking())
    user = await floor.person()
    key, key_id = await floor.key(user, engine.slug, p_budget_tokens=60)
    await by_key(floor, key)
    await by_key(floor, key)
    admit = "select vanilla.admit_call(null, null, null, 'sandbox-small', 10, 10, 40, 1, $1, false, '11 minutes', null, null, $2)"

    def lease(step: Step, worker: uuid.UUID) -> dict[str, Any]:
        return {name: step.claim[name] for name in ("tenant_id", "execution_id", "n", "item", "lease")} | {
            "worker": str(worker)
        }

    used = "select used_tokens from api_keys where id = $1"
    async with floor.room.worker() as hands:
        first, second = await hands.tick()
        admitted = await hands.connection.fetchval(admit, uuid.uuid4(), lease(first, hands.worker))
        reserved = await floor.operator.fetchval(used, key_id)
        assert reserved == admitted["reserved"]
        with pytest.raises(asyncpg.PostgresError, match="budget of this key"):
            await hands.connection.fetchval(admit, uuid.uuid4(), lease(second, hands.worker))
        await hands.tick(first.done(output=1, calls=[{"hold_id": admitted["hold_id"], **CALL}]), second.done(output=1))
    charged = await floor.operator.fetchval(
        "select sum(charged_tokens) from workflow_executions where api_key_id = $1", key_id
    )
    assert await floor.operator.fetchval(used, key_id) == charged > 0
    await floor.operator.execute("update api_keys set used_tokens = 60 where id = $1", key_id)
    with pytest.raises(VanillaError, match="budget of this key"):
        await by_key(floor, key)


async def test_a_key_keeps_what_calls_that_a_budget_pays_do_not_use(floor: Shop) -> None:
    engine = await floor.deploy(asking(budget_tokens=500))
    key, key_id = await floor.key(await floor.person(), engine.slug, p_budget_tokens=60)
    await by_key(floor, key)
    await by_key(floor, key)
    async with floor.room.worker() as hands:
        first, second = await hands.tick()
        await call(hands, first)
        with pytest.raises(asyncpg.PostgresError, match="budget of this key"):
            await call(hands, second)
        again = await hands.one(first.done("handed_back"))  # what it may have used is not known
        await hands.tick(again.done(output=1, calls=[await call(hands, again)]), second.done(output=1))
    (paid,) = await floor.operator.fetch("select charged_tokens from ai_executions where api_key_id = $1", key_id)
    used = await floor.operator.fetchval("select used_tokens from api_keys where id = $1", key_id)
    assert used == paid["charged_tokens"] > 0


async def test_a_key_does_not_follow_its_name_to_another_engine(floor: Shop) -> None:
    engine = await offered(floor)
    user = await floor.person()
    key, _ = await floor.key(user, engine.slug)
    await floor.deploy(slug=engine.slug)
    with pytest.raises(VanillaError, match="no such engine"):
        await by_key(floor, key)
