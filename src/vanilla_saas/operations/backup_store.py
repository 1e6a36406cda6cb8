"""Statements of backup and restore: what a database holds, in figures that two databases can be compared by.

They read the catalog and nothing of the product's own where that can be helped, because a backup is also made of a
database of another version. Statements over all tables are composed by the database itself, with format() and %I.
"""

from importlib.resources import files
from typing import Any

import asyncpg
import orjson

from vanilla_saas.database.connection import connect_admin
from vanilla_saas.database.pool import _prepare

# times, bytes and floats read the same whatever a database's own defaults are
SESSION = """
set search_path = pg_catalog; set time zone 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres';
set bytea_output = 'hex'; set extra_float_digits = 1; set xmlbinary = 'base64'; set statement_timeout = 0;
set lock_timeout = 0; set idle_in_transaction_session_timeout = 0
"""
# context_keys are the one table that no backup holds; partitions are read through their parents
TABLES = r"""
select n.nspname as schema, c.relname as table, format('%I.%I', n.nspname, c.relname) as name,
    (select coalesce(array_agg(a.attname::text order by a.attnum), '{}') from pg_attribute a
     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '') as columns
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
    and not (n.nspname = 'vanilla' and c.relname = 'context_keys')
order by pg_total_relation_size(c.oid) desc, 3
"""
DIGEST = """
select format('select count(*), coalesce(sum(hashtextextended(row(%s)::text collate "C", 0)), 0)::text from %I.%I',
    (select string_agg(quote_ident(c), ', ' order by c collate "C") from unnest($3::text[]) c), $1::text, $2::text)
"""
COPY_OUT = """
select format('select %s from %I.%I',
    (select string_agg(quote_ident(c), ', ' order by n) from unnest($3::text[]) with ordinality u (c, n)),
    $1::text, $2::text)
"""
FILLED = "select format('select count(%I) from %I.%I', $3::text, $1::text, $2::text)"
TRUNCATE = "select 'truncate ' || string_agg(format('%s', name), ', ') from unnest($1::text[]) name"
# pg_dump locks and reads every table and every partition on its own
UNREADABLE = r"""
select coalesce(array_agg(s.name order by s.name) filter (where s.hidden), '{}') as filtered,
    coalesce(array_agg(s.name order by s.name) filter (where not s.allowed), '{}') as forbidden
from (
    select format('%I.%I', n.nspname, c.relname) as name,
        -- row_security_active asks for the right to see, so it is asked second
        case when has_table_privilege(c.oid, 'select') then row_security_active(c.oid) else false end as hidden,
        has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as allowed
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not (n.nspname = 'vanilla' and c.relname = 'context_keys')) s
"""
CATALOG = (files(__package__) / "backup_catalog.sql").read_text()
OTHER_ROLES = (files(__package__) / "backup_roles.sql").read_text()
IDENTITY = """
select current_database() as name, (select system_identifier::text from pg_control_system()) as cluster,
    current_setting('server_version_num')::int / 10000 as postgresql,
    split_part(current_setting('server_version'), ' ', 1) as server,
    pg_encoding_to_char(encoding) as encoding
from pg_database where datname = current_database()
"""
RECORD = """
insert into public.system_configurations (tenant_id, key, value, description, updated_at)
values (vanilla.platform(), $1, $2::text::jsonb, $3, vanilla.clock())
on conflict (tenant_id, key) do update set value = excluded.value, updated_at = excluded.updated_at
"""
RECORDED = """
select key, value::text as value, updated_at, vanilla.clock() - updated_at as age from public.system_configurations
where tenant_id = vanilla.platform() and key like 'backup.%'
"""
DATABASE = """
select d.oid, pg_get_userbyid(d.datdba) as owner, pg_encoding_to_char(d.encoding) as encoding, d.datcollate, d.datctype
from pg_database d where d.datname = $1
"""
SESSIONS = "select count(*) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()"
EMPTY = r"""
select not exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
"""
FOREIGN_KEYS = """
select format('%I.%I', n.nspname, c.relname) as child, format('%I.%I', m.nspname, p.relname) as parent
from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
join pg_class p on p.oid = k.confrelid join pg_namespace m on m.oid = p.relnamespace
where k.contype = 'f' and k.conparentid = 0 and k.conrelid <> k.confrelid
"""


async def connect(url: str) -> asyncpg.Connection:
    """A session whose texts two databases can be compared by. Raises VanillaError `database_unavailable`."""
    connection = await connect_admin(url)
    await _prepare(connection)
    await connection.execute(SESSION)
    return connection


