"""Bad input at the boundary of a tenant: refused with one error, logged once, and silent about who else is there."""

import json
import re
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from tests.conftest import DEFAULT_TENANT, Cluster, People, Person
from tests.isolation.contexts import OTHER_KEY
from tests.isolation.rows import World
from vanilla_saas.database.context import PLATFORM, Identity
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.tenancy.secret_tokens import KEY_PREFIX, SESSION_PREFIX, new_token, token_hash

SQL = ("' or true --", "'; drop table users; --", "$$", "%s", "*", "null", "1 union select key_hash from api_keys")


# over the database


@dataclass(frozen=True)
class Refusal:
    """A refusal as the client has it, whole."""

    state: str
    message: str
    detail: str | None
    hint: str | None


async def _refused(connection: asyncpg.Connection, token: str) -> Refusal:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.fetchval("select vanilla.set_context($1)", token)
    error = caught.value
    assert await connection.fetchval("select count(*) from public.levels") == 0, "something is seen after a refusal"
    return Refusal(error.sqlstate, error.message, error.detail, error.hint)


def _unsigned(world: World) -> dict[str, str]:
    """Tokens that nobody signed, of tenants that are there and of tenants that are not."""
    a, b, nowhere = world.a, world.b, str(uuid.uuid4())
    good = a.token(world.signer, a.admin)
    fields = good.split(".")
    tokens = {
        "another key": a.token(OTHER_KEY, a.admin),
        "another key, of b": b.token(OTHER_KEY, b.admin),
        "another key, of nobody": OTHER_KEY.sign(Identity(uuid.UUID(nowhere), uuid.UUID(a.admin.id), "admin")),
        "another key, of the platform": OTHER_KEY.sign(Identity(PLATFORM, PLATFORM, "superadmin")),
        "a megabyte": "x" * 1_000_000,
        "a megabyte behind a good one": good + "0" * 1_000_000,
        "b's tenant put in": good.replace(a.id, b.id),
        "a tenant that is not there put in": good.replace(a.id, nowhere),
        "expired": a.token(world.signer, a.admin, lifetime_s=-1),
        "expired, of b": b.token(world.signer, b.admin, lifetime_s=-1),
        "no token": "null",
        "a blank": " ",
    }
    for at in range(len(fields)):
        for text in SQL:
            tokens[f"{text} in field {at}"] = ".".join([*fields[:at], text, *fields[at + 1 :]])
    return tokens


async def test_a_token_that_nobody_signed_is_refused_in_the_same_words_whoever_it_names(
    app: asyncpg.Connection, world: World
) -> None:
    answers = {name: await _refused(app, token) for name, token in _unsigned(world).items()}
    assert len(set(answers.values())) == 1, answers
    refusal = next(iter(answers.values()))
    assert (refusal.state, refusal.message, refusal.detail) == ("VS401", "context refused", None)


async def test_a_signed_token_of_somebody_who_may_not_act_is_refused_in_the_same_words(
    app: asyncpg.Connection, world: World, operator_of_world: asyncpg.Connection
) -> None:
    a, b = uuid.UUID(world.a.id), uuid.UUID(world.b.id)
    one = operator_of_world.fetchval
    gone = await one("select create_user($1, p_tenant_id => $2)", f"{uuid.uuid4().hex}@x.test", a)
    await operator_of_world.execute("update users set status = 'deleted', email = null where id = $1", gone)
    closed = {
        status: await one("select create_tenant($1, 'x')", f"t{uuid.uuid4().hex[:12]}")
        for status in ("suspended", "closed")
    }
    people = {}
    for status, tenant in closed.items():
        people[status] = await one("select create_user('x@x.test', p_tenant_id => $1)", tenant)
        await _shut(operator_of_world, tenant, status)
    admin = uuid.UUID(world.a.admin.id)
    named = {
        "a user of another tenant": Identity(a, uuid.UUID(world.b.user.id), "user"),
        "a user of this tenant in another": Identity(b, admin, "user"),
        "a tenant that is not there": Identity(uuid.uuid4(), admin, "user"),
        "a user who is not there": Identity(a, uuid.uuid4(), "user"),
        "a deleted user": Identity(a, gone, "user"),
        "a suspended tenant": Identity(closed["suspended"], people["suspended"], "user"),
        "a closed tenant": Identity(closed["closed"], people["closed"], "user"),
        "a role above one's own": Identity(a, uuid.UUID(world.a.user.id), "admin"),
        "a super admin in a tenant that is not open": Identity(a, PLATFORM, "superadmin"),
    }
    answers = {name: await _refused(app, world.signer.sign(who)) for name, who in named.items()}
    assert len(set(answers.values())) == 1, answers
    refusal = next(iter(answers.values()))
    assert (refusal.state, refusal.message, refusal.detail) == ("VS401", "context refused", None)


