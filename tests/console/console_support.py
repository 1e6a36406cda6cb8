"""A browser without a browser: cookies, same-origin forms, and a look at the HTML that came back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import aiohttp

from tests.conftest import SUPER_ADMIN, People, Person
from vanilla_saas.database.context import PLATFORM, Identity
from vanilla_saas.tenancy.passwords import hash_password

PASSWORD = "correct horse battery staple"
PAGE = {"accept": "text/html,application/xhtml+xml"}
FORM = PAGE | {"sec-fetch-site": "same-origin"}
_hashes: dict[str, str] = {}


@dataclass
class Page(HTMLParser):
    """What tests ask of a page."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)
    title: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open = ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._open == "title":
            self.title += data
        if self._open in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def navigation(self) -> set[str | None]:
        """Where the side bar leads."""
        known = {
            "/wallet",
            "/plan",
            "/levels",
            "/billing",
            "/payments",
            "/playground",
            "/workflows",
            "/engines",
            "/agents",
            "/agent-runs",
            "/runs",
            "/approvals",
            "/channels",
            "/agreements",
            "/keys",
            "/users",
            "/audit",
            "/tenants",
            "/providers",
            "/health",
            "/schedules",
            "/workers",
        }
        return {link.get("href") for link in self.all("a")} & known


async def set_password(people: People, person: Person, password: str = PASSWORD, *, must_change: bool = False) -> None:
    if password not in _hashes:
        _hashes[password] = await hash_password(password)
    await people.operator.fetchval(
        "select set_user_password($1, $2, $3)", person.identity.user_id, _hashes[password], must_change
    )


async def tenant_slug(people: People, person: Person) -> str:
    slug: str = await people.operator.fetchval("select slug from tenants where id = $1", person.identity.tenant_id)
    return slug


async def submit(
    http: aiohttp.ClientSession, path: str, headers: dict[str, str] | None = None, **form: Any
) -> tuple[int, str, Any]:
    """Posts a form as a page of the console would: status, body and headers, redirects not followed."""
    async with http.post(path, data=form, headers=FORM | (headers or {}), allow_redirects=False) as answer:
        return answer.status, await answer.text(), answer.headers


async def look(http: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, Page, Any]:
    async with http.get(path, headers=PAGE | headers, allow_redirects=False) as answer:
        return answer.status, Page(await answer.text()), answer.headers


async def sign_in(http: aiohttp.ClientSession, people: People, person: Person, **form: str) -> tuple[int, str, Any]:
    return await submit(
        http,
        "/sign-in",
        **{"tenant": await tenant_slug(people, person), "email": person.email, "password": PASSWORD} | form,
    )


@asynccontextmanager
async def signed_in(api: str, people: People, person: Person) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with the person's session cookie."""
    await set_password(people, person)
    # an IP address is no domain to a cookie jar unless it is told so
    async with aiohttp.ClientSession(api, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        status, text, _ = await sign_in(http, people, person)
        assert status == 303, text
        yield http


async def super_admin(people: People) -> Person:
    """The seed's super admin, with a password that signs in."""
    root = Person(Identity(PLATFORM, SUPER_ADMIN, "superadmin"), "", SUPER_ADMIN, "admin@localhost")
    await set_password(people, root)
    return root
