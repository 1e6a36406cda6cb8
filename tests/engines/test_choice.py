"""Which engine and version a user runs, and where copies may go: SQL and a Python oracle agree on random tenants, engines,
levels, aliases, parameters, copies."""

import gc
import hashlib
import json
import random
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import pytest

from tests.conftest import LONG, Cluster, migrated_database
from vanilla_saas.database.pool import _prepare

PLATFORM = uuid.UUID(int=0)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
RANKS = {"user": 2, "level": 3, "tier": 4, "tenant": 5, "platform": 6}
CASES = 100_000 if LONG else 20_000
BATCH = 500
"""Tenants beside one platform: written and asked in a few statements."""
MOVES = CASES // 20
"""Tenants whose copies are moved."""
TABLES = (
    "tenants, levels, users, user_token_wallets, ai_engines, engine_versions, engine_aliases, level_engines,"
    " engine_assignments, user_engines"
)
BARE = f"""
do $$
declare v record;
begin
    for v in select r.conrelid::regclass as relation, r.conname from pg_constraint r
            where r.contype = 'f' and r.confrelid = any (('{{{TABLES}}}')::regclass[]) and r.conparentid = 0
               or r.contype in ('f', 'c') and r.conrelid = any (('{{{TABLES}}}')::regclass[])
               or r.contype = 'u' and r.conrelid = any ('{{tenants, levels, users, user_token_wallets}}'::regclass[]) loop
        execute format('alter table %s drop constraint %I', v.relation, v.conname);
    end loop;
    for v in select i.indexrelid::regclass as name from pg_index i where not i.indisprimary
            and i.indrelid = any ('{{tenants, levels, users, user_token_wallets, engine_versions}}'::regclass[]) loop
        execute format('drop index %s', v.name);
    end loop;
    for v in select unnest(('{{{TABLES}}}')::regclass[]) as relation loop
        execute format('alter table %s set unlogged', v.relation);
    end loop;
end $$
"""
"""What is written is made here, a third of a million rows of it: no trigger, no constraint, no log looks at it."""
REBASE = """
select c.id, vanilla.rebase_copy(c, m."to", m.said, m.drop, m.dry) as told
from jsonb_to_recordset($1) as m (id uuid, "to" text, said jsonb, drop boolean, dry boolean)
join user_engines c on c.id = m.id
"""

SLUGS = ("alpha", "beta", "gamma")
REFS = [f"{slug}{pin}" for slug in (*SLUGS, "nobody") for pin in ("", "", "@1", "@2", "@9", "@stable", "@canary")]
OWN_REFS = ("my/mine", "my/other", "my/none")
STATES = ("published", "published", "published", "published", "retired")
WEIGHTS = (0, 1, 30, 50, 99, 100)
ACCESS = ("none", "read", "execute", "execute")
TIERS = (0, 1, 1, 2)
COUNTS = (1, 1, 2)
TARGETS = ("user", "user", "level", "tier", "tenant")
OF_PLATFORM = (*TARGETS, *["platform"] * 5)
PINS = (None, None, "stable", "canary", "number")
PRIORITIES = (0, 0, 1, 5)
ASSIGNED = [NOW - timedelta(days=days) for days in (1, 1, 2)]
EVER, SOON = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)), NOW + timedelta(seconds=1)
TIMES = [EVER, EVER, EVER, EVER, (NOW, EVER[1]), (EVER[0], NOW), (SOON, EVER[1]), (EVER[0], SOON)]
NONE = json.dumps({"parameters": {}})
T = TypeVar("T")


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

    def over(self, platform: "World") -> "World":
        """What a tenant has with what the platform has."""
        return World(
            platform.engines + self.engines,
            platform.levels | self.levels,
            platform.users | self.users,
            platform.access | self.access,
            platform.assignments + self.assignments,
            platform.copies + self.copies,
        )


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


class Dice(random.Random):
    """As `random.Random`, in a tenth of its time where a million things are drawn."""

    def pick(self, some: Sequence[T]) -> T:
        return some[int(self.random() * len(some))]

    def upto(self, most: int) -> int:
        """1 to so many."""
        return 1 + int(self.random() * most)

    def id(self) -> uuid.UUID:
        return uuid.UUID(int=self.getrandbits(128))


