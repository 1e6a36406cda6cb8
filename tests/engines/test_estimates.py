"""What a start reads of the runs before it."""

import uuid

from tests.engines.shop import Shop

MANY = """
with made as (
    insert into workflow_executions
    select (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid(), 'status', 'succeeded', 'finished_at', e.started_at,
        'charged_tokens', 7))).* from workflow_executions e, generate_series(1, 2000) where e.id = $1 returning id)
insert into engine_executions
    select (jsonb_populate_record(x, jsonb_build_object('id', m.id))).* from engine_executions x, made m where x.id = $1
"""
READ = "select (seq_tup_read + idx_tup_fetch)::int from pg_stat_xact_user_tables where relname = 'workflow_executions'"


async def test_a_start_reads_fifty_runs_whatever_the_tenant_has_run(floor: Shop) -> None:
    engine, person = await floor.deploy(), await floor.person()
    first = uuid.UUID((await floor.run(person, engine.slug))["execution_id"])
    await floor.operator.execute(MANY, first)
    async with floor.operator.transaction():
        before = await floor.operator.fetchval(READ)
        found = await floor.operator.fetch(
            "select vanilla.runs_before(x) from engine_executions x where x.id = $1", first
        )
        assert await floor.operator.fetchval(READ) - before <= 60
    assert len(found) >= 49  # all of one moment: the run itself may be among the last fifty
    assert {row[0] for row in found} == {7}
