"""SQL in every text that a request carries: refused in plain words or kept as text, and never run."""

import asyncio
import base64
import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import asyncpg
import orjson
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from yarl import URL

from tests.conftest import LONG, Cluster, migrated_database
from tests.console.console_support import FORM
from tests.isolation.payloads import SQL, UNSENDABLE
from tests.isolation.rows import CANARY, Member, World, populate
from tests.processes import Running, over
from vanilla_saas.app import create_app
from vanilla_saas.console.shell import THEME_COOKIE
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import ERROR_CODES
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy.page_session import SESSION_COOKIE, TENANT_COOKIE
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, SESSION_PREFIX, new_token, token_hash
from vanilla_saas.tenancy.sign_in_pages import TENANT_NAME_COOKIE

EXAMPLES = 500 if LONG else 2
CODES = {code.name for code in ERROR_CODES}
HEADERS = (
    *("authorization", "x-vanilla-tenant", "x-request-id", "idempotency-key", "user-agent"),
    *("accept", "cookie", "referer", "hx-request", "x-forwarded-for"),
)
COOKIES = (SESSION_COOKIE, TENANT_COOKIE, TENANT_NAME_COOKIE, THEME_COOKIE)
AT_ONCE = 8


@dataclass
class Target:
    """A running server over two tenants; an admin and a user of the first attack it."""

    server: Running
    world: World
    operator: asyncpg.Connection
    keys: dict[str, str]
    document: dict[str, Any]

    async def session(self, member: Member) -> str:
        """A new session: what is sent may have ended the one before."""
        token = new_token(SESSION_PREFIX)
        email = await self.operator.fetchval("select email from users where id = $1", uuid.UUID(member.id))
        await self.operator.fetchval(
            "select vanilla.finish_sign_in($1, $2, $3, $4, '127.0.0.1', 'test')",
            self.world.a.word,
            email,
            token_hash(token),
            os.urandom(32),
        )
        return token

    async def _digests(self) -> dict[str, str]:
        """Of B's rows in each table."""
        names = [table.name for table in self.world.tables if not table.parent]
        return {name: await self.world.digest(self.operator, [name], of_b=True) for name in names}

    @asynccontextmanager
    async def unharmed(self) -> AsyncIterator[None]:
        """B's rows are what they were, the log has no failure, and neither output has a canary."""
        before, out, err = await self._digests(), len(self.server.out), len(self.server.err)
        yield
        assert await self._digests() == before, "rows of the other tenant changed"
        told = self.server.out[out:] + self.server.err[err:]
        assert CANARY not in told
        assert "request_failed" not in told, told[-4000:]
        assert "Traceback" not in told, told[-4000:]