def random_world(dice: Dice, platform: World | None = None, *, moves: bool = False) -> World:
    """A tenant, or the platform: few people, names and numbers, so that ties and shadows are common.

    Only with `moves` versions declare parameters, and copies have values.
    """
    world, tenant = World(), PLATFORM if platform is None else dice.id()
    levels = [(dice.id(), dice.pick(TIERS)) for _ in range(dice.pick(COUNTS))]
    world.levels[tenant] = levels
    users = [dice.id() for _ in range(dice.pick(COUNTS))]
    for user in users:
        world.users[user] = tenant, None if dice.random() < 0.2 else dice.pick(levels)[0]
    first = int(dice.random() * 3)
    for n in range(2 if platform is None else dice.pick(COUNTS)):
        count = dice.upto(3)
        versions = {number: dice.pick(STATES) for number in range(1, count + 1)}
        aliases = {"stable": (dice.upto(count), 100)}
        if dice.random() < 0.5:
            aliases["canary"] = (dice.upto(count), dice.pick(WEIGHTS))
        world.engines.append(
            Engine(
                tenant,
                dice.id(),
                SLUGS[(first + n) % 3],
                "retired" if dice.random() < 0.15 else "active",
                dice.pick(ACCESS),
                platform is None and dice.random() < 0.7,
                versions,
                aliases,
                {number: random_parameters(dice) for number in versions}
                if moves
                else {number: {} for number in versions},
            )
        )
    visible = world.engines + (platform.engines if platform else [])
    for engine in visible:
        for level, _ in levels:
            if dice.random() < 0.5:
                world.access[tenant, level, engine.id] = dice.pick(ACCESS)
    seen: set[tuple[Any, ...]] = set()
    for _ in range(6 if platform is None else int(dice.random() * 5)):
        engine, target = dice.pick(visible), dice.pick(TARGETS if platform else OF_PLATFORM)
        user_id = dice.pick(users) if target == "user" else None
        level_id = dice.pick(levels)[0] if target == "level" else None
        tier = dice.pick(TIERS) if target == "tier" else None
        if (key := (engine.id, target, user_id, level_id, tier)) in seen:
            continue
        seen.add(key)
        pin = dice.pick(PINS)
        valid_from, valid_to = dice.pick(TIMES)
        world.assignments.append(
            {
                "id": dice.id(),
                "tenant_id": tenant,
                "engine_tenant_id": engine.tenant,
                "engine_id": engine.id,
                "target": target,
                "user_id": user_id,
                "level_id": level_id,
                "tier": tier,
                "pin_version": dice.upto(len(engine.versions)) if pin == "number" else None,
                "pin_alias": None if pin == "number" else pin,
                "priority": dice.pick(PRIORITIES),
                "assigned_at": dice.pick(ASSIGNED),
                "valid_from": valid_from,
                "valid_to": valid_to,
            }
        )
    for user in users:
        default = dice.pick(["mine", "other", None, None])
        for slug in ("mine", "other"):
            if dice.random() < 0.5:
                engine = dice.pick(visible)
                world.copies.append(
                    {
                        "id": dice.id(),
                        "tenant_id": tenant,
                        "user_id": user,
                        "slug": slug,
                        "engine_tenant_id": engine.tenant,
                        "engine_id": engine.id,
                        "version": dice.upto(len(engine.versions)),
                        "is_default": slug == default,
                        "overlay": random_values(dice) if moves else {},
                    }
                )
    return world


def random_parameters(dice: Dice) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in dice.sample(["tone", "size", "loud"], dice.randint(0, 3)):
        bounds = dice.sample(
            [("enum", ["kind", 5, 2.5, False]), ("minimum", 3), ("maximum", 4), ("maxLength", 5)],
            dice.choice([0, 0, 1, 2]),
        )
        found[name] = {"type": dice.choice(["string", "integer", "number", "boolean"]), **dict(bounds)}
    return found


def random_values(dice: Dice, *more: Any) -> dict[str, Any]:
    """Which a copy of that version might no longer keep: the oracle says of each version anew what fits."""
    names = dice.sample(["tone", "size", "loud"], dice.choice([0, 1, 1, 2]))
    return {name: dice.choice(["kind", "plainly", "", 5, 3, 2.5, -1, True, False, *more]) for name in names}


def question(dice: Dice, world: World) -> tuple[uuid.UUID, uuid.UUID, str | None]:
    """What one of a tenant's people asks for."""
    user, (tenant, _) = dice.pick(list(world.users.items()))
    chance = dice.random()
    return tenant, user, None if chance < 0.5 else dice.pick(REFS if chance < 0.85 else OWN_REFS)