async def test_an_empty_token_is_nobody(app: asyncpg.Connection) -> None:
    async with app.transaction():
        await app.fetchval("select vanilla.set_context('')")
        assert await app.fetchval("select count(*) from public.levels") == 0
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await app.fetchval("select create_user('x@x.test')")
        assert refusal.value.sqlstate == "VS401"


async def test_the_pool_turns_every_refused_context_into_the_documented_error(pool: Database, world: World) -> None:
    who = Identity(uuid.UUID(world.a.id), uuid.UUID(world.b.user.id), "user")
    with pytest.raises(VanillaError) as refusal:
        async with pool.transaction(who):
            pytest.fail("the transaction began")
    assert (refusal.value.name, refusal.value.status) == ("context_invalid", 401)


async def test_a_refused_context_is_one_line_of_the_servers_log_and_the_token_is_not_in_it(
    cluster: Cluster, world_name: str, world: World, operator_of_world: asyncpg.Connection
) -> None:
    log = await _server_log(operator_of_world)
    connection = await asyncpg.connect(cluster.url("vanilla_app", world_name))
    pid = f"[{connection.get_server_pid()}]"
    signed = world.signer.sign(Identity(PLATFORM, uuid.uuid4(), "user"))
    problems = []
    for name, token in {**_unsigned(world), "signed": signed}.items():
        before = log.stat().st_size
        with pytest.raises(asyncpg.PostgresError):
            await connection.fetchval("select vanilla.set_context($1)", token)
        with log.open("rb") as file:
            file.seek(before)
            mine = [line for line in file.read().decode(errors="replace").splitlines() if pid in line]
        errors = [line for line in mine if "ERROR:" in line]
        if len(errors) != 1 or not errors[0].endswith("context refused"):
            problems.append(f"{name}: {errors}")
        if len(token) > 10 and token[:60] in "\n".join(mine):
            problems.append(f"{name}: the token is in the log")
    await connection.close()
    assert problems == []


async def _server_log(superuser: asyncpg.Connection) -> Path:
    """Where the server writes its errors to: what its first process has as standard error."""
    pid = (await superuser.fetchval("select pg_read_file('postmaster.pid')")).splitlines()[0]
    try:
        log = Path(f"/proc/{pid}/fd/2").readlink()
    except OSError as error:
        pytest.skip(f"the server's log cannot be found: {error}")
    if not log.is_file():
        pytest.skip("the server's log is no file")
    return log


# over HTTP


@dataclass(frozen=True)
class Answer:
    """What a stranger learns from an answer; the request's id is the only thing that may differ."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...]


SURFACES = {
    "api": ("GET", "/api/v1/users", "application/problem+json", "authentication_failed"),
    "models": ("GET", "/v1/models", "application/json", "authentication_failed"),
    "chat": ("POST", "/v1/chat/completions", "application/json", "authentication_failed"),
    "embeddings": ("POST", "/v1/embeddings", "application/json", "authentication_failed"),
}
BODIES = {
    "chat": {"model": "sandbox-small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    "embeddings": {"model": "sandbox-embed", "input": "x"},
}


class Door:
    """Knocks with a credential, and reads the answer and the log."""

    def __init__(self, http: aiohttp.ClientSession, capsys: pytest.CaptureFixture[str]):
        self._http, self._capsys = http, capsys

    async def knock(self, surface: str, token: str, **headers: str) -> tuple[Answer, list[dict[str, object]]]:
        method, path, *_ = SURFACES[surface]
        self._capsys.readouterr()
        given = {"authorization": f"Bearer {token}", **headers}
        async with self._http.request(method, path, headers=given, json=BODIES.get(surface)) as reply:
            answer = await self._answer(reply)
        return answer, self._logged(reply)

    async def page(self, cookie: str) -> tuple[Answer, list[dict[str, object]]]:
        self._capsys.readouterr()
        headers = {"cookie": f"vs_session={cookie}", "accept": "text/html"}
        async with self._http.get("/wallet", headers=headers, allow_redirects=False) as reply:
            answer = await self._answer(reply)
        return answer, self._logged(reply)

    async def _answer(self, reply: aiohttp.ClientResponse) -> Answer:
        text = (await reply.text()).replace(reply.headers.get("x-request-id", "no id"), "<id>")
        # a cookie that is taken away expires now, and now is another second in the next answer
        kept = {k.lower(): re.sub(r"expires=[^;]*", "expires=<now>", v) for k, v in reply.headers.items()}
        kept = {k: v for k, v in kept.items() if k not in ("date", "x-request-id", "content-length")}
        if "set-cookie" in kept:  # it says when it was sent, as date does
            kept["set-cookie"] = re.sub(r"expires=[^;]*;", "", kept["set-cookie"])
        return Answer(reply.status, text, tuple(sorted(kept.items())))

    def _logged(self, reply: aiohttp.ClientResponse) -> list[dict[str, object]]:
        """The log's lines of this request; every line must be one of an event, and none may hold a credential."""
        lines = [json.loads(line) for line in self._capsys.readouterr().err.splitlines() if line.startswith("{")]
        mine = [line for line in lines if line.get("request_id") == reply.headers.get("x-request-id")]
        assert not re.search(r"vs[kstr]_", json.dumps(mine)), "a credential is in the log"
        return mine


