"""Random statements over everything that the catalog names, in every form that may carry a value out."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from tests.isolation.rows import World

BLOCKING = (
    "pg_sleep", "pg_terminate_backend", "pg_cancel_backend", "pg_promote", "pg_stat_reset", "repeat", "lpad", "rpad",
    "generate_series", "pg_wal_replay",
)  # fmt: skip
"""Beginnings of names that only cost time, or end sessions of the same login: docs/design/tenancy.md says so of them."""


@dataclass(frozen=True)
class Relation:
    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Catalog:
    ours: tuple[Relation, ...]
    system: tuple[Relation, ...]
    functions: tuple[Function, ...]
    products: tuple[Function, ...]
    operators: tuple[tuple[str, str, str], ...]


async def read_catalog(superuser: asyncpg.Connection, login: str) -> Catalog:
    """All relations, whatever the login may do with them, and every function that it may execute."""
    relations = await superuser.fetch("""
        select n.nspname as schema, quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name,
            array(select quote_ident(attname) from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped) as columns
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p', 'v', 'm') and n.nspname in ('public', 'vanilla', 'pg_catalog', 'information_schema')
        order by 2""")
    functions = await superuser.fetch(
        """
        select n.nspname as schema, quote_ident(n.nspname) || '.' || quote_ident(p.proname) as name,
            array(select format_type(t, null) from unnest(p.proargtypes) t) as arguments
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where p.prokind in ('f', 'a') and has_function_privilege($1, p.oid, 'execute') and has_schema_privilege($1, n.oid, 'usage')
          and not exists (select from unnest($2::text[]) b where p.proname like b || '%') order by p.oid""",
        login,
        list(BLOCKING),
    )
    operators = await superuser.fetch("""
        select o.oprname, format_type(o.oprleft, null) as left, format_type(o.oprright, null) as right from pg_operator o
        where o.oprleft <> 0 order by o.oid""")

    def pick(*schemas: str) -> tuple[Relation, ...]:
        return tuple(
            Relation(r["name"], tuple(r["columns"])) for r in relations if r["schema"] in schemas and r["columns"]
        )

    made = [(f["schema"], Function(f["name"], tuple(f["arguments"]))) for f in functions]
    return Catalog(
        pick("public", "vanilla"),
        pick("pg_catalog", "information_schema"),
        tuple(f for schema, f in made if schema == "pg_catalog"),
        tuple(f for schema, f in made if schema != "pg_catalog"),
        tuple((o["oprname"], o["left"], o["right"]) for o in operators),
    )


class Generator:
    """Statements of one seed. It knows what an attacker may know: A's ids, and the ids of B's tenant and two users."""

    def __init__(self, seed: int, catalog: Catalog, world: World, login: str):
        self._dice = random.Random(seed)
        self._catalog = catalog
        self._login = login
        a, b = world.a, world.b
        self._b = b.id
        self._ids = (a.id, b.id, a.user.id, b.user.id, b.admin.id, "00000000-0000-0000-0000-000000000000")
        self._words = (
            a.word,
            "canary",
            "x",
            "",
            "%",
            "public.users",
            "vanilla.context_keys",
            "vanilla_app",
            "postgresql.conf",
            *self._ids,
        )
        self._makers: tuple[tuple[int, Callable[[], str]], ...] = (
            (14, self.query), (4, self._oracle), (5, self._error), (10, self._call), (8, self._product), (8, self._change),
            (5, self._setting), (4, self._role), (4, self._block), (4, self._prepared), (4, self._copy), (5, self._definition),
            (3, self._cursor), (4, self._explained), (4, self._session), (3, self._xml), (3, self._operator), (3, self._large),
        )  # fmt: skip

    def statement(self) -> str:
        weights, makers = zip(*self._makers, strict=True)
        return self._dice.choices(makers, weights)[0]()

    def one(self, *choices: str) -> str:
        return self._dice.choice(choices)

    def _relation(self) -> Relation:
        return self._dice.choice(self._catalog.ours if self._dice.random() < 0.8 else self._catalog.system)

    def _columns(self, relation: Relation, alias: str) -> str:
        kind = self._dice.randrange(4)
        if kind == 0:
            return f"{alias}.*"
        if kind == 1:
            return f"{alias}::text"
        if kind == 2:
            return f"to_jsonb({alias})"
        many = self._dice.sample(relation.columns, min(len(relation.columns), self._dice.randrange(1, 4)))
        return ", ".join(f"{alias}.{c}" for c in many)

    def _predicate(self, relation: Relation, alias: str) -> str:
        column = f"{alias}.{self._dice.choice(relation.columns)}"
        if "tenant_id" in relation.columns and self._dice.random() < 0.6:
            column = f"{alias}.tenant_id"
        return self.one(
            f"{column}::text = '{self._b}'", f"{column}::text like '%canary%'", f"{column} is not null", "true",
            f"{column} is distinct from null or true", f"{column}::text <> '{self._ids[0]}'",
            f"{column}::text in (select x::text from {self._relation().name} x)",
            f"exists (select from {self._relation().name} y where y::text like '%' || {column}::text || '%')",
        )  # fmt: skip

    def query(self) -> str:
        one, two = self._relation(), self._relation()
        where = self._predicate(one, "x")
        columns = self._columns(one, "x")
        return self.one(
            f"select {columns} from {one.name} x where {where} limit 40",
            f"select count(*), min(x::text), max(x::text) from {one.name} x where {where}",
            f"select string_agg(x::text, ',') from {one.name} x where {where}",
            f"select {columns}, {self._columns(two, 'y')} from {one.name} x join {two.name} y on {self._predicate(two, 'y')} limit 20",
            f"select {columns} from {one.name} x full join {two.name} y on false where {where} limit 20",
            f"with c as materialized (select * from {one.name} x where {where}) select c::text from c limit 20",
            f"with c as (delete from {one.name} x where {where} returning x.*) select c::text from c",
            f"select s.v from {one.name} x, lateral (select y::text as v from {two.name} y where {self._predicate(two, 'y')} limit 3) s limit 20",
            f"select (select string_agg(x::text, ',') from {one.name} x where {where})",
            f"table {one.name}",
            f"select x::text from {one.name} x union all select y::text from {two.name} y limit 30",
            f"select array_agg(x) from {one.name} x where {where}",
            f"select {columns}, row_number() over (order by x::text), lag(x::text) over (order by x::text) from {one.name} x limit 30",
        )

    def _oracle(self) -> str:
        """An error that a foreign row alone can cause; some views of the system show the statement that asks, so not they."""
        relation = self._dice.choice([r for r in self._catalog.ours if "tenant_id" in r.columns])
        return f"select 1 / (case when x.tenant_id = '{self._b}' then 0 else 1 end) from {relation.name} x"

    def _error(self) -> str:
        relation = self._relation()
        column = self._dice.choice(relation.columns)
        kind = self.one(
            "int",
            "uuid",
            "jsonb",
            "date",
            "inet",
            "xml",
            "regclass",
            "tsquery",
            "boolean",
            "numeric",
            "int[]",
            "regrole",
        )
        return self.one(
            f"select (x.{column}::text)::{kind} from {relation.name} x",
            f"select cast(x::text as {kind}) from {relation.name} x where {self._predicate(relation, 'x')}",
            f"select to_timestamp(x.{column}::text, x.{column}::text) from {relation.name} x",
            f"select regexp_match('a', x.{column}::text || '(') from {relation.name} x",
            f"select set_config(x.{column}::text, x.{column}::text, true) from {relation.name} x",
            f"select nextval(x.{column}::text::regclass) from {relation.name} x",
        )

    def value(self, kind: str) -> str:
        base = kind.removesuffix("[]")
        word = self._dice.choice(self._words)
        if kind.endswith("[]"):
            return f"array[{self.value(base)}]"
        values = {
            "uuid": f"'{self._dice.choice(self._ids)}'::uuid",
            "text": f"'{word}'", "name": f"'{word}'::name", "cstring": f"'{word}'", "character varying": f"'{word}'",
            "integer": self.one("0", "1", "-1", "7", "1000"), "bigint": self.one("0", "1", "-1", "1000::bigint"),
            "smallint": "1::smallint", "numeric": "1.5", "double precision": "0.5::float8", "boolean": self.one("true", "false"),
            "oid": f"'{self._relation().name}'::regclass::oid", "regclass": f"'{self._relation().name}'::regclass",
            "bytea": f"'{word}'::bytea", "json": "'{\"a\": 1}'::json", "jsonb": "'{\"a\": 1}'::jsonb",
            "timestamp with time zone": "now()", "timestamp without time zone": "now()::timestamp", "date": "current_date",
            "interval": self.one("'1 hour'::interval", "'-1 hour'::interval"), "record": "(select x from public.users x limit 1)",
            "anyelement": f"(select x::text from {self._relation().name} x limit 1)", "refcursor": "'c'::refcursor",
            "xid8": "'1'::xid8", "pg_lsn": "'0/1'::pg_lsn", "internal": "null",
        }  # fmt: skip
        if self._dice.random() < 0.04:
            return "null"
        return values.get(base, f"null::{base}" if not base.startswith(("any", '"any')) else "1")

    def _invocation(self, function: Function) -> str:
        return f"{function.name}({', '.join(self.value(kind) for kind in function.arguments)})"

    def _call(self) -> str:
        function = self._dice.choice(self._catalog.functions)
        text = [i for i, kind in enumerate(function.arguments) if kind in ("text", "name")]
        if text and self._dice.random() < 0.4:
            relation = self._relation()
            values = [
                f"x.{self._dice.choice(relation.columns)}::{k}" if i == text[0] else self.value(k)
                for i, k in enumerate(function.arguments)
            ]
            return f"select {function.name}({', '.join(values)})::text from {relation.name} x limit 20"
        return self.one(
            f"select {self._invocation(function)}::text", f"select f::text from {self._invocation(function)} f limit 50"
        )

    def _product(self) -> str:
        return f"select f::text from {self._invocation(self._dice.choice(self._catalog.products))} f limit 50"

    def _change(self) -> str:
        one, two = self._relation(), self._relation()
        column, where = self._dice.choice(one.columns), self._predicate(one, "x")
        source = self.one(
            "null", f"'{self._b}'", f"x.{self._dice.choice(one.columns)}", f"(select y::text from {two.name} y limit 1)"
        )
        many = ", ".join(self._dice.sample(one.columns, min(3, len(one.columns))))
        returning = self.one("", " returning *", " returning x::text", " returning 1")
        return self.one(
            f"update {one.name} x set {column} = {source} where {where}{returning}",
            f"delete from {one.name} x where {where}{returning}",
            f"delete from {one.name} x using {two.name} y where {where}{returning}",
            f"insert into {one.name} as x ({many}) select {many} from {one.name} limit 3{returning}",
            f"insert into {one.name} as x select * from {one.name} on conflict do nothing{returning}",
            f"insert into {one.name} as x (tenant_id) values ('{self._b}') on conflict do nothing{returning}",
            f"merge into {one.name} x using {two.name} y on {where} when matched then update set {column} = {source}",
            f"merge into {one.name} x using (select 1) y on {where} when matched then delete",
            f"select x::text from {one.name} x where {where} for {self.one('update', 'share', 'no key update', 'key share')} nowait",
            f"lock table {one.name} in {self.one('access share', 'row exclusive', 'access exclusive')} mode nowait",
            f"truncate {one.name}{self.one('', ' cascade', ' restart identity')}",
        )

    def _setting(self) -> str:
        name = self.one("vanilla.context", "row_security", "search_path", "role", "session_authorization", "vanilla.request_id",
                        "vanilla.client_ip", "app.tenant_id", "request.jwt.claims", "log_parameter_max_length_on_error",
                        "client_min_messages", "debug_print_plan", "track_activities", "session_replication_role", "plan_cache_mode",
                        "statement_timeout", "default_transaction_read_only", "check_function_bodies", "log_statement", "xmlbinary")  # fmt: skip
        value = self.one("off", "on", "", "none", "debug5", "pg_temp, public", "force_generic_plan", "-1", "0", "vanilla_definer",
                         f"v1.0.{self._b}.{self._ids[4]}.admin.9999999999.{'0' * 64}", *self._ids)  # fmt: skip
        return self.one(
            f"set {self.one('', 'local ', 'session ')}{name} = '{value}'",
            f"select set_config('{name}', '{value}', {self.one('true', 'false')})",
            f"reset {name}",
            "reset all",
            f"show {name}",
            "discard all",
            f"set local {name} to default",
            f"select vanilla.set_context('{value}')",
            f"select current_setting('{name}', true)",
        )

    def _role(self) -> str:
        role = self.one("vanilla_owner", "vanilla_definer", "vanilla_system", "vanilla_keyring", "vanilla_operator", "vanilla_app",
                        "vanilla_runtime", "vanilla_readonly", "postgres", "pg_read_all_data", "pg_monitor")  # fmt: skip
        relation = self._relation().name
        return self.one(
            f"set role {role}", f"set local role {role}", f"set session authorization {role}", "reset role",
            "reset session authorization", f"grant {role} to {self._login}", f"grant all on {relation} to {self._login}",
            f"grant all on all tables in schema public to {self._login}", f"revoke all on {relation} from {role}",
            f"alter role {self._login} {self.one('superuser', 'bypassrls', 'createrole', 'inherit')}", f"alter role {role} password 'x'",
            f"create role mine in role {role}", f"reassign owned by {role} to {self._login}", f"drop owned by {role}",
            f"alter default privileges grant all on tables to {self._login}",
        )  # fmt: skip

    def _block(self) -> str:
        inner = self.query().replace("$", "")
        return self.one(
            f"do $block$ declare r record; begin for r in {inner} loop raise notice '%', r; end loop; end $block$",
            f"do $block$ begin execute $inner${inner}$inner$; exception when others then raise warning '% %', sqlstate, sqlerrm; end $block$",
            f"do $block$ begin raise exception '%', (select string_agg(x::text, ',') from {self._relation().name} x); end $block$",
            f"do $block$ begin perform set_config('role', 'vanilla_definer', true); execute $inner${inner}$inner$; end $block$",
            f"do $block$ begin {self._change().replace('$', '').split(' returning')[0]}; end $block$",
        )

    def _prepared(self) -> str:
        return self.one(
            f"prepare p{self._dice.randrange(3)} as {self.query()}", f"execute p{self._dice.randrange(3)}",
            f"deallocate {self.one('all', 'p0', 'p1')}", "select * from pg_prepared_statements", f"prepare q (text) as select $1 || x::text from"
            f" {self._relation().name} x", "execute q('x')",
        )  # fmt: skip

    def _copy(self) -> str:
        relation = self._relation()
        return self.one(
            f"copy ({self.query()}) to stdout", f"copy {relation.name} to stdout", f"copy ({self.query()}) to stdout with (format csv)",
            f"copy {relation.name} to '/tmp/x'", f"copy {relation.name} from '/etc/passwd'", f"copy {relation.name} to program 'cat'",
            f"copy {relation.name} ({relation.columns[0]}) from program 'echo x'",
        )  # fmt: skip

    def _definition(self) -> str:
        one, function = self._relation().name, self._dice.choice(self._catalog.products).name
        return self.one(
            f"alter table {one} {self.one('disable row level security', 'no force row level security', 'owner to ' + self._login)}",
            f"create policy mine on {one} using (true)", f"drop policy app_select on {one}", f"create view public.mine as {self.query()}",
            f"create temp table mine as {self.query()}", f"create table public.mine as {self.query()}", "create schema mine",
            f"create function public.mine() returns text language sql security definer as $f${self.query()}$f$",
            f"create function pg_temp.mine() returns setof text language sql as $f$select x::text from {one} x$f$",
            f"create or replace function {function}() returns int language sql return 1", f"alter function {function} security invoker",
            f"create index on {one} (({self.one('1', 'tenant_id::text', '(1/0)')}))", f"create statistics mine on tenant_id, id from {one}",
            f"create trigger mine after insert on {one} execute function {function}()", f"create rule mine as on insert to {one} do also select 1",
            f"comment on table {one} is 'x'", f"security label on table {one} is 'x'", f"create publication mine for table {one}",
            "create extension dblink", "create server mine foreign data wrapper postgres_fdw", "import foreign schema public from server x into public",
            "create operator public.= (leftarg = uuid, rightarg = uuid, procedure = uuid_eq)", "create cast (uuid as text) with inout",
            f"alter table {one} add column mine text default (select 1)", f"drop table {one} cascade", f"create type pg_temp.uuid as enum ('{self._b}')",
            f"create materialized view mine as {self.query()}", f"refresh materialized view {one}", "create language plperlu",
            f"alter database {self.one('postgres', 'template1')} set search_path = pg_temp", "create event trigger mine on ddl_command_end execute function x()",
        )  # fmt: skip

    def _cursor(self) -> str:
        return self.one(
            f"declare c{self._dice.randrange(2)} cursor with hold for {self.query()}", f"fetch all from c{self._dice.randrange(2)}",
            "select * from pg_cursors", f"close {self.one('all', 'c0')}", f"declare d scroll cursor for {self.query()}",
        )  # fmt: skip

    def _explained(self) -> str:
        options = self.one(
            "analyze",
            "analyze, verbose",
            "verbose, settings",
            "analyze, format json",
            "generic_plan",
            "analyze, serialize",
        )
        return f"explain ({options}) {self.one(self.query(), self._oracle(), self._change())}"

    def _session(self) -> str:
        return self.one(
            "listen mine", "unlisten *", f"notify mine, '{self._b}'", "select pg_notify('mine', x::text) from public.levels x",
            "select x::text from pg_stat_activity x", "select x::text from pg_locks x", "select x::text from pg_stats x where schemaname <> 'pg_catalog'",
            "select x::text from pg_stats_ext x", "select x::text from pg_stat_user_tables x", "select x::text from pg_stat_database x",
            "select pg_try_advisory_lock(hashtext('vanilla_saas.maintenance'))", "select pg_advisory_unlock_all()",
            "select pg_export_snapshot()", "select x::text from pg_shadow x", "select x::text from pg_authid x", "select x::text from pg_hba_file_rules x",
            "select pg_stat_get_backend_activity(b) from pg_stat_get_backend_idset() b", "select x::text from pg_stat_get_activity(null) x",
            "select x::text from pg_replication_slots x", "select pg_current_logfile()", "select x::text from pg_file_settings x",
            "select txid_current(), pg_current_snapshot()::text", "select x::text from pg_stat_progress_analyze x", "savepoint s", "rollback to s",
            f"{self.one('analyze', 'vacuum', 'cluster', 'reindex table', 'checkpoint --')} {self._relation().name}",
            "set transaction isolation level serializable", "select x::text from pg_stat_statements x", "select x::text from pg_buffercache x",
        )  # fmt: skip

    def _xml(self) -> str:
        relation, inner = self._relation().name, self.query().replace("'", "''")
        return self.one(
            f"select query_to_xml('{inner}', true, false, '')::text", f"select table_to_xml('{relation}', true, false, '')::text",
            f"select schema_to_xml('{self.one('public', 'vanilla')}', true, false, '')::text", "select database_to_xml(true, false, '')::text",
            f"select * from ts_stat('select to_tsvector(x::text) from {relation} x')", f"select query_to_xml_and_xmlschema('{inner}', true, false, '')::text",
            f"select ts_rewrite('a'::tsquery, 'select x::text::tsquery, x::text::tsquery from {relation} x')::text",
        )  # fmt: skip

    def _operator(self) -> str:
        name, left, right = self._dice.choice(self._catalog.operators)
        relation = self._relation()
        side = (
            f"x.{self._dice.choice(relation.columns)}::text::{left}" if self._dice.random() < 0.5 else self.value(left)
        )
        return f"select ({side} operator(pg_catalog.{name}) {self.value(right)})::text from {relation.name} x limit 20"

    def _large(self) -> str:
        return self.one(
            "select lo_create(0)", "select lo_import('/etc/passwd')", "select lo_export(1, '/tmp/x')", "select loid from pg_largeobject",
            "select encode(lo_get(m.oid), 'escape') from pg_largeobject_metadata m", f"select lo_from_bytea(0, x::text::bytea) from {self._relation().name} x",
            "select pg_read_file('pg_hba.conf')", "select pg_read_binary_file('global/pg_control')", "select pg_ls_dir('.')", "select pg_ls_waldir()",
            "select pg_stat_file('.')", "select pg_logical_slot_get_changes('x', null, null)", "select pg_logical_emit_message(true, 'x', 'y')",
            "select dblink('host=/tmp', 'select 1')", "select pg_relation_filepath('public.users')", "select pg_get_functiondef('vanilla.claim'::regproc)",
        )  # fmt: skip
