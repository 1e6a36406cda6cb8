"""What a login may try with a relation, command by command, and what each attempt must reach."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tests.isolation.catalog import HIDDEN, PLATFORM, Caller, Closed, Table, enumeration
from tests.isolation.rows import World

REFUSED = ("42501", "VS401")
NO_TABLE = ("55000", "42809", "0A000")
"""How PostgreSQL says that a view is no table: not updatable, of the wrong kind, not supported."""
NEW_ID = "ffffffff-0000-7000-8000-000000000001"


@dataclass(frozen=True)
class Attempt:
    """A statement and the number of rows it must reach: 0 is satisfied by a refusal, anything else is not.

    `rows` None: any number, it is a plan. `answer` is in what a query must return. `twin` is the same with an id
    that nobody has: both must be answered alike, or the first tells that there is such a row.
    """

    name: str
    statement: str
    rows: int | None = 0
    how: Literal["status", "rows", "plan", "copy out", "copy in"] = "status"
    writes: bool = True
    answer: str | None = None
    twin: str | None = None
    refusals: tuple[str, ...] = REFUSED
    must_refuse: bool = False
    columns: tuple[str, ...] = ()
    data: bytes = b""


@dataclass(frozen=True)
class Place:
    """A table as one login in one context has it; the figures are a superuser's, from the promise of the class."""

    world: World
    table: Table
    role: str
    caller: Caller
    version: int
    insertable: list[str]
    updatable: list[str]
    row: dict[str, object]
    row_b: dict[str, object]
    changeable: int
    seen: int
    seen_of_own: int
    seen_of_b: int
    seen_keys: str | None

    @property
    def name(self) -> str:
        return f"public.{self.table.name}"

    @property
    def columns(self) -> list[str]:
        """Only columns that are granted: else the column grant would refuse before any policy is asked."""
        return self.insertable or [c.name for c in self.table.columns]

    @property
    def readable(self) -> str:
        return ", ".join(self.table.readable)

    @property
    def settable(self) -> str:
        """A column that no key holds and no check names: one value for all rows offends nothing but a policy."""
        checked = " ".join(self.table.checks.values())
        free = [c for c in self.updatable if c not in self.table.unique_columns]
        free.sort(key=lambda column: re.search(rf"\b{column}\b", checked) is not None)
        return free[0] if free else self.table.columns[-1].name

    @property
    def value(self) -> str:
        return f"(jsonb_populate_record(null::{self.name}, {literal(self.row)})).{self.settable}"

    @property
    def one(self) -> int:
        """Rows that an insertion for the own tenant must reach."""
        return 1 if self.changeable else 0

    @property
    def elsewhere(self) -> str:
        """The tenant beside b that is not the caller's."""
        return PLATFORM if self.caller.tenant != PLATFORM else self.world.a.id

    def insert(self, row: dict[str, object] | None = None, **given: object) -> str:
        return insertion(self.table, self.columns, (row or fresh(self.table, self.row)) | given)


def selects(p: Place) -> Iterator[Attempt]:
    b = p.world.b.id
    if p.seen_keys is not None:
        one = 1 if p.caller.member else None  # nobody is refused, or told of nothing
        yield Attempt("own rows", f"{keys_of(p.table)} from {p.name}", one, "rows", writes=False, answer=p.seen_keys)
    yield Attempt("every row", f"select {p.readable} from {p.name}", p.seen, "rows", writes=False)
    for column, theirs in (("tenant_id", b), ("id", p.row_b.get("id"))):
        if theirs:
            by = f"select 1 from {p.name} where {column} ="
            twin = None if p.seen_of_b else f"{by} '{NEW_ID}'"
            yield Attempt(f"by b's {column}", f"{by} '{theirs}'", p.seen_of_b, writes=False, twin=twin)
    for column in sorted(HIDDEN.get(p.table.name, set())):
        yield Attempt(f"of {column}", f"select {column} from {p.name}", writes=False)
        yield Attempt(f"row with {column}", f"select to_jsonb(x) from {p.name} x", writes=False)
        yield Attempt(f"order by {column}", f"select 1 from {p.name} order by {column}", writes=False)


def locks(p: Place) -> Iterator[Attempt]:
    for strength in ("update", "no key update", "share", "key share"):
        yield Attempt(f"for {strength}", f"select 1 from {p.name} for {strength}", p.changeable, writes=False)
    of_b = f"select 1 from {p.name} where tenant_id = '{p.world.b.id}' for update skip locked"
    yield Attempt("of b, skip locked", of_b, writes=False)


