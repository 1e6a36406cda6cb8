"""`vanilla-saas tenants`, `users` and `keys` against a real database, as the operator runs them."""

import asyncio
import os
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.conftest import DEFAULT_TENANT, TEST_KEY, Cluster, People
from tests.tenancy.conftest import PASSWORD, Api, MakeMember, stranger
from vanilla_saas.cli import app
from vanilla_saas.database.errors import VanillaError

Cli = Callable[..., Awaitable[Result]]


@pytest.fixture
def environment(cluster: Cluster, database_name: str, tmp_path: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": cluster.url(database=database_name),
        "VANILLA_SAAS_CONTEXT_KEY": TEST_KEY,
        "VANILLA_SAAS_HOME": str(tmp_path),
    }


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    """Runs a command in a thread, where it has an event loop of its own."""

    async def run(*arguments: str, stdin: str | None = None) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), input=stdin, env=environment)

    return run


@pytest.fixture
def told(cli: Cli) -> Callable[..., Awaitable[Any]]:
    """What a command that succeeds prints as JSON."""

    async def run(*arguments: str, stdin: str | None = None) -> Any:
        result = await cli(*arguments, "--json", stdin=stdin)
        assert result.exit_code == 0, (result.output, result.exception)
        return orjson.loads(result.stdout)

    return run


def somebody() -> str:
    return f"{uuid.uuid4().hex[:12]}@example.test"


async def test_a_tenant_is_made_listed_suspended_and_activated(told: Any, audited: Any) -> None:
    slug = f"t{uuid.uuid4().hex[:10]}"
    made = await told("tenants", "create", slug, "--name", "Acme", "--time-zone", "Europe/Berlin")
    for command, status in (("suspend", "suspended"), ("activate", "active")):
        assert (await told("tenants", command, slug))["status"] == status
        listed = {row["slug"]: row for row in await told("tenants", "list")}
        assert (listed[slug]["id"], listed[slug]["status"], listed[slug]["name"]) == (made["id"], status, "Acme")
    rows = await audited("tenant.status", made["id"], uuid.UUID(int=0))
    assert [row["actor_role"] for row in rows] == ["operator"] * 2


async def test_a_tenant_is_closed_once_with_a_reason(told: Any, cli: Cli, audited: Any) -> None:
    slug = f"t{uuid.uuid4().hex[:10]}"
    made = await told("tenants", "create", slug)
    assert (await cli("tenants", "close", slug)).exit_code == 2
    for changed in (True, False):
        answer = await told(
            "tenants", "close", slug, "--reason", "left us", "--grace-days", "0" if not changed else "3"
        )
        assert answer.pop("erase_at") is not None
        assert answer == {"slug": slug, "status": "closed", "changed": changed}
    (row,) = await audited("tenant.closed", made["id"], uuid.UUID(int=0))
    assert (row["actor_role"], row["details"]["reason"]) == ("operator", "left us")


async def test_a_user_made_without_a_password_gets_one_that_must_be_changed(told: Any, call: Api, audited: Any) -> None:
    email = somebody()
    made = await told("users", "create", email, "--role", "admin")
    entered = await call.sign_in(stranger(email), made["password"])
    assert (entered.status, entered.body["must_change_password"]) == (200, True)
    assert len(await audited("user.created", made["id"])) == 1


async def test_a_password_from_standard_input_is_not_printed(cli: Cli, call: Api) -> None:
    email = somebody()
    made = await cli("users", "create", email, "--password-stdin", stdin=f"{PASSWORD}\n")
    assert made.exit_code == 0
    assert PASSWORD not in made.output
    entered = await call.sign_in(stranger(email))
    assert (entered.status, entered.body["must_change_password"]) == (200, False)


async def test_a_user_is_promoted_disabled_enabled_and_given_a_password(told: Any, cli: Cli, call: Api) -> None:
    email = somebody()
    await told("users", "create", email, "--password-stdin", stdin=PASSWORD)
    await told("users", "set-role", email, "admin")
    await told("users", "disable", email)
    assert (await call.sign_in(stranger(email))).status == 401
    await told("users", "enable", email)
    (row,) = [row for row in await told("users", "list") if row["email"] == email]
    assert (row["role"], row["status"]) == ("admin", "active")
    generated = (await told("users", "set-password", email, "--generate"))["password"]
    assert (await call.sign_in(stranger(email), generated)).body["must_change_password"] is True
    asked = await cli("users", "set-password", row["id"], stdin=f"{PASSWORD}\n{PASSWORD}\n")
    assert asked.exit_code == 0
    assert (await call.sign_in(stranger(email))).body["must_change_password"] is False


