"""One real PostgreSQL for the session, one fresh database for each worker, one real HTTP server on loopback."""

import asyncio
import hashlib
import os
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import uvicorn
from pydantic import SecretStr

from tests.books import require_clean_books
from vanilla_saas.app import create_app
from vanilla_saas.database.context import ContextSigner, Identity, Role
from vanilla_saas.database.migrator import migrate
from vanilla_saas.database.pool import Database, _prepare
from vanilla_saas.database.schema import migrations
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, token_hash

DEFAULT_TENANT = uuid.UUID("00000000-0000-7000-8000-000000000001")
SUPER_ADMIN = uuid.UUID("00000000-0000-7000-8000-0000000000aa")
TEST_KEY = "5a" * 32
"""The context key of the suite; the database it opens is thrown away."""


LONG = os.environ.get("VANILLA_SAAS_LONG") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "tests/tokens/test_model" not in item.nodeid)  # the longest: nobody waits for it alone
    if LONG:
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@dataclass
class Cluster:
    """Where the tests' PostgreSQL listens: `url(user, database)` is a connection URL."""

    host: str
    port: int

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.host}&port={self.port}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A server for the session; VANILLA_SAAS_TEST_CLUSTER=<socket directory>:<port> names a running one."""
    if given := os.environ.get("VANILLA_SAAS_TEST_CLUSTER"):
        host, _, port = given.rpartition(":")
        yield Cluster(host, int(port))
        return
    from tests.postgres import session_server

    with session_server() as server:
        yield Cluster(str(server.socket_dir), 5432)


@pytest.fixture(scope="session")
async def database_name(cluster: Cluster) -> AsyncIterator[str]:
    """A migrated database of this worker, dropped at the end, when its books must be right."""
    async with migrated_database(cluster) as name:
        yield name
        await require_clean_books(cluster.url(database=name))


@asynccontextmanager
async def migrated_database(cluster: Cluster, prefix: str = "test") -> AsyncIterator[str]:
    """A fresh installation for the time of the block: a copy of one that was migrated once for the server."""
    async with create_database(cluster, f"{prefix}_{uuid.uuid4().hex[:12]}", await _template(cluster)) as name:
        connection = await asyncpg.connect(cluster.url())
        # the one thing in 001 that belongs to the database itself, which a copy does not take over
        await connection.execute(f'revoke temporary on database "{name}" from public')
        await connection.close()
        yield name


async def _template(cluster: Cluster) -> str:
    made = hashlib.sha256("".join(file.checksum for file in migrations()).encode()).hexdigest()
    name = f"vs_template_{made[:12]}"
    connection = await asyncpg.connect(cluster.url())
    try:
        await connection.execute("select pg_advisory_lock(hashtext('vs_template'))")  # the workers share the server
        if not await connection.fetchval("select datallowconn = false from pg_database where datname = $1", name):
            await connection.execute(f'drop database if exists "{name}" with (force)')
            await connection.execute(f'create database "{name}"')
            await migrate(cluster.url(database=name), ContextSigner(bytes.fromhex(TEST_KEY)))
            await connection.execute(f'alter database "{name}" allow_connections false')
    finally:
        await connection.close()
    return name


@asynccontextmanager
async def create_database(cluster: Cluster, name: str, template: str = "template1") -> AsyncIterator[str]:
    """A copy of the template for the time of the block: an empty database, unless another one is named."""
    connection = await asyncpg.connect(cluster.url())
    await connection.execute(f'create database "{name}" template "{template}"')
    try:
        yield name
    finally:
        await connection.execute(f'drop database "{name}" with (force)')
        await connection.close()


@pytest.fixture(scope="session")
def signer() -> ContextSigner:
    return ContextSigner(bytes.fromhex(TEST_KEY))


@pytest.fixture(scope="session")
async def database(cluster: Cluster, database_name: str, signer: ContextSigner) -> AsyncIterator[Database]:
    """The product's two pools."""
    opened = await Database.open(
        cluster.url("vanilla_app", database_name), cluster.url("vanilla_runtime", database_name), signer, size=8
    )
    yield opened
    await opened.close()