def copies_to(p: Place) -> Iterator[Attempt]:
    columns = tuple(p.table.readable)
    query = f"select {p.readable} from {p.name}"
    # a partitioned table as such holds no row: COPY reads it alone, under policies
    seen = 0 if p.table.partitioned else p.seen
    yield Attempt("table", p.table.name, seen, "copy out", writes=False, columns=columns)
    yield Attempt("query", query, p.seen, "copy out", writes=False)
    yield Attempt("of b", f"{query} where tenant_id = '{p.world.b.id}'", p.seen_of_b, "copy out", writes=False)


def copies_from(p: Place) -> Iterator[Attempt]:
    """Refused for everybody: whoever may insert is told to use INSERT, because the table has row-level security."""
    refusal = ("0A000",) if p.insertable else ("42501",)
    for name, row in (("own", fresh(p.table, p.row)), ("b's", fresh(p.table, p.row_b))):
        data = _csv([row.get(c) for c in p.columns])
        yield Attempt(
            name,
            p.table.name,
            how="copy in",
            refusals=refusal,
            must_refuse=True,
            columns=tuple(p.columns),
            data=data,
        )


def inserts(p: Place) -> Iterator[Attempt]:
    b, owner = p.world.b.id, p.table.owner
    yield Attempt("for own tenant", p.insert(), p.one)
    yield Attempt("for b", p.insert(fresh(p.table, p.row_b)))
    yield Attempt("for b with own values", p.insert(tenant_id=b), twin=p.insert(tenant_id=NEW_ID))
    yield Attempt("for another tenant", p.insert(tenant_id=p.elsewhere))
    yield Attempt("for no tenant", p.insert(tenant_id=None))
    yield Attempt("a row of b", p.insert(p.row_b), twin=p.insert(fresh(p.table, p.row_b)))
    if owner and owner != "id":
        yield Attempt("with b's user", p.insert(**{owner: p.world.b.user.id}))
        yield Attempt("for another member", p.insert(**{owner: p.world.a.other.id}))
        yield Attempt("for b with own user", p.insert(tenant_id=b, **{owner: p.caller.user}))


def conflicts_ignored(p: Place) -> Iterator[Attempt]:
    ignoring = "on conflict do nothing"
    fresh_b = f"{p.insert(fresh(p.table, p.row_b))} {ignoring}"
    yield Attempt("over b", f"{p.insert(p.row_b)} {ignoring}", twin=fresh_b)
    yield Attempt("over own", f"{p.insert(p.row)} {ignoring}")
    yield Attempt("fresh", f"{p.insert()} {ignoring}", p.one)


def upserts(p: Place) -> Iterator[Attempt]:
    keys = ", ".join(p.table.primary_key)
    update = f"on conflict ({keys}) do update set {p.settable} = excluded.{p.settable}"
    fresh_b = f"{p.insert(fresh(p.table, p.row_b))} {update}"
    yield Attempt("over b", f"{p.insert(p.row_b)} {update}", twin=fresh_b)
    yield Attempt("over own", f"{p.insert(p.row)} {update}", p.one)


def updates(p: Place) -> Iterator[Attempt]:
    update = f"update {p.name} set {p.settable} = {p.value}"
    yield Attempt("blind", update, p.changeable)
    yield Attempt("of b", f"{update} where tenant_id = '{p.world.b.id}'", twin=f"{update} where tenant_id = '{NEW_ID}'")
    yield Attempt("by b's key", f"{update} where {key(p.table, p.row_b)}")
    yield Attempt("move to b", f"update {p.name} set tenant_id = '{p.world.b.id}'")
    yield Attempt("move to another tenant", f"update {p.name} set tenant_id = '{p.elsewhere}'")


def deletes(p: Place) -> Iterator[Attempt]:
    yield Attempt("blind", f"delete from {p.name}", p.changeable)
    of_b = f"delete from {p.name} where tenant_id = "
    yield Attempt("of b", f"{of_b}'{p.world.b.id}'", twin=f"{of_b}'{NEW_ID}'")
    yield Attempt("by b's key", f"delete from {p.name} where {key(p.table, p.row_b)}")


def merges(p: Place) -> Iterator[Attempt]:
    merge, update = f"merge into {p.name} t using (select 1) s on", f"then update set {p.settable} = {p.value}"
    b, own = f"t.tenant_id = '{p.world.b.id}'", f"t.tenant_id = '{p.caller.tenant}'"
    yield Attempt("update of b", f"{merge} {b} when matched {update}")
    yield Attempt("delete of b", f"{merge} {b} when matched then delete")
    # a row that is seen and may not be changed stops the whole statement
    all_own = p.changeable if p.changeable == p.seen_of_own else 0
    yield Attempt("update of own", f"{merge} {own} when matched {update}", all_own)
    yield Attempt("delete of own", f"{merge} {own} when matched then delete", all_own)
    yield Attempt("insert for own tenant", _merge_insert(p, fresh(p.table, p.row)), p.one)
    yield Attempt("insert for b", _merge_insert(p, fresh(p.table, p.row_b)))
    if p.version >= 17:
        # it names no column, so the policy for reading does not narrow it: b's rows stop it
        yield Attempt("delete by source", f"{merge} false when not matched by source then delete")
        yield Attempt(
            "returning", f"{merge} {own} when matched {update} returning {_of('t', p.table)}", all_own, "rows"
        )