async def test_a_link_is_redeemed_over_http(told: Any, call: Api) -> None:
    email = somebody()
    await told("users", "create", email)
    link = await told("users", "link", email)
    assert link["url"].endswith(link["token"])
    body = {"token": link["token"], "new_password": PASSWORD}
    assert (await call("POST", "/auth/password/redeem", body)).status == 200
    assert (await call.sign_in(stranger(email))).status == 200


async def test_a_super_admin_is_a_user_of_the_platform(told: Any, call: Api, cli: Cli) -> None:
    email = somebody()
    await told(
        "users", "create", email, "--tenant", "platform", "--role", "superadmin", "--password-stdin", stdin=PASSWORD
    )
    token = (await call.sign_in(stranger(email), tenant="platform")).body["access_token"]
    assert (await call("GET", "/me", token=token)).body["role"] == "superadmin"
    elsewhere = await cli("users", "create", somebody(), "--role", "superadmin")
    assert refusal(elsewhere) == "invalid_request"


async def test_a_key_works_until_it_is_revoked(told: Any, call: Api) -> None:
    email = somebody()
    user_id = (await told("users", "create", email))["id"]
    made = await told(
        "keys",
        "create",
        "--user",
        email,
        "--name",
        "ci",
        "--scopes",
        "read,chat",
        "--budget",
        "500",
        "--expires",
        "90d",
    )
    assert (await call("GET", "/me", token=made["key"])).body["id"] == user_id
    (row,) = [row for row in await told("keys", "list") if row["id"] == made["id"]]
    assert (row["prefix"], row["budget_tokens"], row["name"]) == (made["key"][:12], 500, "ci")
    assert made["key"] not in str(row)
    await told("keys", "revoke", made["id"])
    assert (await call("GET", "/me", token=made["key"])).status == 401


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["users", "disable", "nobody@example.test"], "not_found"),
        (["users", "list", "--tenant", "no-such-tenant"], "not_found"),
        (["users", "disable", "00000000-0000-7000-8000-00000000dead"], "not_found"),
        (["users", "disable", "admin@localhost"], "not_found"),
        (["tenants", "create", "Not A Slug"], "invalid_request"),
        (["tenants", "create", "default"], "invalid_state"),
        (["tenants", "suspend", "platform"], "invalid_state"),
        (["users", "create", "no-address"], "invalid_request"),
        (["keys", "revoke", "00000000-0000-7000-8000-00000000dead"], "not_found"),
        (
            ["keys", "create", "--user", "admin@localhost", "--tenant", "platform", "--scopes", "root"],
            "invalid_request",
        ),
    ],
)
async def test_a_refusal_has_a_stable_code(cli: Cli, arguments: list[str], code: str) -> None:
    assert refusal(await cli(*arguments)) == code


async def test_a_short_password_is_refused_before_anything_is_written(cli: Cli, operator: asyncpg.Connection) -> None:
    email = somebody()
    assert refusal(await cli("users", "create", email, "--password-stdin", stdin="short\n")) == "invalid_request"
    assert await operator.fetchval("select count(*) from users where email = $1", email) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["users", "set-role", "x@example.test", "king"],
        ["users", "set-password", "x@example.test", "--generate", "--password-stdin"],
        ["keys", "create", "--user", "x@example.test", "--expires", "soon"],
        ["keys", "create"],
        ["keys", "revoke", "not-an-id"],
        ["tenants", "unknown"],
    ],
)
async def test_a_wrong_use_exits_with_2(cli: Cli, arguments: list[str]) -> None:
    assert (await cli(*arguments)).exit_code == 2


