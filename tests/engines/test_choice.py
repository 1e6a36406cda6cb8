"""Which engine and version a user runs, and where copies may go: SQL and a Python oracle agree on random tenants, engines,
levels, aliases, parameters, copies."""

import hashlib
import json
import random
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import LONG, Cluster, migrated_database
from vanilla_saas.database.pool import _prepare

PLATFORM = uuid.UUID(int=0)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
RANKS = {"user": 2, "level": 3, "tier": 4, "tenant": 5, "platform": 6}
CASES = 100_000 if LONG else 20_000
BATCH = 500
"""Questions a world is asked; a batch is one world, written and asked in a few statements and rolled back."""
REBASE = "select vanilla.rebase_copy(c, $2, $3, $4, $5) from user_engines c where c.id = $1"


@dataclass
class Engine:
    tenant: uuid.UUID
    id: uuid.UUID
    slug: str
    status: str
    default_access: str
    offered: bool
    versions: dict[int, str]
    aliases: dict[str, tuple[int, int]]
    parameters: dict[int, dict[str, dict[str, Any]]]
    """What each version declares."""


@dataclass
class World:
    """Rows as they are written; the oracle reads these and never the database."""

    engines: list[Engine] = field(default_factory=list)
    levels: dict[uuid.UUID, list[tuple[uuid.UUID, int]]] = field(default_factory=dict)
    users: dict[uuid.UUID, tuple[uuid.UUID, uuid.UUID | None]] = field(default_factory=dict)
    """Tenant and level of each."""
    access: dict[tuple[uuid.UUID, uuid.UUID, uuid.UUID], str] = field(default_factory=dict)
    """By tenant, level and engine."""
    assignments: list[dict[str, Any]] = field(default_factory=list)
    copies: list[dict[str, Any]] = field(default_factory=list)

    def visible(self, tenant: uuid.UUID) -> list[Engine]:
        return [e for e in self.engines if e.tenant == tenant or e.tenant == PLATFORM]


def bucket(user: uuid.UUID, engine: uuid.UUID) -> int:
    return int.from_bytes(hashlib.sha256(f"{user}:{engine}".encode()).digest()[:3], "big") % 100


def candidates(world: World, tenant: uuid.UUID, user: uuid.UUID, ref: str | None) -> list[tuple[Any, ...]]:
    """Everything that could choose, each as (rank, source, row id, priority, since, engine, version, alias, reason)."""
    level = world.users[user][1]
    tier = next((t for id_, t in world.levels[tenant] if id_ == level), None)
    by_id = {e.id: e for e in world.engines}
    found: list[tuple[Any, ...]] = []

    def judge(engine: Engine, pin: int | str | None, begins: Any = None, ends: Any = None) -> tuple[Any, ...]:
        access = world.access.get((tenant, level, engine.id), engine.default_access) if level else engine.default_access
        alias = None
        if isinstance(pin, int):
            version: int | None = pin
        else:
            alias = pin
            if alias is None:
                canary = engine.aliases.get("canary")
                alias = "canary" if canary and bucket(user, engine.id) < canary[1] else "stable"
            version = engine.aliases[alias][0] if alias in engine.aliases else None
        reason = None
        if begins and begins > NOW:
            reason = "not_yet_valid"
        elif ends and ends <= NOW:
            reason = "expired"
        elif engine.tenant != tenant and not engine.offered:
            reason = "not_offered"
        elif access == "none":
            reason = "not_entitled"
        elif engine.status == "retired":
            reason = "engine_retired"
        elif version not in engine.versions:
            reason = "no_version"
        elif engine.versions[version] == "retired":
            reason = "version_retired"
        elif access == "read":
            reason = "read_only"
        return engine.id, version, alias, reason

    mine = [c for c in world.copies if c["user_id"] == user]
    if ref is None:
        found += [
            (1, "copy", c["id"], 0, NOW, *judge(by_id[c["engine_id"]], c["version"])) for c in mine if c["is_default"]
        ]
        for row in world.assignments:
            meant = {
                "user": row["user_id"] == user and row["tenant_id"] == tenant,
                "level": level is not None and row["level_id"] == level and row["tenant_id"] == tenant,
                "tier": tier is not None and row["tier"] == tier and row["tenant_id"] == tenant,
                "tenant": row["tenant_id"] == tenant,
                "platform": row["tenant_id"] == PLATFORM,
            }[row["target"]]
            if meant:
                verdict = judge(
                    by_id[row["engine_id"]], row["pin_version"] or row["pin_alias"], row["valid_from"], row["valid_to"]
                )
                found.append(
                    (RANKS[row["target"]], row["target"], row["id"], row["priority"], row["assigned_at"], *verdict)
                )
    elif ref.startswith("my/"):
        slug, elsewhere, to = ref[3:].partition("@")
        found += [
            (0, "reference", c["id"], 0, NOW, *judge(by_id[c["engine_id"]], pin_of(to) if elsewhere else c["version"]))
            for c in mine
            if c["slug"] == slug
        ]
    else:
        slug, _, pin = ref.partition("@")
        named = [
            e for e in world.engines if e.slug == slug and (e.tenant == tenant or (e.tenant == PLATFORM and e.offered))
        ]
        for engine in sorted(named, key=lambda e: e.tenant == PLATFORM)[:1]:
            found.append((0, "reference", None, 0, NOW, *judge(engine, pin_of(pin))))
    return found