async def is_ours(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select to_regclass('vanilla.schema_migrations') is not null"))


async def applied_files(connection: asyncpg.Connection) -> dict[str, str]:
    """The operator may read them, and who bypasses row-level security."""
    return dict(await connection.fetch("select name, checksum from vanilla.schema_migrations order by name"))


async def identity(connection: asyncpg.Connection) -> dict[str, Any]:
    return dict(await connection.fetchrow(IDENTITY))


async def unreadable(connection: asyncpg.Connection) -> tuple[list[str], list[str]]:
    """Tables that row-level security would filter, and tables that the login may not read."""
    row = await connection.fetchrow(UNREADABLE)
    return row["filtered"], row["forbidden"]


async def tables(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """Schema, table, quoted name and columns of each, partitions left to their parents; the largest first."""
    return list(await connection.fetch(TABLES))


async def digest(
    connection: asyncpg.Connection, table: asyncpg.Record, columns: list[str] | None = None
) -> dict[str, Any]:
    """Rows and an order-free digest: the sum of a 64-bit hash of each row's text, all columns or those given.

    The hash is the one of hash partitions, which PostgreSQL keeps over versions. It finds accidents, at half the cost
    of SHA-256; against people there are the ledger's chains and the files' encryption.
    """
    columns = table["columns"] if columns is None else columns
    statement = await connection.fetchval(DIGEST, table["schema"], table["table"], columns)
    rows, total = await connection.fetchrow(statement, timeout=None)
    return {"name": table["name"], "columns": table["columns"], "rows": rows, "digest": total}


async def select_all(connection: asyncpg.Connection, table: asyncpg.Record, columns: list[str]) -> str:
    """The statement that reads these columns of a table."""
    return str(await connection.fetchval(COPY_OUT, table["schema"], table["table"], columns))


async def filled(connection: asyncpg.Connection, table: asyncpg.Record, column: str) -> int:
    """How many rows have a value in the column."""
    statement = await connection.fetchval(FILLED, table["schema"], table["table"], column)
    return int(await connection.fetchval(statement, timeout=None))


async def truncate(connection: asyncpg.Connection, names: list[str]) -> None:
    """Empties tables, named as `tables` names them; all that refer to each other at once."""
    await connection.execute(await connection.fetchval(TRUNCATE, names))


async def catalog(connection: asyncpg.Connection) -> dict[str, str]:
    """SHA-256 of the definition of every relation, index, constraint, policy, grant, function and trigger."""
    return dict(await connection.fetch(CATALOG))


async def other_roles(connection: asyncpg.Connection) -> list[str]:
    """Statements that make the roles which the dump names beside ours, without login or password."""
    return [row["statement"] for row in await connection.fetch(OTHER_ROLES)]


async def context_key_ids(connection: asyncpg.Connection) -> list[str]:
    if await connection.fetchval("select to_regprocedure('vanilla.context_key_states()') is null"):
        return []
    return [row["key_id"] for row in await connection.fetch("select key_id from vanilla.context_key_states()")]


async def record(connection: asyncpg.Connection, key: str, value: dict[str, Any], description: str) -> None:
    """Keeps a result where doctor and the console find it, and writes it to the platform's audit log."""
    async with connection.transaction():
        await connection.execute("set local role vanilla_system")
        await connection.execute(RECORD, key, orjson.dumps(value, default=str).decode(), description)
        await connection.execute("set local role vanilla_owner; set local role vanilla_definer")
        await connection.execute(
            "select vanilla.audit(vanilla.platform(), $1, 'backup', null, $2::text::jsonb)",
            key,
            orjson.dumps(value, default=str).decode(),
        )


async def recorded(connection: asyncpg.Connection) -> dict[str, dict[str, Any]]:
    """The kept results by key: their value, `at` and `age`."""
    rows = await connection.fetch(RECORDED)
    return {row["key"]: {"at": row["updated_at"], "age": row["age"], **orjson.loads(row["value"])} for row in rows}


async def installed_age(connection: asyncpg.Connection) -> Any:
    """How long ago the schema was made, as an interval; None when nothing says so."""
    return await connection.fetchval("select vanilla.clock() - min(applied_at) from vanilla.schema_migrations")


async def database(connection: asyncpg.Connection, name: str) -> asyncpg.Record | None:
    """Its owner, encoding and collation, or None."""
    return await connection.fetchrow(DATABASE, name)


async def sessions(connection: asyncpg.Connection, name: str) -> int:
    """How many others are connected to a database."""
    return int(await connection.fetchval(SESSIONS, name))


async def is_superuser(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select rolsuper from pg_roles where rolname = session_user"))


async def is_empty(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval(EMPTY))


async def create_database(connection: asyncpg.Connection, name: str, like: asyncpg.Record | None) -> None:
    """An empty database, with owner, encoding and locale of another one when there is one."""
    if like is None:
        statement = await connection.fetchval("select format('create database %I template template0', $1::text)", name)
    else:
        statement = await connection.fetchval(
            "select format('create database %I template template0 owner %I encoding %L lc_collate %L lc_ctype %L',"
            " $1::text, $2::text, $3::text, $4::text, $5::text)",
            name,
            like["owner"],
            like["encoding"],
            like["datcollate"],
            like["datctype"],
        )
    await connection.execute(statement)


async def drop_database(connection: asyncpg.Connection, name: str) -> None:
    await connection.execute(
        await connection.fetchval("select format('drop database if exists %I with (force)', $1::text)", name)
    )


async def swap(connection: asyncpg.Connection, made: str, target: str, aside: str | None) -> None:
    """`made` takes the name `target`, and what had it is called `aside`: both or neither.

    Raises asyncpg.ObjectInUseError while others are connected.
    """
    async with connection.transaction():
        for old, new in ((target, aside), (made, target)):
            if new is not None:
                await connection.execute(
                    await connection.fetchval(
                        "select format('alter database %I rename to %I', $1::text, $2::text)", old, new
                    )
                )


async def foreign_keys(connection: asyncpg.Connection) -> list[tuple[str, str]]:
    """Referencing and referenced table of every foreign key between two tables."""
    return [(row["child"], row["parent"]) for row in await connection.fetch(FOREIGN_KEYS)]
