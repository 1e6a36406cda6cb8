"""What every page promises over HTTP: its headers, its frame, who may see it."""

import hashlib
import re
import tomllib
from pathlib import Path

import aiohttp
import pytest
from fastapi import FastAPI

from tests.conftest import People, serve
from tests.console.console_support import Page, look, set_password, signed_in, submit, super_admin
from vanilla_saas.app import create_app
from vanilla_saas.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
OPEN = ["/sign-in", "/register", "/password/set", "/password/set?token=vst_x", "/nowhere",
        "/pricing"]  # fmt: skip
FOR_USERS = [
    "/wallet",
    "/plan",
    "/billing",
    "/playground",
    "/keys",
    "/workflows",
    "/engines",
    "/engine-choice",
    "/agents",
    "/agent-runs",
    "/runs",
    "/approvals",
    "/channels",
    "/agreements",
    "/password",
]
FOR_ADMINS = [*FOR_USERS, "/users", "/audit", "/levels", "/payments"]
FOR_SUPER_ADMINS = [*FOR_ADMINS, "/tenants", "/providers", "/health", "/schedules", "/workers"]
VENDORED = [
    Path("src/vanilla_saas/console/static/vendor/vendor.toml"),
    Path("tests/browser/vendor/vendor.toml"),
]
ROOT = Path(__file__).parents[2]


def _check(page: Page, headers: aiohttp.typedefs.LooseHeaders, path: str) -> None:
    assert headers["content-security-policy"] == POLICY, path
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert [tag.get("lang") for tag in page.all("html")] == ["en"]
    assert page.title.endswith("· Vanilla SaaS")
    assert len(page.title) > len("· Vanilla SaaS") + 1
    assert len(page.all("h1")) == 1, path
    assert page.inline == [], path
    for tag, attributes in page.tags:
        assert tag != "style", path
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (path, tag, attributes)
        for name in ("src", "href", "action", "formaction"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "javascript:")), (path, attributes)
    identifiers = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers)), path


async def test_pages_before_a_session_carry_the_policy_and_nothing_inline(http: aiohttp.ClientSession) -> None:
    for path in OPEN:
        _, page, headers = await look(http, path)
        _check(page, headers, path)


@pytest.mark.parametrize("role", ["user", "admin", "superadmin"])
async def test_each_role_sees_its_pages_and_its_navigation(api: str, people: People, role: str) -> None:
    allowed = {"user": FOR_USERS, "admin": FOR_ADMINS, "superadmin": FOR_SUPER_ADMINS}[role]
    person = await super_admin(people) if role == "superadmin" else await people.user(role)  # type: ignore[arg-type]
    async with signed_in(api, people, person) as http:
        for path in FOR_SUPER_ADMINS:
            status, page, headers = await look(http, path)
            _check(page, headers, path)
            assert status == (200 if path in allowed else 403), path
            assert page.navigation() == {path for path in allowed if path not in ("/password", "/engine-choice")}


async def test_pages_lead_to_the_sign_in_page_without_a_session(http: aiohttp.ClientSession) -> None:
    for path in [*FOR_SUPER_ADMINS, "/"]:
        status, _, headers = await look(http, path)
        assert status == 303
        assert headers["location"] == ("/sign-in" if path == "/" else f"/sign-in?next=%2F{path[1:]}")
    status, _, headers = await submit(http, "/keys", name="x")
    assert (status, headers["location"]) == (303, "/sign-in")
    status, _, headers = await submit(http, "/keys", {"hx-request": "true"}, name="x")
    assert (status, headers["hx-redirect"]) == (200, "/sign-in")


@pytest.mark.parametrize(
    "sent",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        # the browser's own word counts for more than a header that agrees
        {"sec-fetch-site": "cross-site", "origin": "SELF"},
        {},
    ],
)
async def test_a_form_from_elsewhere_is_refused(api: str, people: People, sent: dict[str, str]) -> None:
    person = await people.user()
    sent = {name: value.replace("SELF", api) for name, value in sent.items()}
    async with signed_in(api, people, person) as http:
        for path in ("/sign-out", "/keys", "/theme", "/sign-in", "/playground/call"):
            async with http.post(path, data={"name": "x"}, headers={"accept": "text/html", **sent}) as answer:
                assert answer.status in (403,), path
                assert "not sent from a page of this console" in await answer.text()
        assert (await look(http, "/wallet"))[0] == 200