async def test_a_table_shows_no_escape_sequences(cli: Cli, operator: asyncpg.Connection) -> None:
    marker = uuid.uuid4().hex
    await operator.execute(
        "select create_user($1, 'user', $2, p_tenant_id => $3)",
        f"{marker}@example.test",
        f"\x1b[2J{marker}",
        DEFAULT_TENANT,
    )
    listed = (await cli("users", "list")).stdout
    assert f"[2J{marker}" in listed
    assert "\x1b" not in listed


async def test_a_refusal_is_printed_on_stderr_and_exits_with_1(environment: dict[str, str]) -> None:
    program = Path(sys.executable).with_name("vanilla-saas")
    process = await asyncio.create_subprocess_exec(
        program, "users", "disable", "nobody@example.test",
        env=os.environ | environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode().splitlines() == [
        "error not_found: There is no user nobody@example.test in this tenant.",
        "vanilla-saas users list",
    ]


async def test_a_database_without_the_schema_says_what_to_run(cluster: Cluster, environment: dict[str, str]) -> None:
    environment["DATABASE_URL"] = cluster.url(database="postgres")
    result = await asyncio.to_thread(CliRunner().invoke, app, ["users", "list"], env=environment)
    assert refusal(result) == "invalid_state"
    assert "migrate" in str(result.exception.hint)  # type: ignore[union-attr]


def refusal(result: Result) -> str:
    assert isinstance(result.exception, VanillaError), (result.output, result.exception)
    return result.exception.name


async def test_the_operator_ends_one_persons_openings_or_everyones(
    told: Any, call: Api, member: MakeMember, people: People
) -> None:
    root, other, tenant = await member("superadmin"), await member("superadmin"), await people.tenant()
    slug = await people.operator.fetchval("select slug from tenants where id = $1", tenant)
    for one in (root, other):
        await call("POST", f"/tenants/{tenant}/open", {"reason": "a question"}, one.token)
    assert (await told("tenants", "leave", slug, "--user", root.person.email))["ended"] == 1
    assert (await call("GET", "/users", token=root.token, tenant=tenant)).status == 403
    assert (await call("GET", "/users", token=other.token, tenant=tenant)).status == 200
    assert (await told("tenants", "leave", slug))["ended"] == 1
    assert (await call("GET", "/users", token=other.token, tenant=tenant)).status == 403


async def test_a_person_is_exported_to_a_new_file_and_erased(told: Any, cli: Cli, tmp_path: Path) -> None:
    email = somebody()
    made = await told("users", "create", email)
    file = tmp_path / "person.json"
    written = await told("users", "export", email, "--to", str(file))
    assert written == {"file": str(file), "bytes": file.stat().st_size}
    assert file.stat().st_mode & 0o777 == 0o600
    found = orjson.loads(file.read_bytes())
    assert (found["user"]["email"], len(found["tables"]["audit_logs"])) == (email, 2)
    again = await cli("users", "export", email, "--to", str(file))
    assert isinstance(again.exception, VanillaError)
    missing = await cli("users", "export", somebody(), "--to", str(tmp_path / "other.json"))
    assert isinstance(missing.exception, VanillaError)
    assert {entry.name for entry in tmp_path.iterdir() if "json" in entry.name} == {"person.json"}
    refused = await cli("users", "erase", email, "--reason", "left", stdin="n\n")
    assert refused.exit_code == 1
    assert (await told("users", "list", "--limit", "5"))[0]["email"] == email
    erased = await told("users", "erase", email, "--reason", "left", "--yes")
    assert (erased["user_id"], erased["wallet"]) == (made["id"], "closed")
    assert email not in {row["email"] for row in await told("users", "list")}


async def test_an_export_that_cannot_be_written_leaves_no_file(told: Any, cli: Cli, tmp_path: Path) -> None:
    email = somebody()
    await told("users", "create", email)
    full = await cli("users", "export", email, "--to", "/dev/full/person.json")
    assert isinstance(full.exception, VanillaError)
    assert full.exception.message == "/dev/full/person.json cannot be written: Not a directory."
    missing = await cli("users", "export", email, "--to", str(tmp_path / "nowhere" / "person.json"))
    assert isinstance(missing.exception, VanillaError)
    assert missing.exception.name == "invalid_state"
    assert not (tmp_path / "nowhere").exists()