def pin_of(text: str) -> int | str | None:
    return int(text) if re.fullmatch("[0-9]+", text) else text or None


def fits(declared: dict[str, Any] | None, value: Any) -> bool:
    """Whether a version that declares this takes the value."""
    if declared is None:
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and value % 1 == 0,
    }[declared["type"]]:
        return False
    if "enum" in declared and not any(type(one) is type(value) and one == value for one in declared["enum"]):
        return False
    if number:
        return bool(declared.get("minimum", value) <= value <= declared.get("maximum", value))
    return not isinstance(value, str) or len(value) <= declared.get("maxLength", len(value))


def moved(
    world: World, copy: dict[str, Any], to: str | None, said: dict[str, Any], drop: bool
) -> tuple[int, dict[str, Any], list[tuple[str, str]]] | None:
    """Version, values and conflicts, by field and code, of a copy that is taken elsewhere; None: there is no such version."""
    found = oracle(world, copy["tenant_id"], copy["user_id"], f"my/{copy['slug']}@{to or ''}")
    assert found is not None
    _, version, _, _, _, reason = found
    if reason == "no_version":
        return None
    if reason is not None:
        return version, copy["overlay"], [("version", reason)]
    declared = next(e for e in world.engines if e.id == copy["engine_id"]).parameters[version]
    values = {
        name: value
        for name, value in copy["overlay"].items()
        if name not in said and (not drop or fits(declared.get(name), value))
    } | {name: value for name, value in said.items() if value is not None}
    conflicts = [
        (f"overlay.{name}", "parameter_invalid" if name in declared else "parameter_undeclared")
        for name, value in sorted(values.items())
        if not fits(declared.get(name), value)
    ]
    return version, values, conflicts


def oracle(world: World, tenant: uuid.UUID, user: uuid.UUID, ref: str | None) -> tuple[Any, ...] | None:
    """Engine, version, alias, source, what chose it, and why it may not be run."""
    found = candidates(world, tenant, user, ref)
    if not found:
        return None
    usable = [c for c in found if c[-1] is None] or found
    best = min(usable, key=lambda c: (c[0], -c[3], -c[4].timestamp(), str(c[2])))
    return best[5], best[6], best[7], best[1], best[2], best[8]


