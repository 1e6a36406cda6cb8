"""What the catalog says of schemas public and vanilla, and what this suite expects of each ownership class."""

import re
from dataclasses import dataclass, field

import asyncpg

LOGINS = ("vanilla_app", "vanilla_runtime", "vanilla_readonly")
ACTS_AS = {"authenticated": "vanilla_app", "anon": "vanilla_runtime"}
"""Supabase's API roles, and the login whose rights on tables each must have: vanilla_runtime has none."""
PLATFORM = "00000000-0000-0000-0000-000000000000"

HIDDEN = {
    "users": {"password_hash"},
    "api_keys": {"key_hash"},
    "ai_providers": {"secret"},
    "webhook_endpoints": {"secret", "previous_secret"},
    "payment_accounts": {"secret", "webhook_secret"},
    "channel_participants": {"lease_token"},
}
"""Secret columns of tables that a login may read: no column grant."""

OWNER_COLUMN = {"users": "id"}
"""The column that names the owner, where it is not user_id."""

WRITABLE = {"ai_providers", "ai_models", "system_configurations"}
"""Tables that a request may write without a function."""


PUBLIC_FLAG = {
    "system_configurations": "is_public",
    "ai_workflows": "shared",
    "workflow_versions": "shared",
    "agents": "shared",
    "agent_versions": "shared",
}
"""The column that says which rows are for everyone; the others are for the tenant's admins or for their owner."""


@dataclass(frozen=True)
class Caller:
    """Whom the database must take a connection for: `member` is user, admin or None (nobody)."""

    member: str | None
    tenant: str
    user: str
    platform: bool = False
    """A super admin at the platform, who reads the registry of tenants."""


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    not_null: bool
    has_default: bool


@dataclass(frozen=True)
class ForeignKey:
    name: str
    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table or a partition (`parent`) of schema public; `checks` maps constraint names to definitions."""

    name: str
    parent: str | None
    partitioned: bool
    ownership: str | None
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    unique_columns: frozenset[str]
    foreign_keys: tuple[ForeignKey, ...]
    checks: dict[str, str] = field(hash=False)

    @property
    def owner(self) -> str | None:
        """The column of the row's owner, for the classes that have one."""
        if self.ownership not in ("user_owned", "user_read"):
            return None
        return OWNER_COLUMN.get(self.name, "user_id")

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)

    @property
    def readable(self) -> list[str]:
        return [c.name for c in self.columns if c.name not in HIDDEN.get(self.name, set())]

    def visible(self, caller: Caller) -> str | None:
        """The rows that a caller must see, as SQL; None: not even the table.

        Written from the promise in the design, not from the policies.
        """
        if self.parent or self.ownership == "platform_only":
            return None
        if caller.member is None:
            return "false"
        own = f"tenant_id = '{caller.tenant}'"
        if self.ownership == "tenant_registry":
            return "true" if caller.platform else own
        if self.ownership == "tenant_shared":
            return own
        if self.ownership == "platform_catalog":
            catalog = f"tenant_id in ('{caller.tenant}', '{PLATFORM}')"
            if self.name not in PUBLIC_FLAG:
                return catalog
            return f"({catalog} and {PUBLIC_FLAG[self.name]})" + (f" or {own}" if caller.member == "admin" else "")
        if self.ownership == "admin_only":
            return own if caller.member == "admin" else "false"
        if self.owner:
            mine = f"{self.owner} = '{caller.user}'"
            if self.name in PUBLIC_FLAG:
                mine = f"({mine} or {PUBLIC_FLAG[self.name]})"
            return own if caller.member == "admin" else f"{own} and {mine}"
        raise AssertionError(f"{self.name}: unknown ownership {self.ownership}")

    def changeable(self, role: str, caller: Caller) -> str | None:
        """The rows that a login may update and delete directly, as SQL; None: it has no such privilege."""
        if role != "vanilla_app" or self.name not in WRITABLE:
            return None
        if caller.member is None:
            return "false"
        own = f"tenant_id = '{caller.tenant}'"
        if self.ownership == "user_owned":
            return f"{own} and {self.owner} = '{caller.user}'"
        return own if caller.member == "admin" else "false"


