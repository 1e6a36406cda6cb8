"""What a start reads of the runs before it, and tells before it is one."""

import random
import uuid
from pathlib import Path

import pytest

from tests.conftest import serve, settings_for
from tests.console.console_support import look, signed_in
from tests.engines.shop import Shop, asking
from tests.tokens.test_cli import shell
from vanilla_saas.app import create_app

MANY = """
with made as (
    insert into workflow_executions
    select (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid(), 'status', 'succeeded', 'finished_at', e.started_at,
        'charged_tokens', c))).* from workflow_executions e, unnest($2::int[]) c where e.id = $1 returning id)
insert into engine_executions
    select (jsonb_populate_record(x, jsonb_build_object('id', m.id))).* from engine_executions x, made m where x.id = $1
"""
STANDS = """
select estimate_p50, estimate_p95, estimated_from, encode(price_hash, 'hex') from engine_executions where id = $1
"""
READ = "select (seq_tup_read + idx_tup_fetch)::int from pg_stat_xact_user_tables where relname = 'workflow_executions'"


async def test_a_start_reads_fifty_runs_whatever_the_tenant_has_run(floor: Shop) -> None:
    engine, person = await floor.deploy(), await floor.person()
    first = uuid.UUID((await floor.run(person, engine.slug))["execution_id"])
    await floor.operator.execute(MANY, first, [7] * 2000)
    async with floor.operator.transaction():
        before = await floor.operator.fetchval(READ)
        found = await floor.operator.fetch(
            "select vanilla.runs_before(x) from engine_executions x where x.id = $1", first
        )
        assert await floor.operator.fetchval(READ) - before <= 60
    assert len(found) >= 49  # all of one moment: the run itself may be among the last fifty
    assert {row[0] for row in found} == {7}


async def test_half_of_the_runs_and_nearly_all_are_told_before_a_run_and_stand_in_it(floor: Shop) -> None:
    engine, person = await floor.deploy(), await floor.person()
    nothing = {"p50": None, "p95": None, "runs": 0}
    assert (await floor.ask(person, "preview_engine", engine.slug))["estimate"] == nothing
    first = uuid.UUID((await floor.run(person, engine.slug))["execution_id"])
    charges = list(range(1, 21))
    random.Random(1).shuffle(charges)
    await floor.operator.execute(MANY, first, charges)
    await floor.operator.execute(MANY.replace("succeeded", "failed"), first, [1000] * 9)
    told = await floor.ask(person, "preview_engine", engine.slug)
    assert told["estimate"] == {"p50": 10, "p95": 19, "runs": 20}
    run = await floor.run(person, engine.slug)
    row = await floor.operator.fetchrow(STANDS, uuid.UUID(run["execution_id"]))
    assert (run["estimate"], tuple(row)) == (told["estimate"], (10, 19, 20, told["price_hash"]))


async def test_a_price_that_has_changed_is_told_before_a_run(floor: Shop) -> None:
    engine, person = await floor.deploy(asking()), await floor.person()
    before = await floor.ask(person, "preview_engine", engine.slug)
    assert before["prices_changed"] is False
    price = "update ai_models set output_price = output_price + $1 where slug = 'sandbox-small'"
    await floor.operator.execute(price, 1)
    try:
        told = await floor.ask(person, "preview_engine", engine.slug)
    finally:
        await floor.operator.execute(price, -1)
    assert (told["prices_changed"], told["price_hash"] == before["price_hash"]) == (True, False)


async def test_pages_and_the_command_line_tell_it(floor: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine, person = await floor.deploy(), await floor.person()
    await floor.ask(person, "fork_engine", engine.slug, "mine")
    vs = shell(monkeypatch, floor.room.cluster, floor.room.name, tmp_path)
    command = ("engines", "preview", engine.slug, "--user", person.email)
    assert f"{engine.slug}@1, by reference. No run of it has ended well yet." in (await vs(*command)).stdout
    app = create_app(settings_for(floor.room.cluster, floor.room.name, tmp_path))
    async with serve(app) as api, signed_in(api, floor.room.people, person) as http:
        for path in (f"/engines/{engine.slug}", "/engines/my/mine"):
            assert "nothing is known of its cost" in (await look(http, path))[1].text
        first = uuid.UUID((await floor.run(person, engine.slug))["execution_id"])
        await floor.operator.execute(MANY, first, [*range(1, 20), 1234])
        for path in (f"/engines/{engine.slug}", "/engines/my/mine"):
            page = (await look(http, path))[1].text
            assert "Of the last 20 runs of this version half cost at most 10 tokens, 95 % at most 19." in page
    assert "Of the last 20 runs half cost at most 10 tokens, 95 % at most 19." in (await vs(*command)).stdout
    assert (await vs.json(*command))["estimate"] == {"p50": 10, "p95": 19, "runs": 20}