def random_world(dice: random.Random) -> World:
    """Three tenants and the platform, with few names and numbers, so that ties and shadows are common."""
    world = World()

    def some_id() -> uuid.UUID:
        return uuid.UUID(int=dice.getrandbits(128))

    tenants = [some_id() for _ in range(3)]
    for tenant in [PLATFORM, *tenants]:
        world.levels[tenant] = [(some_id(), dice.choice([0, 1, 1, 2])) for _ in range(3)]
        for _ in range(dice.randint(5, 9)):
            level = dice.choice([*(id_ for id_, _ in world.levels[tenant]), None])
            world.users[some_id()] = (tenant, level)
        for slug in dice.sample(["alpha", "beta", "gamma", "delta"], 3):
            count = dice.randint(1, 4)
            versions = {n: dice.choice(["published"] * 4 + ["retired"]) for n in range(1, count + 1)}
            aliases = {"stable": (dice.randint(1, count), 100)}
            if dice.random() < 0.5:
                aliases["canary"] = (dice.randint(1, count), dice.choice([0, 1, 30, 50, 99, 100]))
            access = dice.choice(["none", "read", "execute", "execute"])
            status = dice.choice(["active"] * 5 + ["retired"])
            world.engines.append(
                Engine(
                    tenant,
                    some_id(),
                    slug,
                    status,
                    access,
                    tenant == PLATFORM and dice.random() < 0.7,
                    versions,
                    aliases,
                    {number: random_parameters(dice) for number in versions},
                )
            )
    for tenant, levels in world.levels.items():
        for engine in world.visible(tenant):
            for level, _ in levels:
                if dice.random() < 0.5:
                    world.access[tenant, level, engine.id] = dice.choice(["none", "read", "execute", "execute"])
        users = [u for u, (t, _) in world.users.items() if t == tenant]
        seen: set[tuple[Any, ...]] = set()
        for _ in range(30):
            engine = dice.choice(world.visible(tenant))
            target = dice.choice(
                ["user", "user", "level", "tier", "tenant", *(["platform"] if tenant == PLATFORM else [])]
            )
            row: dict[str, Any] = {
                "id": some_id(),
                "tenant_id": tenant,
                "engine_tenant_id": engine.tenant,
                "engine_id": engine.id,
                "target": target,
            }
            row["user_id"] = dice.choice(users) if target == "user" else None
            row["level_id"] = dice.choice(levels)[0] if target == "level" else None
            row["tier"] = dice.choice([0, 1, 2]) if target == "tier" else None
            key = (engine.id, target, row["user_id"], row["level_id"], row["tier"])
            if key in seen:
                continue
            seen.add(key)
            pin = dice.choice([None, None, "stable", "canary", dice.choice(list(engine.versions))])
            row["pin_version"], row["pin_alias"] = (pin, None) if isinstance(pin, int) else (None, pin)
            row["priority"] = dice.choice([0, 0, 1, 5])
            row["assigned_at"] = NOW - timedelta(days=dice.choice([1, 1, 2]))
            row["valid_from"], row["valid_to"] = dice.choice(
                [(None, None)] * 4
                + [(NOW, None), (None, NOW), (NOW + timedelta(seconds=1), None), (None, NOW + timedelta(seconds=1))]
            )
            world.assignments.append(row)
        for user in users:
            slugs = ["mine", "other"]
            default = dice.choice([*slugs, None])
            for slug in dice.sample(slugs, dice.randint(0, 2)):
                engine = dice.choice(world.visible(tenant))
                world.copies.append(
                    {"id": some_id(), "tenant_id": tenant, "user_id": user, "slug": slug, "engine_tenant_id": engine.tenant, "engine_id": engine.id,
                     "version": dice.choice(list(engine.versions)), "is_default": slug == default, "overlay": random_values(dice)}
                )  # fmt: skip
    return world


def random_parameters(dice: random.Random) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in dice.sample(["tone", "size", "loud"], dice.randint(0, 3)):
        bounds = dice.sample(
            [("enum", ["kind", 5, 2.5, False]), ("minimum", 3), ("maximum", 4), ("maxLength", 5)],
            dice.choice([0, 0, 1, 2]),
        )
        found[name] = {"type": dice.choice(["string", "integer", "number", "boolean"]), **dict(bounds)}
    return found


def random_values(dice: random.Random, *more: Any) -> dict[str, Any]:
    """Which a copy of that version might no longer keep: the oracle says of each version anew what fits."""
    names = dice.sample(["tone", "size", "loud"], dice.choice([0, 1, 1, 2]))
    return {name: dice.choice(["kind", "plainly", "", 5, 3, 2.5, -1, True, False, *more]) for name in names}


def questions(dice: random.Random, world: World) -> list[tuple[uuid.UUID, uuid.UUID, str | None]]:
    refs = [
        f"{s}{p}"
        for s in ("alpha", "beta", "gamma", "delta", "nobody")
        for p in ("", "@1", "@2", "@9", "@stable", "@canary")
    ]
    people = list(world.users.items())
    asked = []
    for _ in range(BATCH):
        user, (tenant, _) = dice.choice(people)
        asked.append(
            (
                tenant,
                user,
                dice.choice(
                    [None, None, dice.choice(refs), dice.choice(refs), dice.choice(["my/mine", "my/other", "my/none"])]
                ),
            )
        )
    return asked


