"""Every page in both themes: no accessibility violation, no complaint of the browser, nothing too wide."""

import uuid
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tests.browser.conftest import Visitor
from tests.browser.history import month_of_calls
from tests.conftest import DEFAULT_TENANT, People, Person
from tests.console.console_support import PASSWORD, set_password, super_admin
from vanilla_saas.database.context import Identity
from vanilla_saas.database.pool import Database

Visit = Callable[..., Awaitable[Visitor]]
EVERYBODY = ["/sign-in", "/register", "/password/set?token=vst_x", "/nowhere"]
ADMIN = [
    "/wallet",
    "/playground",
    "/keys",
    "/users",
    "/audit",
    "/password",
    "/executions/{execution}",
    "/wallet/{other}",
]
SUPER = ["/tenants", "/providers"]


@pytest.fixture(scope="session")
async def history(cluster: object, database_name: str, database: Database) -> Person:
    connection = await asyncpg.connect(cluster.url(database=database_name))  # type: ignore[attr-defined]
    try:
        email = f"ada.{uuid.uuid4().hex[:6]}@example.test"
        user_id = await month_of_calls(connection, database, email)
    finally:
        await connection.close()
    return Person(Identity(DEFAULT_TENANT, user_id, "admin"), "", user_id, email)


def _name(path: str, theme: str, width: int) -> str:
    return f"{path.strip('/').split('?')[0].replace('/', '-').split('{')[0].strip('-') or 'start'}-{theme}-{width}"


async def _paths(people: People, history: Person) -> list[str]:
    other = await people.user(balance=12_345)
    execution = await people.operator.fetchval(
        "select id from ai_executions where user_id = $1 order by created_at desc limit 1", history.identity.user_id
    )
    return [path.format(execution=execution, other=other.identity.user_id) for path in ADMIN]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
async def test_every_page_is_accessible_and_fits_its_window(
    visitor: Visit, people: People, history: Person, theme: str, width: int
) -> None:
    problems = []

    async def look(one: Visitor, path: str, name: str) -> None:
        await one.visit(path)
        problems.extend(f"{path}: {line}" for line in await one.violations())
        if await one.overflow() > 0:
            problems.append(f"{path} is wider than {width} pixels")
        await one.picture(_name(name, theme, width))

    guest = await visitor(width)
    await guest.theme(theme)
    for path in EVERYBODY:
        await look(guest, path, path)

    await set_password(people, history)
    admin = await visitor(width)
    await admin.theme(theme)
    await admin.sign_in("default", history.email, PASSWORD)
    for path, name in zip(await _paths(people, history), ADMIN, strict=True):
        await look(admin, path, name if "other" not in name else "/user-wallet")

    root = await visitor(width)
    await root.theme(theme)
    await super_admin(people)
    await root.sign_in("platform", "admin@localhost", PASSWORD)
    for path in SUPER:
        await look(root, path, path)
    assert not problems, "\n".join(problems)
