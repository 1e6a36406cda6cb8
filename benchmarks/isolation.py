"""What row-level security and the signed context cost, against the same statements of a role that no policy binds.

Every variant names the tenant in its statement, as the product does everywhere. A round gives each variant the same
tenant and row, one variant after the other; ratios are taken within a round. A slice stays on one tenant, whose pages
are then in memory: there the policies' share of the time is largest.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from uuid import UUID

import asyncpg

from benchmarks.frame import BenchmarkError, Figure, Result, judge, middle
from benchmarks.options import Options
from benchmarks.pgbench import Slice, measure
from benchmarks.processes import ROOT, temporary_home, wait_until_stopped
from vanilla_saas.database.connection import Addresses, addresses
from vanilla_saas.database.context import ContextSigner, Identity, load_signer
from vanilla_saas.database.embedded import EmbeddedServer
from vanilla_saas.database.migrator import migrate
from vanilla_saas.settings import Settings

FLOOR = "the same statement with its tenant_id, in the same transaction, by a role with BYPASSRLS"
VARIANTS = {"floor": "bench_floor", "policies": "bench_plain", "signed": "vanilla_app"}
"""Variant to login."""
OPERATIONS = {
    "point": "select id, created_at, amount, note from {table} where tenant_id = :tenant and id = :id;",
    "list": (
        "select id, created_at, amount, note from {table} where tenant_id = :tenant order by created_at desc limit 50;"
    ),
    "aggregate": "select count(*), sum(amount), max(created_at) from {table} where tenant_id = :tenant;",
    "insert": (
        "insert into {table} (tenant_id, user_id, created_at, amount, note)"
        " values (:tenant, :user, clock_timestamp(), 7, 'One row of a benchmark') returning id;"
    ),
}
SETTINGS = "set_config('vanilla.request_id', 'r', true), set_config('vanilla.client_ip', '', true)"
CONTEXT = {
    "floor": f"select set_config('bench.tenant_id', :tenant, true), {SETTINGS};",
    "policies": f"select set_config('bench.tenant_id', :tenant, true), {SETTINGS};",
    "signed": f"select vanilla.set_context(:token), {SETTINGS};",
}
"""What `Database.transaction` sends; the floor sets a plain setting instead of the signed one."""
FORMS = ("transaction", "statement")
"""begin, context, statement and commit; or the statement alone, the context set when the session began."""
GROWTH = ("floor", "signed")
"""Variants whose statement is compared with itself on the table in which the other tenants grew."""
TABLES = {"": "shared_rows", "owned_": "owned_rows"}
"""Prefix of a ratio to the table: one of class tenant_shared, one of user_read whose reader is not the owner."""
GROWN = "grown_rows"
MAKE_PEOPLE = """
with made as materialized (select create_tenant('load-' || n, 'Load') as tenant_id from generate_series(1, $1::int) n)
select tenant_id, create_user('admin@example.test', 'admin', p_must_change_password => false, p_tenant_id => tenant_id)
from made
"""
FILL = "select fill($1::text::regclass, $2, $3, $4, $5)"
NOTES = [
    "transaction: begin, context, statement, commit, four round trips; statement: it alone.",
    "owned: a table of class user_read, read by an admin who owns none of the rows: three mentions in its policy.",
    "growth: the statement alone on a table ten times as large, where only other tenants have more rows.",
    "synchronous_commit is off, and the pages that are read are in memory, for every variant.",
]
SERVER = {
    # the pages that a run touches stay in memory; nobody vacuums or checkpoints between two slices
    "shared_buffers": "1GB",
    "autovacuum": "off",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    # an insert waits for no disk: the wait would hide what the policies cost
    "synchronous_commit": "off",
}


@dataclass(frozen=True, slots=True)
class Size:
    tenants: int
    per_tenant: int
    growth: int
    kept: int
    """Tenants whose rows are read; in the grown table only the others have more."""
    rounds: int
    transactions: int


FULL = Size(tenants=1000, per_tenant=1000, growth=10, kept=16, rounds=25, transactions=800)
QUICK = Size(tenants=20, per_tenant=1000, growth=10, kept=2, rounds=2, transactions=150)


@dataclass(slots=True)
class Run:
    """Whom the slices act as, and what they found."""

    server: EmbeddedServer
    signer: ContextSigner
    people: list[tuple[UUID, UUID]]
    """Tenants, each with an admin of theirs."""
    size: Size
    found: dict[tuple[str, str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    """(table, operation, variant, form or "growth") to microseconds, one of each round."""

    def slice(self, number: int, table: str, operation: str, variant: str, form: str, row: UUID) -> None:
        # readers and writers have tenants of their own, so that a tenant that is read stays as large as it was
        slot = self.size.kept + number % (self.size.tenants - self.size.kept)
        tenant, user = self.people[slot if operation == "insert" else number % self.size.kept]
        token = self.signer.sign(Identity(tenant, user, "admin"))
        statement = OPERATIONS[operation].format(table=table)
        script, session = statement, {"bench.user_id": str(user), "bench.role": "admin"}
        if form == "transaction":
            script = f"begin;\n{CONTEXT[variant]}\n{statement}\ncommit;"
        else:
            session |= {"vanilla.context": token} if variant == "signed" else {"bench.tenant_id": str(tenant)}
        variables = {"tenant": str(tenant), "user": str(user), "id": str(row), "token": token}
        wanted = Slice(self.server.dsn(VARIANTS[variant]), script, self.size.transactions, variables, session)
        self.found[table, operation, variant, form].append(measure(wanted))

    def ratios(self, above: tuple[str, str, str, str], below: tuple[str, str, str, str]) -> list[float]:
        """The quotient of each round."""
        return [one / two for one, two in zip(self.found[above], self.found[below], strict=True)]


def run(options: Options) -> Result:
    """Variants on a table of each class, then the signed statement on a table in which the other tenants grew."""
    size = QUICK if options.quick else FULL
    with _server() as (where, signer):
        assert where.server is not None
        people = asyncio.run(_fill(where.admin, size))
        state = Run(where.server, signer, people, size)
        asyncio.run(_check_variants(state))
        rows = asyncio.run(_rows(where.admin, people[: size.kept]))
        for number in range(-1, size.rounds):
            _round(state, number, rows)
            if number < 0:
                state.found.clear()  # the first one reads the pages into memory
        figures = asyncio.run(_counts(where.admin))
    return _report(state, figures)


@contextmanager
def _server() -> Iterator[tuple[Addresses, ContextSigner]]:
    """An embedded server with SERVER's settings and a migrated database."""
    with temporary_home() as home:
        settings = Settings(_env_file=None, home=home)
        signer = load_signer(settings)
        with addresses(settings, signer) as where:
            asyncio.run(_configure(where.admin, signer))
        wait_until_stopped(home)
        with addresses(settings, signer) as where:
            yield where, signer


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _configure(admin_url: str, signer: ContextSigner) -> None:
    await migrate(admin_url, signer)
    async with _connected(admin_url) as connection:
        for name, value in SERVER.items():
            await connection.execute(f"alter system set {name} = '{value}'")