async def write(connection: asyncpg.Connection, world: World) -> None:
    tenants = [t for t in world.levels if t != PLATFORM]
    await connection.execute(
        "insert into tenants (tenant_id, id, slug, name) select t, t, 't' || left(md5(t::text), 12), 'T' from unnest($1::uuid[]) t",
        tenants,
    )
    await connection.copy_records_to_table(
        "levels", columns=["tenant_id", "id", "slug", "name", "tier"],
        records=[(t, id_, f"l{id_.hex[:12]}", "L", tier) for t, levels in world.levels.items() for id_, tier in levels],
    )  # fmt: skip
    await connection.copy_records_to_table(
        "users",
        columns=["tenant_id", "id", "external_id", "role"],
        records=[(t, u, u.hex, "superadmin" if t == PLATFORM else "user") for u, (t, _) in world.users.items()],
    )
    await connection.copy_records_to_table(
        "user_token_wallets",
        columns=["tenant_id", "user_id", "level_id"],
        records=[(t, u, level) for u, (t, level) in world.users.items()],
    )
    await connection.copy_records_to_table(
        "ai_engines", columns=["tenant_id", "id", "slug", "name", "status", "default_access", "offered"],
        records=[(e.tenant, e.id, e.slug, "E", e.status, e.default_access, e.offered) for e in world.engines],
    )  # fmt: skip
    flow, config = (
        uuid.UUID(int=7),
        {
            "flow": {"workflow_id": str(uuid.UUID(int=7)), "version": 1},
            "prices": {},
            "mode": "parallel",
            "at_once": None,
        },
    )
    await connection.execute(
        "insert into engine_versions (tenant_id, engine_id, version, workflow_id, workflow_version, mode, config, hash, price_hash, state, deployed_at, retired_at)"
        " select t, e, n, $6, 1, 'parallel', c, sha256(convert_to(c::text, 'UTF8')), sha256('{}'), s, $7, case s when 'retired' then $7::timestamptz end"
        " from unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::text[]) x (t, e, n, s, v) cross join lateral (select v::jsonb as c) j",
        *zip(*((e.tenant, e.id, n, state, json.dumps(config | {"parameters": e.parameters[n]}))
            for e in world.engines for n, state in e.versions.items()), strict=True), flow, NOW,
    )  # fmt: skip
    await connection.copy_records_to_table(
        "engine_aliases", columns=["tenant_id", "engine_id", "alias", "version", "weight", "updated_at"],
        records=[(e.tenant, e.id, name, version, weight, NOW) for e in world.engines for name, (version, weight) in e.aliases.items()],
    )  # fmt: skip
    of = {e.id: e.tenant for e in world.engines}
    await connection.copy_records_to_table(
        "level_engines", columns=["tenant_id", "level_id", "engine_tenant_id", "engine_id", "access"],
        records=[(t, level, of[e], e, access) for (t, level, e), access in world.access.items()],
    )  # fmt: skip
    rows = [
        a
        | {
            "valid_from": a["valid_from"] or datetime.min.replace(tzinfo=UTC),
            "valid_to": a["valid_to"] or datetime.max.replace(tzinfo=UTC),
        }
        for a in world.assignments
    ]
    await connection.copy_records_to_table(
        "engine_assignments", columns=list(rows[0]), records=[tuple(row.values()) for row in rows]
    )
    await connection.execute(
        "insert into user_engines (tenant_id, user_id, id, slug, engine_tenant_id, engine_id, version, overlay, is_default, created_at, updated_at)"
        " select tenant_id, user_id, id, slug, engine_tenant_id, engine_id, version, overlay, is_default, $2, $2 from jsonb_populate_recordset(null::user_engines, $1)",
        json.loads(json.dumps(world.copies, default=str)), NOW,
    )  # fmt: skip


async def asked(
    connection: asyncpg.Connection, cases: list[tuple[uuid.UUID, uuid.UUID, str | None]]
) -> dict[int, tuple[Any, ...]]:
    rows = await connection.fetch(
        "select nr, engine_id, version, alias, source, source_id, reason from vanilla.resolve_engines($1, $2, $3, $4)",
        *map(list, zip(*cases, strict=True)),
        NOW,
    )
    return {row["nr"]: tuple(row)[1:] for row in rows}