def _merge_insert(p: Place, row: dict[str, object]) -> str:
    values = ", ".join(f"s.{c}" for c in p.columns)
    return (
        f"merge into {p.name} t using (select * from jsonb_populate_record(null::{p.name}, {literal(row)})) s on false"
        f" when not matched then insert ({', '.join(p.columns)}) values ({values})"
    )


def truncates(p: Place) -> Iterator[Attempt]:
    yield Attempt("cascade", f"truncate {p.name} cascade", must_refuse=True)
    yield Attempt("alone", f"truncate {p.name}", must_refuse=True)


def returnings(p: Place) -> Iterator[Attempt]:
    update, back = f"update {p.name} set {p.settable} = {p.value}", f"returning {p.readable}"
    yield Attempt("insert", f"{p.insert()} {back}", p.one, "rows")
    yield Attempt("insert for b", f"{p.insert(fresh(p.table, p.row_b))} {back}", how="rows")
    yield Attempt("upsert over b", f"{p.insert(p.row_b)} on conflict do nothing {back}", how="rows")
    yield Attempt("update", f"{update} {back}", p.changeable, "rows")
    yield Attempt("delete", f"delete from {p.name} {back}", p.changeable, "rows")
    yield Attempt("in a with", f"with gone as (delete from {p.name} {back}) table gone", p.changeable, "rows")


def explains(p: Place) -> Iterator[Attempt]:
    """The statement runs, and its plan is told: with the number of rows that a policy held back, and none of them."""
    explain = "explain (analyze, verbose, settings)"
    yield Attempt("select", f"{explain} select {p.readable} from {p.name}", None, "plan", writes=False)
    yield Attempt("update", f"{explain} update {p.name} set {p.settable} = {p.value}", None, "plan")
    yield Attempt("delete", f"{explain} delete from {p.name}", None, "plan")
    yield Attempt("insert for b", f"{explain} {p.insert(fresh(p.table, p.row_b))}", how="plan")


def references(p: Place) -> Iterator[Attempt]:
    """Every column that names a row, with the own, b's, nobody's and no value; needs the foreign keys in force."""
    referencing = {c for k in p.table.foreign_keys for c in k.columns}
    where = key(p.table, p.row)
    yield Attempt("insert own", p.insert(), p.one)
    for column in p.table.columns:
        if column.type != "uuid" or column.name == "tenant_id":
            continue
        name, theirs = column.name, p.row_b[column.name] or p.world.b.user.id
        must_hold = name in referencing or name == p.table.owner
        stops = (*REFUSED, "23503", "23514") if must_hold else REFUSED
        one = 0 if must_hold else p.one
        twin = p.insert(**{name: NEW_ID})
        yield Attempt(f"insert b's {name}", p.insert(**{name: theirs}), one, twin=twin, refusals=stops)
        missing = p.insert(**{name: None})
        nothing = (*REFUSED, "23502") if column.not_null else REFUSED
        yield Attempt(f"insert no {name}", missing, 0 if column.not_null else p.one, refusals=nothing)
        if name in p.updatable and p.row[name]:
            update = f"update {p.name} set {name} = '{{}}' where {where}"
            own, random = update.format(p.row[name]), update.format(NEW_ID)
            yield Attempt(f"update own {name}", own, p.one)
            yield Attempt(f"update b's {name}", update.format(theirs), one, twin=random, refusals=stops)


def alters(p: Place) -> Iterator[Attempt]:
    yield Attempt("disable", f"alter table {p.name} disable row level security", must_refuse=True)
    yield Attempt("policy", f"create policy mine on {p.name} using (true)", must_refuse=True)
    if p.table.parent:
        yield Attempt("detach", f"alter table public.{p.table.parent} detach partition {p.name}", must_refuse=True)


COMMANDS: dict[str, Callable[[Place], Iterator[Attempt]]] = {
    "select": selects,
    "select for update, share": locks,
    "copy to": copies_to,
    "copy from": copies_from,
    "insert": inserts,
    "on conflict do nothing": conflicts_ignored,
    "on conflict do update": upserts,
    "update": updates,
    "delete": deletes,
    "merge": merges,
    "truncate": truncates,
    "returning": returnings,
    "explain analyze": explains,
    "references": references,
    "alter": alters,
}

