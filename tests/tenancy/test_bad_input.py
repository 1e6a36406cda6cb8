"""Whatever is sent, the answer is a problem with a stable code, never a failure of ours."""

import io
from typing import Any

import pytest

from tests.tenancy.conftest import PASSWORD, Api, MakeMember
from vanilla_saas.tenancy import passwords

GOOD = {"email": "ada@example.test", "password": PASSWORD}
BAD_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b'{"email": "ada@example.test"',
    b"\xff\xfe",
    b'{"email": "\\ud800@example.test", "password": "four short words here"}',
    b'{"\\ud800": 1}',
    b"[" * 10_000,
    b'{"email": 1e999, "password": []}',
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: body[:24])
async def test_a_malformed_body_is_refused(call: Api, body: bytes) -> None:
    reply = await call("POST", "/auth/sign-in", data=body, headers={"content-type": "application/json"})
    assert reply.refusal == (400, "invalid_request")
    assert reply.body["request_id"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "a\0b@example.test"),
        ("email", "x" * 300 + "@example.test"),
        ("email", 7),
        ("email", None),
        ("email", {"$ne": ""}),
        ("password", "x" * 1025),
        ("password", 123456789012),
        ("tenant", "x" * 64),
        ("tenant", "nul\0"),
        ("tenant", ""),
        ("unknown", "field"),
    ],
)
async def test_a_field_of_the_wrong_form_is_refused_by_its_name(call: Api, field: str, value: Any) -> None:
    reply = await call("POST", "/auth/sign-in", GOOD | {field: value})
    assert (reply.refusal, reply.body["param"]) == ((400, "invalid_request"), field)


@pytest.mark.parametrize("email", ["no-at-sign", "two@at@signs", "spa ce@example.test", "ada@example.test\n\nBcc: x"])
async def test_what_is_no_address_registers_nobody(call: Api, email: str) -> None:
    reply = await call("POST", "/auth/register", GOOD | {"email": email})
    assert (reply.refusal, reply.body["param"]) == ((400, "invalid_request"), "email")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/users/not-a-uuid", None),
        ("GET", "/users?limit=0", None),
        ("GET", "/users?limit=201", None),
        ("GET", "/users?limit=many", None),
        ("GET", "/users?cursor=", None),
        ("GET", "/users?cursor=AAAA", None),
        ("GET", "/users?cursor=%00%ff", None),
        ("GET", "/users?cursor=" + "A" * 5000, None),
        ("GET", "/audit?action=%00", None),
        ("PATCH", "/me", {"display_name": "nul\0"}),
        ("PATCH", "/me", {"display_name": ["x"]}),
        ("POST", "/users", {}),
        ("POST", "/users", {"email": "x@example.test", "role": "king"}),
        ("POST", "/users", {"email": "x@example.test", "level_id": "gold"}),
        ("POST", "/users", {"email": "x@example.test", "password": "short"}),
        ("POST", "/keys", {"name": ""}),
        ("POST", "/keys", {"name": "x", "scopes": []}),
        ("POST", "/keys", {"name": "x", "scopes": ["root"]}),
        ("POST", "/keys", {"name": "x", "budget_tokens": 0}),
        ("POST", "/keys", {"name": "x", "budget_tokens": True}),
        ("POST", "/keys", {"name": "x", "budget_tokens": 2**63}),
        ("POST", "/keys", {"name": "x", "budget_tokens": 1.5}),
        ("POST", "/keys", {"name": "x", "expires_at": "tomorrow"}),
        ("POST", "/keys", {"name": "x", "expires_at": "9999-12-31T23:59:59.999999-12:00"}),
    ],
)
async def test_a_bad_request_of_an_admin_is_refused(
    call: Api, member: MakeMember, method: str, path: str, body: Any
) -> None:
    reply = await call(method, path, body, (await member("admin")).token)
    assert reply.refusal == (400, "invalid_request"), reply.body


async def test_a_cursor_is_good_for_its_own_listing_and_unchanged(call: Api, member: MakeMember) -> None:
    admin = await member("admin")
    await member()
    cursor = (await call("GET", "/users?limit=1", token=admin.token)).body["next_cursor"]
    assert (await call("GET", f"/users?cursor={cursor}", token=admin.token)).status == 200
    forged = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    for path in (f"/users?cursor={forged}", f"/audit?cursor={cursor}"):
        reply = await call("GET", path, token=admin.token)
        assert (reply.refusal, reply.body["param"]) == ((400, "invalid_request"), "cursor")


@pytest.mark.parametrize("header", ["", "Basic YTpi", "Bearer", "Bearer  ", "Bearer vss_x", "Bearer \xe9", "vss_x"])
async def test_without_a_live_token_nobody_is_anybody(call: Api, header: str) -> None:
    reply = await call("GET", "/me", headers={"authorization": header})
    assert reply.refusal == (401, "authentication_failed")


async def test_a_tenant_header_that_is_no_id_is_refused(call: Api, member: MakeMember) -> None:
    reply = await call("GET", "/me", token=(await member()).token, headers={"x-vanilla-tenant": "default"})
    assert (reply.refusal, reply.body["param"]) == ((400, "invalid_request"), "X-Vanilla-Tenant")


async def test_a_body_beyond_the_limit_is_refused_before_it_is_parsed(call: Api) -> None:
    async def endless() -> Any:
        for _ in range(5):
            yield b" " * 1024 * 1024

    for data in (io.BytesIO(b" " * (5 * 1024 * 1024)), endless()):
        reply = await call("POST", "/auth/sign-in", data=data, headers={"content-type": "application/json"})
        assert reply.refusal == (413, "body_too_large")


async def test_a_failure_of_ours_logs_no_password(
    call: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(stored: str, password: str) -> bool:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(passwords, "_matches", broken)
    reply = await call("POST", "/auth/sign-in", GOOD)
    assert reply.refusal == (500, "internal_error")
    logged = "".join(capsys.readouterr()) + caplog.text
    assert "broken on purpose" in logged
    assert PASSWORD not in logged