async def _fill(admin_url: str, size: Size) -> list[tuple[UUID, UUID]]:
    """Tenants with an admin each, by the product's own functions; rows for all of them."""
    async with _connected(admin_url) as connection:
        await connection.execute((ROOT / "benchmarks" / "isolation.sql").read_text())
        people = [tuple(row) for row in await connection.fetch(MAKE_PEOPLE, size.tenants)]
        tenants = [tenant for tenant, _ in people]
        for table in TABLES.values():
            await connection.execute(FILL, table, tenants, size.per_tenant, size.kept, 1)
        await connection.execute(FILL, GROWN, tenants, size.per_tenant, size.kept, size.growth)
        await connection.execute("vacuum (analyze, freeze)")
        await connection.execute("checkpoint")
    return people


async def _check_variants(state: Run) -> None:
    """A variant that sees nothing would be quick: each must see its tenant, and no other where a policy binds it.

    Raises BenchmarkError.
    """
    (tenant, user), (other, _) = state.people[0], state.people[1]
    context = {"bench.tenant_id": str(tenant), "bench.user_id": str(user), "bench.role": "admin"}
    for variant, login in VARIANTS.items():
        async with _connected(state.server.dsn(login)) as connection:
            token = state.signer.sign(Identity(tenant, user, "admin"))
            for name, value in (context | {"vanilla.context": token}).items():
                await connection.execute("select set_config($1, $2, false)", name, value)
            for table in TABLES.values():
                query = f"select count(*) from {table} where tenant_id = $1"
                seen = [await connection.fetchval(query, wanted) for wanted in (tenant, other)]
                if seen != [state.size.per_tenant, state.size.per_tenant if variant == "floor" else 0]:
                    raise BenchmarkError(f"{variant} sees {seen} rows of its own and another tenant in {table}")