_CLOSED = {
    "select": "select 1 from {r}",
    "select for update, share": "select 1 from {r} for share",
    "insert": "insert into {r} default values",
    "on conflict do nothing": "insert into {r} default values on conflict do nothing",
    "on conflict do update": "insert into {r} default values on conflict ({c}) do update set {c} = excluded.{c}",
    "update": "update {r} set {c} = {c}",
    "delete": "delete from {r}",
    "merge": "merge into {r} t using (select 1) s on true when matched then delete",
    "truncate": "truncate {r}",
    "returning": "delete from {r} returning {c}",
    "explain analyze": "explain (analyze) select * from {r}",
    "alter": "alter table {r} disable row level security",
}
_SEQUENCE = {
    "select": "select last_value from {r}",
    "nextval": "select nextval('{r}')",
    "setval": "select setval('{r}', 1)",
    "currval": "select currval('{r}')",
    "alter": "alter sequence {r} restart",
}


def closed_attempts(relation: Closed) -> Iterator[tuple[str, Attempt]]:
    """Every command on a relation that no login may touch: refused because of the privilege, in every context."""
    refused = Attempt("", "", refusals=("42501",), must_refuse=True)
    statements = _SEQUENCE if relation.kind == "S" else _CLOSED
    for command, text in statements.items():
        # that a view takes no writes is found before privileges are looked at, whoever asks
        never = relation.kind == "v" and command not in ("select", "explain analyze")
        states = {"refusals": (*refused.refusals, *NO_TABLE)} if never else {}
        yield command, replace(refused, statement=text.format(r=relation.name, c=relation.column), **states)
    if relation.kind != "S":
        yield "copy to", replace(refused, statement=f"select * from {relation.name}", how="copy out")
        states = {"refusals": (*refused.refusals, *NO_TABLE)} if relation.kind == "v" else {}
        yield "copy from", replace(refused, statement=relation.name, how="copy in", data=b"x\n", **states)


def commands_of(kind: str, public: bool) -> set[str]:
    """The commands that a relation of this kind must be tried with."""
    if kind == "S":
        return set(_SEQUENCE)
    return set(COMMANDS) if public and kind in ("r", "p") else set(_CLOSED) | {"copy to", "copy from"}


def keys_of(table: Table) -> str:
    """`select` of one text that names every row which the statement sees."""
    keys = f"concat_ws('|', {', '.join(table.primary_key)})"
    return f"select coalesce(md5(string_agg({keys}, ',' order by {keys})), 'nothing')"


def key(table: Table, row: dict[str, object]) -> str:
    return " and ".join(f"{column} = '{row[column]}'" for column in table.primary_key)


TIED = {("engine_aliases", "alias"), ("engine_assignments", "target")}
"""Columns of keys that a check ties to others: they stay, and nobody but functions writes these tables."""


def fresh(table: Table, row: dict[str, object]) -> dict[str, object]:
    """The row under keys that nobody has."""
    referencing = {column for k in table.foreign_keys for column in k.columns}
    made = dict(row)
    for name in table.unique_columns - referencing - {"tenant_id", "user_id", "account_tenant_id"}:
        column = table.column(name)
        if column.type == "uuid":
            made[name] = NEW_ID
        elif (table.name, name) in TIED:
            continue
        elif options := enumeration(table, name):
            made[name] = options[(options.index(str(made[name])) + 1) % len(options)]
        elif column.type == "text" and made[name] is not None:
            made[name] = f"{made[name]}.fresh" if name == "key" else f"fresh{str(made[name])[5:]}"
        elif column.type == "bytea":
            made[name] = "\\x" + "ab" * 32
        elif column.type == "bigint":
            made[name] = 10**12
    return made


def insertion(table: Table, columns: list[str], row: dict[str, object]) -> str:
    names = ", ".join(columns)
    record = f"jsonb_populate_record(null::public.{table.name}, {literal(row)})"
    return f"insert into public.{table.name} ({names}) select {names} from {record}"


def literal(row: dict[str, object]) -> str:
    return "'" + json.dumps(row).replace("'", "''") + "'"


def _of(alias: str, table: Table) -> str:
    return ", ".join(f"{alias}.{c}" for c in table.readable)


def _csv(values: list[object]) -> bytes:
    """One line for COPY: null is empty, arrays and objects are written as PostgreSQL reads them."""

    def text(value: object) -> str:
        if isinstance(value, list):
            return "{" + ",".join(json.dumps(v) for v in value) + "}"
        if isinstance(value, dict):
            return json.dumps(value)
        return "" if value is None else str(value)

    line = io.StringIO()
    csv.writer(line).writerow([text(v) for v in values])
    return line.getvalue().encode()
