"""A client that speaks JSON to the running API, and people who sign in."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, Cluster, People, Person, serve, settings_for
from vanilla_saas.app import create_app
from vanilla_saas.database.context import PLATFORM, Identity, Role
from vanilla_saas.tenancy.passwords import hash_password

PASSWORD = "four short words here"


def stranger(email: str) -> Person:
    """Somebody of whom only an address is known."""
    return Person(Identity(DEFAULT_TENANT, uuid.UUID(int=0), "user"), "", uuid.UUID(int=0), email)


@dataclass
class Reply:
    status: int
    body: Any
    headers: Any

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and stable code of a problem."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        return self.status, self.body["code"]


@dataclass
class Api:
    """`await api("POST", "/auth/sign-in", json=...)`; `token` is who asks."""

    http: aiohttp.ClientSession

    async def __call__(
        self, method: str, path: str, json: Any = None, token: str = "", tenant: uuid.UUID | None = None, **more: Any
    ) -> Reply:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if tenant:
            headers["x-vanilla-tenant"] = str(tenant)
        headers |= more.pop("headers", {})
        if json is not None:
            more["json"] = json
        async with self.http.request(method, f"/api/v1{path}", headers=headers, **more) as answer:
            body = await answer.json(content_type=None) if answer.content_type.endswith("json") else await answer.read()
            return Reply(answer.status, body, answer.headers)

    async def sign_in(self, person: Person, password: str = PASSWORD, tenant: str = "default") -> Reply:
        return await self("POST", "/auth/sign-in", {"tenant": tenant, "email": person.email, "password": password})


@pytest.fixture(scope="session")
async def api(cluster: Cluster, database_name: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """One server for all tests of the room."""
    home = tmp_path_factory.mktemp("home")
    async with serve(create_app(settings_for(cluster, database_name, home, run_schedules=False))) as address:
        yield address


@pytest.fixture
def call(http: aiohttp.ClientSession) -> Api:
    return Api(http)


@pytest.fixture(autouse=True)
async def _fresh_throttles(operator: asyncpg.Connection) -> None:
    """All tests come from one network, which the counters take for one visitor."""
    await operator.execute("delete from sign_in_throttles")


@pytest.fixture(scope="session")
async def password_hash() -> str:
    return await hash_password(PASSWORD)


@dataclass
class Member:
    """A person with an open session."""

    person: Person
    token: str
    refresh_token: str
    tenant: str

    @property
    def id(self) -> str:
        return str(self.person.identity.user_id)


MakeMember = Callable[..., Awaitable[Member]]


@pytest.fixture
async def member(call: Api, people: People, operator: asyncpg.Connection, password_hash: str) -> MakeMember:
    """Makes a user with PASSWORD and signs them in: `await member("admin", tenant_id)`."""

    async def make(role: Role = "user", tenant_id: uuid.UUID = DEFAULT_TENANT, must_change: bool = False) -> Member:
        if role == "superadmin":
            tenant_id = PLATFORM
        email = f"{uuid.uuid4().hex[:12]}@example.test"
        user_id = await operator.fetchval(
            "select create_user($1, $2, '', $3, null, $4, $5)", email, role, password_hash, must_change, tenant_id
        )
        slug = await operator.fetchval("select slug from tenants where id = $1", tenant_id)
        person = Person(Identity(tenant_id, user_id, role), "", uuid.UUID(int=0), email)
        tokens = (await call.sign_in(person, tenant=slug)).body
        return Member(person, tokens["access_token"], tokens["refresh_token"], slug)

    return make


@pytest.fixture
def audited(operator: asyncpg.Connection) -> Callable[..., Awaitable[list[Any]]]:
    """Audit rows of an action about a target, oldest first."""

    async def find(action: str, target: str | uuid.UUID, tenant_id: uuid.UUID = DEFAULT_TENANT) -> list[Any]:
        return list(
            await operator.fetch(
                "select * from audit_logs where tenant_id = $1 and action = $2 and target_id = $3 order by id",
                tenant_id,
                action,
                uuid.UUID(str(target)),
            )
        )

    return find
