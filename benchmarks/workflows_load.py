"""Many executions at once: one that the product made is copied in sets, with all of its rows.

Starting a million executions one by one would take longer than what is measured on them. The copy asks the catalog
which tables belong to an execution, so that it knows none of their columns but `execution_id` and `id`.
"""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from benchmarks.frame import BenchmarkError

EXECUTIONS = "public.workflow_executions"
# partitions come with their parent; generated columns make themselves
TABLES = """
select format('%I.%I', n.nspname, c.relname) as name,
       array_agg(a.attname::text order by a.attnum) as columns,
       max(format_type(a.atttypid, null)) filter (where a.attname = 'id') as id_type,
       c.oid = $1::regclass as is_execution
from pg_class c
join pg_namespace n on n.oid = c.relnamespace and n.nspname in ('public', 'vanilla')
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
where c.relkind in ('r', 'p') and not c.relispartition
group by c.oid, n.nspname, c.relname
having c.oid = $1::regclass or bool_or(a.attname = 'execution_id')
order by is_execution desc, c.oid
"""
# the last twelve digits count, so that copies lie together in every index, and all tables agree on the execution's id
_EXECUTION = "(left(r.{own}::text, 24) || lpad(to_hex(n), 12, '0'))::uuid"
_IDS = {"uuid": "gen_random_uuid()", "bigint": "nextval(pg_get_serial_sequence('{name}', 'id'))"}
COPY = """
insert into {name} ({columns}) overriding system value
select {values} from {name} r, generate_series($2::bigint, $3::bigint) n where r.{own} = any ($1)
order by n, r.{own}
"""
PART = 50_000
"""Executions in a statement."""


async def copy(connection: asyncpg.Connection, executions: Sequence[UUID], total: int) -> None:
    """Makes `total` executions of those that are there, which are counted in; as many of each.

    As superuser, without triggers and foreign keys. Raises BenchmarkError when the copies are not there afterwards.
    """
    before = await connection.fetchval(f"select count(*) from {EXECUTIONS}")
    times = total // len(executions) - 1
    await connection.execute("set session_replication_role = replica")
    for table in await connection.fetch(TABLES, EXECUTIONS):
        statement = _statement(table)
        for first in range(1, times + 1, PART // len(executions) or 1):
            last = min(first + (PART // len(executions) or 1) - 1, times)
            await connection.execute(statement, list(executions), first, last, timeout=3600)
    await connection.execute("set session_replication_role = origin")
    await connection.execute("vacuum analyze", timeout=3600)
    made = await connection.fetchval(f"select count(*) from {EXECUTIONS}") - before
    if made != times * len(executions):
        raise BenchmarkError(f"{made} copies were made, not {times * len(executions)}")


def _statement(table: asyncpg.Record) -> str:
    own = "id" if table["is_execution"] else "execution_id"
    values = {column: f'r."{column}"' for column in table["columns"]}
    if table["id_type"] in _IDS:
        values["id"] = _IDS[table["id_type"]].format(name=table["name"])
    values[own] = _EXECUTION.format(own=own)
    columns = ", ".join(f'"{column}"' for column in values)
    return COPY.format(name=table["name"], columns=columns, values=", ".join(values.values()), own=own)