@pytest.fixture
def door(http: aiohttp.ClientSession, capsys: pytest.CaptureFixture[str]) -> Door:
    return Door(http, capsys)


async def _shut(operator: asyncpg.Connection, tenant: uuid.UUID, status: str) -> None:
    if status == "closed":
        await operator.fetchval("select close_tenant($1, 'a test')", tenant)
    else:
        await operator.fetchval("select set_tenant_status($1, $2)", tenant, status)


async def _session(people: People, person: Person, **changes: str) -> str:
    """A session of a person, as signing in makes one."""
    token = new_token(SESSION_PREFIX)
    values = {"expires_at": "now() + interval '1 hour'", "revoked_at": "null", "rotated_at": "null"} | changes
    await people.operator.execute(
        "insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at,"
        f" revoked_at, rotated_at) values ($1, $2, gen_random_uuid(), $3, sha256($3), {values['expires_at']},"
        f" now() + interval '1 day', {values['revoked_at']}, {values['rotated_at']})",
        person.identity.tenant_id,
        person.identity.user_id,
        token_hash(token),
    )
    return token


async def _credentials(people: People, prefix: str) -> dict[str, str]:
    """Keys or sessions that must not open anything: of nobody, of people who are gone, of tenants that are shut."""
    made = {
        "of nobody": new_token(prefix),
        "of another kind": new_token("vsr_"),
        "without a prefix": uuid.uuid4().hex,
        "only a prefix": prefix,
        "a forged context": "v1.0." + str(DEFAULT_TENANT),
        **{f"{prefix}{text}": prefix + text for text in SQL},
        **{text: text for text in SQL},
    }

    async def of(person: Person) -> str:
        return person.key if prefix == KEY_PREFIX else await _session(people, person)

    operator = people.operator
    for status in ("disabled", "deleted"):
        person = await people.user()
        made[f"of a {status} user"] = await of(person)
        await operator.execute("update users set status = $1 where id = $2", status, person.identity.user_id)
    for status in ("suspended", "closed"):
        tenant = await people.tenant()
        made[f"of a {status} tenant"] = await of(await people.user(tenant_id=tenant))
        await _shut(operator, tenant, status)
    if prefix == KEY_PREFIX:
        for name, change in (("revoked", "revoked_at = now()"), ("expired", "expires_at = now()")):
            person = await people.user()
            made[name] = person.key
            await operator.execute(f"update api_keys set {change} where id = $1", person.key_id)
    else:
        for name in ("revoked_at", "rotated_at", "expires_at"):
            made[name] = await _session(people, await people.user(), **{name: "now()"})
    return made


@pytest.mark.parametrize("prefix", [KEY_PREFIX, SESSION_PREFIX])
@pytest.mark.parametrize("surface", SURFACES)
async def test_a_credential_that_opens_nothing_gets_one_answer_and_one_line(
    door: Door, people: People, surface: str, prefix: str
) -> None:
    answers = {}
    for name, token in (await _credentials(people, prefix)).items():
        answer, lines = await door.knock(surface, token)
        answers[name] = answer
        assert [(line["event"], line["status"]) for line in lines] == [("request_refused", 401)], name
    assert len(set(answers.values())) == 1, "\n".join(f"{n}: {a}" for n, a in answers.items())
    answer = next(iter(answers.values()))
    _, _, kind, code = SURFACES[surface]
    assert answer.status == 401
    assert code in answer.body
    assert kind in dict(answer.headers)["content-type"]


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_empty_credential_is_refused_once(door: Door, surface: str) -> None:
    for token in ("", " "):
        answer, lines = await door.knock(surface, token)
        assert answer.status == 401
        assert "authentication_failed" in answer.body
        assert [line["event"] for line in lines] == ["request_refused"]