@dataclass(frozen=True)
class Closed:
    """A relation that no login may touch at all: a table of schema vanilla, a sequence, a view that is not declared."""

    name: str
    kind: str
    column: str


async def read_relations(connection: asyncpg.Connection) -> dict[str, str]:
    """Every relation of both schemas that holds or gives rows, and its kind; indexes and composite types do not."""
    rows = await connection.fetch("""
        select format('%I.%I', n.nspname, c.relname) as name, c.relkind::text as kind
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('public', 'vanilla') and c.relkind not in ('i', 'I', 'c') order by 1""")
    return {row["name"]: row["kind"] for row in rows}


async def read_closed(connection: asyncpg.Connection) -> list[Closed]:
    """What is not a table or a partition of schema public."""
    relations = await read_relations(connection)
    found = []
    for name, kind in relations.items():
        if name.startswith("vanilla.") or kind not in ("r", "p"):
            column = await connection.fetchval(
                "select attname from pg_attribute where attrelid = $1::text::regclass and attnum = 1", name
            )
            found.append(Closed(name, kind, column))
    return found


async def read_tables(connection: asyncpg.Connection) -> list[Table]:
    """Every table and partition of schema public, parents first."""
    relations = await connection.fetch("""
        select c.oid, c.relname as name, p.relname as parent, c.relkind = 'p' as partitioned, o.ownership
        from pg_class c
        left join pg_inherits i on i.inhrelid = c.oid
        left join pg_class p on p.oid = i.inhparent
        left join vanilla.table_ownership o on o.relation = c.relname
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
        order by p.relname is not null, c.relname""")
    return [await _read_table(connection, relation) for relation in relations]


async def _read_table(connection: asyncpg.Connection, relation: asyncpg.Record) -> Table:
    columns = await connection.fetch(
        """
        select attname, format_type(atttypid, null) as type, attnotnull, atthasdef from pg_attribute
        where attrelid = $1 and attnum > 0 and not attisdropped and attgenerated = '' order by attnum""",
        relation["oid"],
    )
    constraints = await connection.fetch(
        """
        select conname, contype, confrelid::regclass::text as target, pg_get_constraintdef(oid) as definition,
            array(select attname::text from unnest(conkey) with ordinality k(n, i)
                  join pg_attribute a on a.attrelid = conrelid and a.attnum = k.n order by i) as columns,
            array(select attname::text from unnest(confkey) with ordinality k(n, i)
                  join pg_attribute a on a.attrelid = confrelid and a.attnum = k.n order by i) as target_columns
        from pg_constraint where conrelid = $1 and contype in ('p', 'f', 'c') order by conname""",
        relation["oid"],
    )
    unique = await connection.fetch(
        """
        select distinct a.attname::text as name from pg_index i join pg_attribute a
            on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
        where i.indrelid = $1 and i.indisunique""",
        relation["oid"],
    )
    return Table(
        name=relation["name"],
        parent=relation["parent"],
        partitioned=relation["partitioned"],
        ownership=relation["ownership"],
        columns=tuple(Column(c["attname"], c["type"], c["attnotnull"], c["atthasdef"]) for c in columns),
        primary_key=next((tuple(c["columns"]) for c in constraints if c["contype"] == b"p"), ()),
        unique_columns=frozenset(row["name"] for row in unique),
        foreign_keys=tuple(
            ForeignKey(c["conname"], tuple(c["columns"]), c["target"], tuple(c["target_columns"]))
            for c in constraints
            if c["contype"] == b"f"
        ),
        checks={c["conname"]: c["definition"] for c in constraints if c["contype"] == b"c"},
    )


def enumeration(table: Table, column: str) -> list[str]:
    """The allowed values of a column whose check lists them."""
    for definition in table.checks.values():
        if found := re.search(rf"\(?\b{column}\b (?:= ANY \(|<@ )ARRAY\[([^\]]*)\]", definition):
            return re.findall(r"'([^']*)'::text", found[1])
        if found := re.search(rf"\(\b{column}\b ~ '\^\(([a-z|_]+)\)\$'", definition):
            return found[1].split("|")
    return []
