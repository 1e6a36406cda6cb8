"""A tenant with engines: flows published, deployed and offered, people who run them, and a worker done by hand."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from tests.conftest import DEFAULT_TENANT, TEST_KEY, Cluster, Person
from tests.workflows.hands import Room, room
from vanilla_saas.database.context import ContextSigner, Identity
from vanilla_saas.database.errors import from_postgres
from vanilla_saas.database.pool import _prepare
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, new_token, token_hash

SIGNER = ContextSigner(bytes.fromhex(TEST_KEY))
PLATFORM = uuid.UUID(int=0)


@dataclass
class Shop:
    """The room of a runner, and the login of requests for those who act in it."""

    room: Room
    app: asyncpg.Connection
    runtime: asyncpg.Connection
    admin: Person
    boss: Identity

    @property
    def operator(self) -> asyncpg.Connection:
        return self.room.operator

    async def person(
        self, level: str | None = None, tenant: uuid.UUID = DEFAULT_TENANT, balance: int = 100_000
    ) -> Person:
        """A user, on a level of that slug; the tenant's default one without."""
        person = await self.room.people.user(tenant_id=tenant, balance=balance)
        if level is not None:
            await self.operator.execute(
                "select auto_allocate_tokens_for_level($1, l.id) from levels l where l.tenant_id = $2 and l.slug = $3",
                person.identity.user_id,
                tenant,
                level,
            )
            await self.room.people.set_balance(person, balance)
        return person

    async def ask(self, who: Person | Identity | None, function: str, *arguments: Any, **named: Any) -> Any:
        """Calls a function as somebody, or as the operator; a refusal is raised as API and CLI see it."""
        places = [f"${n + 1}" for n in range(len(arguments))]
        places += [f"{name} => ${n + 1 + len(arguments)}" for n, name in enumerate(named)]
        call = f"select {function}({', '.join(places)})"
        values = [*arguments, *named.values()]
        try:
            if who is None:
                return await self.operator.fetchval(call, *values)
            async with self.app.transaction():
                await self.app.execute("select vanilla.set_context($1)", SIGNER.sign(getattr(who, "identity", who)))
                return await self.app.fetchval(call, *values)
        except asyncpg.PostgresError as error:
            refusal = from_postgres(error)
            if refusal is None:
                raise
            raise refusal from error

    async def flow(self, definition: dict[str, Any], owner: Person | None = None) -> uuid.UUID:
        return await self.room.publish(definition, owner or self.admin)

    async def deploy(
        self,
        definition: dict[str, Any] | None = None,
        slug: str | None = None,
        access: str | None = "execute",
        **named: Any,
    ) -> "Made":
        """An engine of the tenant that everybody may run, unless `access` says otherwise."""
        slug = slug or f"e{uuid.uuid4().hex[:10]}"
        flow = await self.flow(definition or plain())
        made = await self.ask(self.admin, "deploy_engine", slug, flow, **named)
        engine = Made(uuid.UUID(made["engine_id"]), slug, made["version"], flow)
        if access is not None and made["version"] == 1:
            await self.ask(self.admin, "set_engine", engine.id, p_default_access=access)
        return engine

    async def deploy_again(self, engine: "Made", text: str = "2") -> int:
        flow = await self.flow(plain(text))
        made = await self.ask(self.admin, "deploy_engine", engine.slug, flow)
        return int(made["version"])

    async def run(self, who: Person, ref: str | None = None, **values: Any) -> dict[str, Any]:
        return dict(await self.ask(who, "execute_engine", ref, values))

    async def key(self, who: Person, ref: str, **named: Any) -> tuple[str, uuid.UUID]:
        """A key of somebody's that runs one engine, with its id."""
        key = new_token(KEY_PREFIX)
        return key, await self.ask(who, "create_engine_key", ref, "for the site", key[:12], token_hash(key), **named)

    async def level(self, slug: str, tenant: uuid.UUID = DEFAULT_TENANT) -> uuid.UUID:
        found: uuid.UUID = await self.operator.fetchval(
            "select id from levels where tenant_id = $1 and slug = $2", tenant, slug
        )
        return found


@dataclass
class Made:
    id: uuid.UUID
    slug: str
    version: int
    flow: uuid.UUID


def plain(text: str = "1", **more: Any) -> dict[str, Any]:
    """A flow of one node; another text is another version."""
    return {"nodes": [{"id": "a", "kind": "transform", "value": text}], "connections": [], **more}


def asking(model: str = "sandbox-small", **more: Any) -> dict[str, Any]:
    return {"nodes": [{"id": "a", "kind": "llm", "model": model, "prompt": "Hi"}], "connections": [], **more}


@asynccontextmanager
async def shop(cluster: Cluster) -> AsyncIterator[Shop]:
    async with room(cluster) as made:
        app = await asyncpg.connect(cluster.url("vanilla_app", made.name))
        runtime = await asyncpg.connect(cluster.url("vanilla_runtime", made.name))
        await _prepare(app)
        await _prepare(runtime)
        boss = await made.operator.fetchval(
            "select id from users where tenant_id = $1 and role = 'superadmin' limit 1", PLATFORM
        )
        yield Shop(
            made, app, runtime, await made.people.user("admin", balance=100_000), Identity(PLATFORM, boss, "superadmin")
        )
        await app.close()
        await runtime.close()
