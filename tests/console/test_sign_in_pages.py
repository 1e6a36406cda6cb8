"""The door: what is said to whom, and what follows."""

import aiohttp
import pytest

from tests.conftest import People
from tests.console.console_support import (
    PASSWORD,
    look,
    set_password,
    sign_in,
    signed_in,
    submit,
    super_admin,
)

NEW = "another long password"


async def test_a_wrong_password_and_an_unknown_address_are_refused_in_the_same_words(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user()
    await set_password(people, person)
    answers = []
    for form in ({"password": "wrong"}, {"email": "nobody@example.test"}, {"tenant": "no-such"}):
        status, text, headers = await sign_in(http, people, person, **form)
        assert status == 401
        assert "set-cookie" not in headers
        answers.append(text.replace("nobody@example.test", person.email).replace("no-such", "default"))
    assert len(set(answers)) == 1
    assert "Tenant, email or password is wrong." in answers[0]


async def test_too_many_sign_ins_say_how_long_to_wait(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user()
    for _ in range(10):
        await people.operator.fetchval("select vanilla.begin_sign_in('default', $1, '192.0.2.1')", person.email)
    status, text, headers = await sign_in(http, people, person)
    assert status == 429
    assert int(headers["retry-after"]) > 800
    assert f"Try again in {headers['retry-after']} seconds." in text


@pytest.mark.parametrize(
    ("wanted", "reached"),
    [("/keys?x=1", "/keys?x=1"), ("//evil.example", "/"), ("https://evil.example", "/"), ("/\\evil", "/")],
)
async def test_signing_in_leads_back_but_never_to_another_host(
    http: aiohttp.ClientSession, people: People, wanted: str, reached: str
) -> None:
    person = await people.user()
    await set_password(people, person)
    status, _, headers = await sign_in(http, people, person, next=wanted)
    assert (status, headers["location"]) == (303, reached)


async def test_a_given_password_must_be_changed_before_anything_else(api: str, people: People) -> None:
    person = await people.user()
    async with aiohttp.ClientSession(api, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        await set_password(people, person, must_change=True)
        _, _, headers = await sign_in(http, people, person)
        assert headers["location"] == "/password"
        for path in ("/wallet", "/keys", "/playground"):
            _, _, headers = await look(http, path)
            assert headers["location"] == "/password"
        _, page, _ = await look(http, "/password")
        assert page.navigation() == set()

        for form, said in (
            ({"current": "wrong"}, "old password is wrong"),
            ({"again": "something else"}, "new passwords differ"),
            ({"password": "short", "again": "short"}, "12 to 128 characters"),
            ({"password": PASSWORD, "again": PASSWORD}, "is the old one"),
        ):
            status, text, _ = await submit(
                http, "/password", **{"current": PASSWORD, "password": NEW, "again": NEW} | form
            )
            assert status in (400, 401)
            assert said in text
        status, _, headers = await submit(http, "/password", current=PASSWORD, password=NEW, again=NEW)
        assert (status, headers["location"]) == (303, "/")
        assert (await look(http, "/wallet"))[0] == 200


async def test_signing_out_ends_the_session_in_the_database(api: str, people: People) -> None:
    person = await people.user()
    async with signed_in(api, people, person) as http:
        kept = {cookie.key: cookie.value for cookie in http.cookie_jar}
        await submit(http, "/sign-out")
        async with aiohttp.ClientSession(api) as thief:
            status, _, _ = await look(thief, "/wallet", cookie=f"vs_session={kept['vs_session']}")
            assert status == 303


async def test_a_one_time_link_sets_a_password_once(http: aiohttp.ClientSession, people: People) -> None:
    root = await super_admin(people)
    token = await people.operator.fetchval("select vanilla.claim_super_admin()")
    _, page, _ = await look(http, f"/password/set?token={token}")
    assert {"type": "hidden", "name": "token", "value": token} in page.all("input")
    status, _, headers = await submit(http, "/password/set", token=token, password=NEW, again=NEW)
    assert (status, headers["location"]) == (
        303,
        "/sign-in?email=admin%40localhost&tenant=platform&notice=password-set",
    )
    status, text, _ = await submit(http, "/password/set", token=token, password=NEW, again=NEW)
    assert status == 401
    assert "used up or too old" in text
    status, _, headers = await sign_in(http, people, root, password=NEW)
    assert (status, headers["location"]) == (303, "/")


async def test_registering_opens_a_session_where_the_tenant_allows_it(
    http: aiohttp.ClientSession, people: People
) -> None:
    form = {"email": "new.person@example.test", "password": NEW, "again": NEW, "display_name": "New"}
    status, _, headers = await submit(http, "/register", tenant="default", **form)
    assert (status, headers["location"]) == (303, "/")
    assert any(line.startswith("vs_session=vss_") for line in headers.getall("set-cookie"))
    closed = await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", closed)
    status, text, _ = await submit(http, "/register", tenant=slug, **form)
    assert status == 403
    assert "does not take registrations" in text