@pytest.fixture(scope="module")
async def bare(cluster: Cluster) -> Any:
    async with migrated_database(cluster, "choice") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await _prepare(connection)
        await connection.execute("alter table engine_versions drop constraint engine_versions_workflow_fkey")
        yield connection
        await connection.close()


async def test_sql_chooses_as_the_oracle_does(bare: asyncpg.Connection) -> None:
    outcomes: dict[Any, int] = {}
    for batch in range(CASES // BATCH):
        dice = random.Random(f"choice {batch}")
        world = random_world(dice)
        cases = questions(dice, world)
        transaction = bare.transaction()
        await transaction.start()
        await write(bare, world)
        found = await asked(bare, cases)
        await transaction.rollback()
        for nr, case in enumerate(cases, 1):
            wanted = oracle(world, *case)
            assert found.get(nr) == wanted, (batch, case, sorted(map(str, candidates(world, *case))))
            key = (wanted[3], wanted[5]) if wanted else None
            outcomes[key] = outcomes.get(key, 0) + 1
    # every rank chooses, every reason is met, and nothing is so rare that it would go untested
    assert {source for source, reason in filter(None, outcomes) if reason is None} == {"reference", "copy", *RANKS}
    assert {reason for _, reason in filter(None, outcomes)} >= {
        None, "not_yet_valid", "expired", "not_offered", "not_entitled", "engine_retired", "no_version", "version_retired", "read_only"
    }  # fmt: skip
    assert outcomes[None] > CASES / 100


async def test_copies_go_where_the_oracle_lets_them_and_are_what_is_run_then(bare: asyncpg.Connection) -> None:
    met: dict[str, int] = {}
    for batch in range(CASES // BATCH):
        dice = random.Random(f"moves {batch}")
        world = random_world(dice)
        transaction = bare.transaction()
        await transaction.start()
        await write(bare, world)
        for copy in world.copies:
            to = dice.choice([None, None, "1", "2", "3", "stable", "canary"])
            said, drop, dry = dice.choice([{}, random_values(dice, None)]), dice.random() < 0.4, dice.random() < 0.2
            wanted = moved(world, copy, to, said, drop)
            if wanted is None:
                with pytest.raises(asyncpg.PostgresError, match="no such version"):
                    async with bare.transaction():
                        await bare.fetchval(REBASE, copy["id"], to, said, drop, dry)
                continue
            told = await bare.fetchval(REBASE, copy["id"], to, said, drop, dry)
            version, values, conflicts = wanted
            found = [(one["field"], one["code"]) for one in told["conflicts"]]
            assert (told["version"], told["overlay"], found) == wanted, (batch, copy, to, said, drop)
            changed = not conflicts and (version, values) != (copy["version"], copy["overlay"])
            assert (told["changed"], told["dropped"]) == (changed, sorted(copy["overlay"].keys() - values)), (
                batch,
                copy,
            )
            if changed and not dry:
                copy["version"], copy["overlay"] = version, values
            for outcome in {code for _, code in conflicts} or {"changed" if changed else "unchanged"}:
                met[outcome] = met.get(outcome, 0) + 1
        kept = await bare.fetch("select id, version, overlay from user_engines")
        assert {row["id"]: (row["version"], row["overlay"]) for row in kept} == {
            copy["id"]: (copy["version"], copy["overlay"]) for copy in world.copies
        }
        cases = [(copy["tenant_id"], copy["user_id"], f"my/{copy['slug']}") for copy in world.copies]
        assert await asked(bare, cases) == {nr: oracle(world, *case) for nr, case in enumerate(cases, 1)}
        await transaction.rollback()
    assert met.keys() == {
        "changed", "unchanged", "parameter_undeclared", "parameter_invalid", "not_offered", "not_entitled", "engine_retired", "version_retired", "read_only"
    }  # fmt: skip
    assert min(met.values()) >= CASES / 4000


def test_the_oracles_users_are_spread_over_the_buckets() -> None:
    dice = random.Random(1)
    engine = uuid.UUID(int=dice.getrandbits(128))
    share = sum(bucket(uuid.UUID(int=dice.getrandbits(128)), engine) < 30 for _ in range(10_000)) / 10_000
    assert 0.28 < share < 0.32