async def _rows(admin_url: str, people: list[tuple[UUID, UUID]]) -> dict[tuple[str, int], UUID]:
    """A row in the middle of each tenant that is read, by table and number of the tenant."""
    rows = {}
    async with _connected(admin_url) as connection:
        for table in (*TABLES.values(), GROWN):
            query = f"select id from {table} where tenant_id = $1 order by id offset 500 limit 1"
            for number, (tenant, _) in enumerate(people):
                rows[table, number] = await connection.fetchval(query, tenant)
    return rows


async def _counts(admin_url: str) -> dict[str, Figure]:
    async with _connected(admin_url) as connection:
        return {
            f"{table}_at_the_end": await connection.fetchval(f"select count(*) from {table}")
            for table in (*TABLES.values(), GROWN)
        }


def _round(state: Run, number: int, rows: Mapping[tuple[str, int], UUID]) -> None:
    kept = number % state.size.kept
    shift = number % len(VARIANTS)  # another one begins each round
    order = [*VARIANTS][shift:] + [*VARIANTS][:shift]
    for table in TABLES.values():
        for operation in _operations(table):
            for form in FORMS:
                for variant in order:
                    state.slice(number, table, operation, variant, form, rows[table, kept])
    tables = (TABLES[""], GROWN)
    for operation in OPERATIONS:
        for variant in GROWTH:
            for table in tables if number % 2 else tables[::-1]:
                state.slice(number, table, operation, variant, "growth", rows[table, kept])


def _operations(table: str) -> list[str]:
    """Nobody inserts into a table of class user_read but functions, which no policy binds."""
    return [operation for operation in OPERATIONS if not (table == "owned_rows" and operation == "insert")]


def _report(state: Run, counts: dict[str, Figure]) -> Result:
    rounds: dict[str, list[float]] = {}
    figures: dict[str, Figure] = {"rounds": state.size.rounds, "transactions_per_slice": state.size.transactions}
    figures |= {"tenants": state.size.tenants} | counts
    for prefix, table in TABLES.items():
        for operation in _operations(table):
            for form in FORMS:
                for variant in VARIANTS:
                    key = (table, operation, variant, form)
                    figures[f"{prefix}{operation}_{variant}_{form}_us"] = middle(state.found[key])
                    if variant != "floor":
                        rounds[f"{prefix}{operation}_{variant}_{form}"] = state.ratios(
                            key, (table, operation, "floor", form)
                        )
    for operation in OPERATIONS:
        for variant in GROWTH:
            after, before = ((table, operation, variant, "growth") for table in (GROWN, TABLES[""]))
            rounds[f"{operation}_{variant}_growth"] = state.ratios(after, before)
    for name, values in rounds.items():
        low, _, high = quantiles(values, n=4)
        figures[f"{name}_quartiles"] = f"{low:.3f} to {high:.3f}"
    # that the floor grows is the machine's business
    judged = {name: middle(values) for name, values in rounds.items() if not name.endswith("floor_growth")}
    figures |= {name: middle(values) for name, values in rounds.items() if name.endswith("floor_growth")}
    return Result("isolation", FLOOR, judge("isolation", judged), figures, {}, NOTES)