async def write(connection: asyncpg.Connection, worlds: list[World]) -> None:
    world = World(
        [one for each in worlds for one in each.engines],
        {tenant: levels for each in worlds for tenant, levels in each.levels.items()},
        {user: of for each in worlds for user, of in each.users.items()},
        {place: access for each in worlds for place, access in each.access.items()},
        [one for each in worlds for one in each.assignments],
        [one for each in worlds for one in each.copies],
    )
    for table in TABLES.split(", "):  # another platform; tenants of before are in nobody's way
        await connection.execute(f"delete from {table} where tenant_id = $1", PLATFORM)
    await connection.execute(
        "insert into tenants (tenant_id, id, slug, name) select t, t, 't' || left(md5(t::text), 12), 'T' from unnest($1::uuid[]) t",
        list(world.levels),
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
    await connection.execute(
        "insert into engine_versions (tenant_id, engine_id, version, workflow_id, workflow_version, mode, config, hash, price_hash, state, deployed_at)"
        " select t, e, n, t, 1, 'parallel', v::jsonb, '', '', s, $6 from unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::text[]) x (t, e, n, s, v)",
        *zip(*((e.tenant, e.id, n, state, json.dumps({"parameters": e.parameters[n]}) if e.parameters[n] else NONE)
            for e in world.engines for n, state in e.versions.items()), strict=True), NOW,
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
    await connection.copy_records_to_table(
        "engine_assignments", columns=[*world.assignments[0]], records=[tuple(row.values()) for row in world.assignments]
    )  # fmt: skip
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


@pytest.fixture(autouse=True)
def without_collections() -> Iterator[None]:
    """Small things by the million, none in a ring: looking for rings would take longer than to make them."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
async def bare(cluster: Cluster) -> Any:
    async with migrated_database(cluster, "choice") as name:
        connection = await asyncpg.connect(cluster.url(database=name))
        await _prepare(connection)
        await connection.execute(BARE)
        await connection.execute("set session_replication_role = replica; set enable_seqscan = off")
        yield connection
        await connection.close()


async def test_sql_chooses_as_the_oracle_does(bare: asyncpg.Connection) -> None:
    """Each question is another tenant's, with assignments, entitlements, aliases and copies of its own."""
    outcomes: dict[Any, int] = {}
    for batch in range(CASES // BATCH):
        dice = Dice(f"choice {batch}")
        platform = random_world(dice)
        tenants = [random_world(dice, platform) for _ in range(BATCH - 1)]
        worlds = [platform, *(tenant.over(platform) for tenant in tenants)]
        cases = [question(dice, world) for world in (platform, *tenants)]
        await write(bare, [platform, *tenants])
        found = await asked(bare, cases)
        for nr, (world, case) in enumerate(zip(worlds, cases, strict=True), 1):
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
    for batch in range(MOVES // BATCH):
        dice = Dice(f"moves {batch}")
        platform = random_world(dice, moves=True)
        tenants = [random_world(dice, platform, moves=True) for _ in range(BATCH)]
        copies = [(tenant.over(platform), copy) for tenant in tenants for copy in tenant.copies]
        moves, wanted = [], []
        for world, copy in copies:
            to = dice.choice([None, None, "1", "2", "3", "stable", "canary"])
            said, drop, dry = dice.choice([{}, random_values(dice, None)]), dice.random() < 0.4, dice.random() < 0.2
            moves.append({"id": str(copy["id"]), "to": to, "said": said, "drop": drop, "dry": dry})
            wanted.append(moved(world, copy, to, said, drop))
        nowhere = [move for move, there in zip(moves, wanted, strict=True) if there is None]
        somewhere = [move for move, there in zip(moves, wanted, strict=True) if there is not None]
        await write(bare, [platform, *tenants])
        for move in nowhere:
            with pytest.raises(asyncpg.PostgresError, match="no such version"):
                async with bare.transaction():
                    await bare.fetch(REBASE, [move])
        answers = {row["id"]: row["told"] for row in await bare.fetch(REBASE, somewhere)}
        for (_, copy), move, there in zip(copies, moves, wanted, strict=True):
            if there is None:
                continue
            told, (version, values, conflicts) = answers[copy["id"]], there
            found = [(one["field"], one["code"]) for one in told["conflicts"]]
            assert (told["version"], told["overlay"], found) == there, (batch, copy, move)
            changed = not conflicts and (version, values) != (copy["version"], copy["overlay"])
            dropped = sorted(copy["overlay"].keys() - values)
            assert (told["changed"], told["dropped"]) == (changed, dropped), (batch, copy, move)
            if changed and not move["dry"]:
                copy["version"], copy["overlay"] = version, values
            for outcome in {code for _, code in conflicts} or {"changed" if changed else "unchanged"}:
                met[outcome] = met.get(outcome, 0) + 1
        kept = await bare.fetch(
            "select id, version, overlay from user_engines where tenant_id = any ($1)",
            [tenant for each in tenants for tenant in each.levels],
        )
        assert {row["id"]: (row["version"], row["overlay"]) for row in kept} == {
            copy["id"]: (copy["version"], copy["overlay"]) for _, copy in copies
        }
        cases = [(copy["tenant_id"], copy["user_id"], f"my/{copy['slug']}") for _, copy in copies]
        told_now = await asked(bare, cases)
        for nr, ((world, _), case) in enumerate(zip(copies, cases, strict=True), 1):
            assert told_now[nr] == oracle(world, *case)
    assert met.keys() == {
        "changed", "unchanged", "parameter_undeclared", "parameter_invalid", "not_offered", "not_entitled", "engine_retired", "version_retired", "read_only"
    }  # fmt: skip
    assert min(met.values()) >= MOVES / 400


def test_the_oracles_users_are_spread_over_the_buckets() -> None:
    dice = random.Random(1)
    engine = uuid.UUID(int=dice.getrandbits(128))
    share = sum(bucket(uuid.UUID(int=dice.getrandbits(128)), engine) < 30 for _ in range(10_000)) / 10_000
    assert 0.28 < share < 0.32