@pytest.fixture(scope="module")
async def target(
    cluster: Cluster, signer: ContextSigner, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    async with migrated_database(cluster, "attacked") as name:
        operator = await asyncpg.connect(cluster.url(database=name))
        world = await populate(operator, signer)
        keys = {role: await _key(operator, getattr(world.a, role), role) for role in ("user", "admin")}
        # the server's own tick gives back what has expired, a worker runs steps: that alone would change B's rows
        await operator.execute(
            "update user_token_holds set expires_at = 'infinity' where tenant_id = $1 and state = 'open'",
            uuid.UUID(world.b.id),
        )
        home: Path = tmp_path_factory.mktemp("home")
        async with over(cluster, name, home).serving("serve", VANILLA_SAAS_RUN_WORKER="false") as server:
            async with aiohttp.ClientSession(server.url) as http, http.get("/openapi.json") as answer:
                document = await answer.json()
            yield Target(server, world, operator, keys, document)
        await operator.close()


async def _key(operator: asyncpg.Connection, member: Member, role: str) -> str:
    key = new_token(KEY_PREFIX)
    scopes = ["chat", "read", "admin"] if role == "admin" else ["chat", "read"]
    await operator.fetchval(
        "select create_api_key('attack', $1, $2, $3, p_user_id => $4)",
        key[:12],
        token_hash(key),
        scopes,
        uuid.UUID(member.id),
    )
    return key


def check(status: int, kind: str, text: str, what: str) -> None:
    """No failure of ours, nothing of B's, and a refusal of the API says so as documented."""
    assert status < 500, f"{what}: {status} {text[:500]}"
    assert CANARY not in text, f"{what} told of the other tenant: {text[:500]}"
    if status >= 400 and "/api/" in what:
        assert kind == "application/problem+json", f"{what}: {status} {kind} {text[:500]}"
        assert orjson.loads(text)["code"] in CODES, f"{what}: {text[:500]}"


@dataclass
class Attack:
    """One request with a payload in one place; the rest of it is what the route expects."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    body: Any = None
    form: dict[str, str] | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path} {self.query} {self.headers} {self.cookies} {self.body or self.form}"[:400]

    async def send(self, http: aiohttp.ClientSession) -> None:
        content = None if self.body is None else json.dumps(self.body)  # escapes what UTF-8 cannot carry
        headers = self.headers | ({"content-type": "application/json"} if content else {})
        if self.cookies:
            headers["cookie"] = "; ".join(
                f"{name}={quote(value, errors='replace')}" for name, value in self.cookies.items()
            )
        address = URL(self.path, encoded=True)
        if self.query:
            address = URL(f"{self.path}?{urlencode(self.query, errors='replace')}", encoded=True)
        form = None if self.form is None else urlencode(self.form, errors="replace")
        if form is not None:
            headers["content-type"] = "application/x-www-form-urlencoded"
        async with http.request(
            self.method, address, headers=headers, data=content or form, allow_redirects=False
        ) as answer:
            check(answer.status, answer.content_type, await answer.text(errors="replace"), self.name)


async def _send_all(url: str, attacks: list[Attack]) -> None:
    """Eight at once, so that what one leaves in a connection meets the others."""
    queue = iter(attacks)

    async def client(http: aiohttp.ClientSession) -> None:
        for attack in queue:
            await attack.send(http)

    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(url, cookie_jar=jar) as http, asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(client(http))


def _expected(world: World) -> dict[str, Any]:
    """What the routes expect, by the name of the field."""
    return {
        "user_id": world.a.other.id,
        "tenant_id": world.a.id,
        "key_id": str(uuid.uuid4()),
        "execution_id": str(uuid.uuid4()),
        "provider_id": str(uuid.uuid4()),
        "tenant": world.a.word,
        "email": "somebody@example.test",
        "password": "four short words here",
        "old_password": "four short words here",
        "new_password": "four other short words",
        "refresh_token": "vsr_x",
        "token": "vst_x",
        "role": "user",
        "status": "active",
        "name": "name",
        "display_name": "name",
        "scopes": ["read"],
        "amount": 1,
        "direction": "credit",
        "reason": "reason",
        "level": "free",
        "slug": "slug",
        "engine": world.a.word,
        "ref": world.a.word,
        "external_id": "somebody",
        "max_tokens": 5,
        "model": "sandbox-small",
        "prompt": "hello",
    }


def _api_attacks(target: Target, role: str, payloads: list[str]) -> Iterator[Attack]:
    document, expected = target.document, _expected(target.world)
    schemas = document["components"]["schemas"]
    who = {"authorization": f"Bearer {target.keys[role]}"}
    for template, methods in document["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            ids = {
                p["name"]: quote(str(expected.get(p["name"], uuid.uuid4()))) for p in parameters if p["in"] == "path"
            }
            fields: dict[str, Any] = {"properties": {}}
            if content := operation.get("requestBody", {}).get("content"):
                if "application/json" not in content:
                    continue  # a file: see the test of anchors
                schema = content["application/json"]["schema"]  # a body that may be left out has others beside it
                named = next(one["$ref"] for one in [schema, *schema.get("anyOf", [])] if "$ref" in one)
                fields = schemas[named.rpartition("/")[2]]
            required = {name: expected.get(name, "x") for name in fields.get("required", [])}
            body = required if content else None
            for payload in payloads:
                for parameter in parameters:
                    if parameter["in"] == "path":
                        other = ids | {parameter["name"]: quote(payload, safe="", errors="replace")}
                        yield Attack(method.upper(), template.format(**other), headers=who, body=body)
                    if parameter["in"] == "query":
                        yield Attack(
                            method.upper(), template.format(**ids), {parameter["name"]: payload}, who, body=body
                        )
                for name in fields["properties"]:
                    yield Attack(method.upper(), template.format(**ids), headers=who, body=required | {name: payload})
                    yield Attack(method.upper(), template.format(**ids), headers=who, body=required | {name: [payload]})
                for name in HEADERS:
                    value = payload if payload.isprintable() and payload.isascii() else "' or true --"
                    value = f"Bearer {value}" if name == "authorization" else value
                    yield Attack(method.upper(), template.format(**ids), headers=who | {name: value}, body=body)


def _spread(make: Callable[[list[str]], Iterator[Attack]]) -> list[Attack]:
    """Every payload in every place; without VANILLA_SAAS_LONG a quote and another, and all somewhere."""
    by_payload = [list(make([payload])) for payload in SQL + UNSENDABLE]
    if LONG:
        return [attack for attacks in by_payload for attack in attacks]
    quotes, others = by_payload[0], by_payload[1:]
    return quotes + [others[place % len(others)][place] for place in range(len(quotes))]


def _cursors(payload: str) -> list[str]:
    """A payload as it is, and in the place of a cursor's own fields."""
    raw = payload.encode("utf-8", "replace")
    return [
        base64.urlsafe_b64encode(text).decode().rstrip("=") for text in (raw, json.dumps([payload, payload]).encode())
    ]


@pytest.mark.parametrize("role", ["user", "admin"])
async def test_sql_in_any_text_of_the_api_is_refused_or_kept_as_text(target: Target, role: str) -> None:
    listings = [f"/api/v1/{room}" for room in ("users", "keys", "audit", "ledger", "executions", "tenants")]
    who = {"authorization": f"Bearer {target.keys[role]}"}
    attacks = _spread(lambda payloads: _api_attacks(target, role, payloads))
    attacks += [
        Attack("GET", path, {"cursor": cursor}, who)
        for path, payload in zip(cycle(listings), SQL + UNSENDABLE, strict=False)
        for cursor in _cursors(payload)
    ]
    # the gateway is not in the description
    question = {"model": "sandbox-small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    attacks += [
        Attack("POST", "/v1/chat/completions", headers=who, body=question | {name: payload})
        for name, payload in zip(cycle(("model", "user", "messages", "stop")), SQL + UNSENDABLE, strict=False)
    ]
    attacks += [
        Attack("POST", "/v1/embeddings", headers=who, body={"model": "sandbox-embed", "input": "x"} | {name: payload})
        for name, payload in zip(cycle(("model", "user", "input", "encoding_format")), SQL + UNSENDABLE, strict=False)
    ]
    async with target.unharmed():
        await _send_all(target.server.url, attacks)


def _pages() -> list[APIRoute]:
    """Every route of the console, whatever room it is of; none is in the API's description."""
    app = create_app(Settings(home=Path("unused"), DATABASE_URL=None))
    found: list[APIRoute] = []

    def walk(routes: Any) -> None:
        for route in routes:
            if isinstance(route, APIRoute):
                found.append(route)
            elif router := getattr(route, "original_router", None):
                walk(router.routes)

    walk(app.routes)
    pages = [route for route in found if not route.include_in_schema]
    assert len(pages) > 70
    return pages


def _page_attacks(target: Target, payloads: list[str]) -> Iterator[Attack]:
    expected = _expected(target.world)
    for route in _pages():
        (method,) = route.methods
        inputs = route.dependant
        ids = {p.name: quote(str(expected.get(p.name, uuid.uuid4()))) for p in inputs.path_params}
        form = {p.name: str(expected.get(p.name, "x")) for p in inputs.body_params}
        path = route.path.format(**ids)
        for payload in payloads:
            for p in inputs.path_params:
                other = route.path.format(**ids | {p.name: quote(payload, safe="", errors="replace")})
                yield Attack(method, other, headers=FORM, form=form)
            for p in inputs.query_params:
                yield Attack(method, path, {p.name: payload}, FORM)
            for p in inputs.body_params:
                yield Attack(method, path, headers=FORM, form=form | {p.name: payload})
            for name in COOKIES:
                yield Attack(method, path, headers=FORM, cookies={name: payload}, form=form)


@pytest.mark.parametrize("role", ["user", "admin"])
async def test_sql_in_any_field_of_the_console_is_refused_or_kept_as_text(target: Target, role: str) -> None:
    attacks = _spread(lambda payloads: _page_attacks(target, payloads))
    async with target.unharmed():
        for some in (attacks[at : at + 100] for at in range(0, len(attacks), 100)):
            cookies = {SESSION_COOKIE: await target.session(getattr(target.world.a, role))}
            for attack in some:
                attack.cookies = cookies | attack.cookies
            await _send_all(target.server.url, some)


@pytest.mark.parametrize("role", ["user", "admin"])
async def test_sql_in_an_anchor_is_refused_and_another_tenants_chains_are_not_compared(
    target: Target, role: str
) -> None:
    world, admins = target.world, {"authorization": f"Bearer {target.keys['admin']}"}
    who = {"authorization": f"Bearer {target.keys[role]}"}
    async with target.unharmed(), aiohttp.ClientSession(target.server.url) as http:
        async with http.get("/api/v1/ledger/anchor", headers=admins) as answer:
            *chains, seal = [orjson.loads(line) for line in (await answer.read()).splitlines()]
        assert {chain["tenant_id"] for chain in chains} == {world.a.id}

        async def upload(*lines: Any, **sealed: Any) -> Any:
            text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            end = seal | {"count": len(lines), "sha256": hashlib.sha256(text).hexdigest()} | sealed
            sent = text + json.dumps(end).encode() + b"\n"
            async with http.post("/api/v1/ledger/anchor/check", headers=who, data=sent) as answer:
                told = await answer.text()
                check(answer.status, answer.content_type, told, f"POST /api/v1/ledger/anchor/check {sent!r:.400}")
                return answer.status, orjson.loads(told)

        # the seal is right each time, so that the line is what is judged
        for payload in SQL + UNSENDABLE + [None, 2**63, [], {}]:
            for name in chains[0]:
                status, _ = await upload(chains[0] | {name: payload})
                assert status in (400, 403)
            for sealed in ({"at": payload}, {"count": payload}, {"sha256": payload}):
                status, _ = await upload(chains[0], **sealed)
                assert status in (400, 403)
        # an id that exists tells no more than one that does not
        theirs = await target.operator.fetchrow(
            "select tenant_id, user_id, seq, encode(head, 'hex') as hash from user_token_wallets"
            " where tenant_id = $1 and seq > 0",
            uuid.UUID(world.b.id),
        )
        nobody = {"tenant_id": str(uuid.uuid4()), "user_id": str(uuid.uuid4()), "seq": 1, "hash": "0" * 64}
        told = [
            await upload(chains[0], line)
            for line in (
                {k: v if isinstance(v, int) else str(v) for k, v in theirs.items()},
                {k: v if isinstance(v, int) else str(v) for k, v in theirs.items()} | {"hash": "0" * 64},
                {"tenant_id": world.a.id, "user_id": str(theirs["user_id"]), "seq": 1, "hash": theirs["hash"]},
                nobody | {"tenant_id": world.a.id},
                nobody,
            )
        ]
        if role == "user":
            assert {status for status, _ in told} == {403}
            return
        assert [(status, checked["checked"], checked["found"]) for status, checked in told] == [
            *((200, 1, 0), (200, 1, 0), (200, 2, 1), (200, 2, 1), (200, 1, 0))
        ]
        assert told[2][1]["problems"][0]["problem"] == told[3][1]["problems"][0]["problem"]


@pytest.mark.parametrize("role", ["user", "admin"])
async def test_whatever_is_made_from_the_apis_description_finds_a_documented_answer(target: Target, role: str) -> None:
    # an anchor is a file of lines, which a description cannot give: its test is above
    schema = schemathesis.openapi.from_dict(target.document).exclude(path_regex="/anchor")
    fuzz = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
    )

    def attack(operation: Any) -> None:
        cases = st.one_of(
            operation.as_strategy(GenerationMode.POSITIVE), operation.as_strategy(GenerationMode.NEGATIVE)
        )

        @fuzz
        @given(case=cases, payload=st.none() | st.sampled_from(SQL), place=st.integers(0, 9))
        def run(case: schemathesis.Case, payload: str | None, place: int) -> None:
            if payload is not None:
                _plant(case, payload, place)
            answer = case.call(
                base_url=target.server.url, headers={"authorization": f"Bearer {target.keys[role]}"}, timeout=30
            )
            kind = answer.headers.get("content-type", [""])[0]
            check(
                answer.status_code,
                kind,
                answer.text,
                f"{case.method} {answer.request.url} {answer.request.body!r:.300}",
            )

        run()

    def attack_all() -> None:
        for found in schema.get_all_operations():
            attack(found.ok())

    async with target.unharmed():
        await asyncio.to_thread(attack_all)


def _plant(case: schemathesis.Case, payload: str, place: int) -> None:
    """The payload instead of one of the texts that were made."""
    places = [(box, name) for box in (case.query, case.body) if isinstance(box, dict) for name in box]
    if places:
        box, name = places[place % len(places)]
        box[name] = payload