@pytest.mark.parametrize("surface", SURFACES)
async def test_a_credential_of_a_megabyte_is_refused_and_the_server_goes_on(
    door: Door, people: People, surface: str
) -> None:
    person = await people.user(scopes=["chat", "read", "admin"], role="admin", balance=10_000)
    answer, lines = await door.knock(surface, KEY_PREFIX + "x" * 1_000_000)
    assert answer.status == 401
    assert "authentication_failed" in answer.body
    assert len(answer.body) < 1000
    assert [line["event"] for line in lines] == ["request_refused"]
    assert len(json.dumps(lines)) < 1000
    answer, lines = await door.knock(surface, person.key)
    assert (answer.status, lines) == (200, [])


async def test_a_cookie_that_opens_nothing_leads_to_the_door_and_is_one_line(door: Door, people: People) -> None:
    answers = {}
    for name, token in (await _credentials(people, SESSION_PREFIX)).items():
        if token.isascii() and not set(token) & set(" ;,\"'"):
            answers[name], lines = await door.page(token)
            assert [line["event"] for line in lines] == ["request_refused"], name
    # what looks like a session is taken out of the browser, what does not was never ours
    assert len({replace(a, headers=()) for a in answers.values()}) == 1, answers
    ours = {n: a for n, a in answers.items() if n.startswith(("of a ", "of nobody", "revoked", "rotated", "expires"))}
    assert len(ours) >= 7
    assert len(set(ours.values())) == 1, ours
    answer = next(iter(ours.values()))
    assert answer.status == 303
    assert dict(answer.headers)["location"].startswith("/sign-in")


async def test_no_cookie_is_no_refusal(door: Door) -> None:
    answer, lines = await door.page("")
    assert answer.status == 303
    assert lines == []


async def test_naming_a_tenant_that_is_not_open_tells_nothing_of_it(door: Door, people: People) -> None:
    """Another tenant, a suspended one and one that is not there are refused alike, to keys and to sessions."""
    person = await people.user(role="admin", scopes=["read", "admin"])
    other, suspended = await people.tenant(), await people.tenant()
    await people.operator.execute("select set_tenant_status($1, 'suspended')", suspended)
    for token in (person.key, await _session(people, person)):
        answers = []
        for tenant in (other, suspended, uuid.uuid4(), PLATFORM):
            answer, lines = await door.knock("api", token, **{"x-vanilla-tenant": str(tenant)})
            answers.append(answer)
            assert [(line["event"], line["status"]) for line in lines] == [("request_refused", 403)]
        assert len(set(answers)) == 1, answers
        assert answers[0].status == 403
        assert '"forbidden"' in answers[0].body


async def test_a_sign_in_tells_a_shut_tenant_from_an_unknown_one_as_little_as_a_wrong_password(
    http: aiohttp.ClientSession, people: People, capsys: pytest.CaptureFixture[str]
) -> None:
    person = await people.user()
    shut = await people.tenant()
    member = await people.user(tenant_id=shut)
    slug = await people.operator.fetchval("select slug from tenants where id = $1", shut)
    await people.operator.execute("select set_tenant_status($1, 'suspended')", shut)
    answers = set()
    for tenant, email in (
        ("default", person.email),
        ("default", "nobody@example.test"),
        (slug, member.email),
        (f"t{time.time_ns()}", member.email),
        ("' or true --", "x@x.test"),
    ):
        capsys.readouterr()
        body = {"tenant": tenant, "email": email, "password": "four wrong words here"}
        async with http.post("/api/v1/auth/sign-in", json=body) as reply:
            text = (await reply.text()).replace(reply.headers["x-request-id"], "<id>")
            answers.add((reply.status, text))
            logged = capsys.readouterr().err
            assert logged.count(reply.headers["x-request-id"]) == 1
            assert "four wrong words" not in logged
            assert email not in logged
    assert len(answers) == 1, answers
    assert next(iter(answers))[0] == 401