@pytest.fixture
async def operator(cluster: Cluster, database_name: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection without a context: psql, cron, the SQL editor."""
    connection = await asyncpg.connect(cluster.url(database=database_name))
    await _prepare(connection)
    yield connection
    await connection.close()


@dataclass
class Person:
    """A user made for one test, with a key of scopes chat and read."""

    identity: Identity
    key: str
    key_id: uuid.UUID
    email: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@asynccontextmanager
async def as_person(connection: asyncpg.Connection, who: Person | Identity) -> AsyncIterator[None]:
    """A transaction of the operator's connection as the login of requests has it for somebody."""
    identity = who if isinstance(who, Identity) else who.identity
    async with connection.transaction():
        await connection.execute("set local role vanilla_app")
        token = ContextSigner(bytes.fromhex(TEST_KEY)).sign(identity)
        await connection.execute("select vanilla.set_context($1)", token)
        yield


@dataclass
class People:
    """Makes users, keys and tenants through the product's own functions."""

    operator: asyncpg.Connection
    made: list[Person] = field(default_factory=list)

    async def tenant(self) -> uuid.UUID:
        slug = f"t{uuid.uuid4().hex[:10]}"
        return await self.operator.fetchval("select create_tenant($1, $2)", slug, slug.upper())

    async def user(
        self,
        role: Role = "user",
        tenant_id: uuid.UUID = DEFAULT_TENANT,
        scopes: list[str] | None = None,
        balance: int | None = None,
    ) -> Person:
        """A new user; `balance` sets what is available exactly, whatever the level granted."""
        email = f"{uuid.uuid4().hex[:12]}@example.test"
        user_id = await self.operator.fetchval(
            "select create_user($1, $2, p_must_change_password => false, p_tenant_id => $3)", email, role, tenant_id
        )
        key = new_token(KEY_PREFIX)
        key_id = await self.operator.fetchval(
            "select create_api_key('test', $1, $2, $3, p_user_id => $4)",
            key[:12],
            token_hash(key),
            scopes or ["chat", "read"],
            user_id,
        )
        person = Person(Identity(tenant_id, user_id, role), key, key_id, email)
        if balance is not None:
            await self.set_balance(person, balance)
        self.made.append(person)
        return person

    async def set_balance(self, person: Person, balance: int) -> None:
        now = (await self.wallet(person))["available_tokens"]
        if balance != now:
            await self.operator.fetchval(
                "select adjust_user_tokens($1, $2, 'adjustment', 'test')", person.identity.user_id, balance - now
            )

    async def wallet(self, person: Person) -> asyncpg.Record:
        return await self.operator.fetchrow(
            "select * from user_token_wallets where user_id = $1", person.identity.user_id
        )


@pytest.fixture
def people(operator: asyncpg.Connection) -> People:
    return People(operator)


@pytest.fixture
def test_settings(cluster: Cluster, database_name: str, tmp_path: Path) -> Settings:
    """Settings of a server over the worker's database. It runs no jobs: they would be of every test's rows."""
    return settings_for(cluster, database_name, tmp_path, run_schedules=False)


def settings_for(cluster: Cluster, database_name: str, home: Path, **more: Any) -> Settings:
    return Settings(
        _env_file=None,
        DATABASE_URL=SecretStr(cluster.url("vanilla_app", database_name)),
        app_url=SecretStr(cluster.url("vanilla_app", database_name)),
        runtime_url=SecretStr(cluster.url("vanilla_runtime", database_name)),
        context_key=SecretStr(TEST_KEY),
        secret_key=SecretStr("c3" * 32),
        home=home,
        pool_size=8,
        **{"run_worker": False} | more,
    )


class Served(uvicorn.Server):
    """Ends when it is told to: uvicorn looks every 100 ms whether it should, and then gives clients 100 ms in any case.

    What the product does when it ends is tested with processes of their own.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self.told.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(0.005)
        for server in self.servers:
            await server.wait_closed()
        await self.lifespan.shutdown()


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[str]:
    """Serves an ASGI application on loopback with uvicorn, as the product does; yields its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on", access_log=False)
    server = Served(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        if task.done():
            await task
            raise RuntimeError("the server did not start")
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.end()
        await task


@pytest.fixture
async def api(test_settings: Settings) -> AsyncIterator[str]:
    """The address of a running API and console."""
    async with serve(create_app(test_settings)) as address:
        yield address


@pytest.fixture
async def http(api: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the running API; paths are relative to it."""
    async with aiohttp.ClientSession(api) as session:
        yield session