@pytest.mark.parametrize("sent", [{"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "SELF"}])
async def test_a_form_from_the_console_is_taken(api: str, people: People, sent: dict[str, str]) -> None:
    person = await people.user()
    sent = {name: value.replace("SELF", api) for name, value in sent.items()}
    async with (
        signed_in(api, people, person) as http,
        http.post("/sign-out", headers=sent, allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["location"]) == (303, "/sign-in?notice=signed-out")


async def test_cookies_are_closed_to_scripts_and_prefixed_over_https(api: str, people: People) -> None:
    person = await people.user()
    await set_password(people, person)
    form = {"tenant": "default", "email": person.email, "password": "correct horse battery staple"}
    async with aiohttp.ClientSession(api) as http:
        _, _, headers = await submit(http, "/sign-in", **form)
        cookies = {line.split("=")[0]: line for line in headers.getall("set-cookie")}
        for part in ("HttpOnly", "SameSite=lax", "Path=/"):
            assert part in cookies["vs_session"]
        assert "Secure" not in cookies["vs_session"]
        # uvicorn believes a proxy on loopback
        _, _, headers = await submit(http, "/sign-in", {"x-forwarded-proto": "https"}, **form)
        cookies = {line.split("=")[0]: line for line in headers.getall("set-cookie")}
        for part in ("HttpOnly", "SameSite=lax", "Path=/", "Secure"):
            assert part in cookies["__Host-vs_session"]
        assert "Domain" not in cookies["__Host-vs_session"]


async def test_an_api_key_in_the_cookie_opens_no_page(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user("admin", scopes=["admin"])
    status, _, _ = await look(http, "/wallet", cookie=f"vs_session={person.key}")
    assert status == 303


async def test_an_unknown_page_is_friendly_and_an_unknown_route_of_the_api_is_a_problem(
    http: aiohttp.ClientSession,
) -> None:
    status, page, headers = await look(http, "/nowhere")
    assert status == 404
    assert headers["x-request-id"] in page.text
    assert "not_found" in page.text
    async with http.get("/api/v1/nowhere", headers={"accept": "text/html"}) as answer:
        assert answer.content_type == "application/problem+json"


async def test_a_failure_shows_no_trace(test_settings: Settings) -> None:
    app: FastAPI = create_app(test_settings)

    async def fail() -> None:
        raise RuntimeError("the inside of the product")

    app.add_api_route("/broken", fail)
    async with serve(app) as address, aiohttp.ClientSession(address) as http:
        status, page, headers = await look(http, "/broken")
        assert status == 500
        assert headers["content-security-policy"] == POLICY
        assert "internal_error" in page.text
        assert "Traceback" not in page.text
        assert "inside" not in page.text


async def test_static_files_are_kept_for_ever_under_their_own_hash_only(http: aiohttp.ClientSession) -> None:
    _, page, _ = await look(http, "/sign-in")
    addresses = [str(tag["src"]) for tag in page.all("script")] + [str(tag["href"]) for tag in page.all("link")]
    assert len(addresses) >= 4
    for address in addresses:
        async with http.get(address) as answer:
            assert answer.status == 200
            assert "immutable" in answer.headers["cache-control"]
            tag = answer.headers["etag"]
        async with http.get(address, headers={"if-none-match": tag}) as answer:
            assert answer.status == 304
        async with http.get(re.sub("/static/[0-9a-f]+/", "/static/0000/", address)) as answer:
            assert answer.headers["cache-control"] == "no-cache"
    async with http.get("/static/0/vendor/vendor.toml") as answer:
        assert answer.status == 404
    async with http.get("/static/0/%2e%2e/security.py") as answer:
        assert answer.status == 404


@pytest.mark.parametrize("manifest", VENDORED, ids=str)
def test_vendored_files_are_unchanged_and_have_their_licence(manifest: Path) -> None:
    folder = (ROOT / manifest).parent
    listed = {manifest.name}
    for library in tomllib.loads((ROOT / manifest).read_text()).values():
        assert library["version"]
        assert library["licence"]
        assert library["licence_file"] in library["files"]
        for name, digest in library["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
            listed.add(name)
    assert {path.name for path in folder.iterdir()} == listed


async def test_the_theme_is_kept_in_a_cookie_that_the_server_renders(api: str, http: aiohttp.ClientSession) -> None:
    status, _, headers = await submit(http, "/theme", {"referer": f"{api}/register"}, theme="dark")
    assert (status, headers["location"]) == (303, "/register")
    _, page, _ = await look(http, "/register", cookie="vs_theme=dark")
    assert page.all("html") == [{"lang": "en", "data-theme": "dark"}]
    _, page, _ = await look(http, "/register", cookie='vs_theme="><script>')
    assert page.all("html") == [{"lang": "en", "data-theme": "auto"}]
    for evil in ("//evil.example", "/\\evil.example"):
        status, _, headers = await submit(http, "/theme", {"referer": f"{api}{evil}"}, theme="dark")
        assert headers["location"] == "/"
