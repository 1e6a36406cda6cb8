"""Each known attack comes to what it should, tells nothing and leaves nothing changed."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.isolation.attacker.conftest import Prey
from tests.isolation.attacker.known import KNOWN, Known
from tests.isolation.attacker.watch import Attacker, spellings
from tests.isolation.catalog import LOGINS, PLATFORM
from tests.isolation.rows import CANARY


@pytest.fixture
async def attacker(prey: Prey, login: str) -> AsyncIterator[Attacker]:
    a = prey.world.a
    made = await Attacker(prey.cluster.url(login, prey.name), a.token(prey.world.signer, a.admin)).connect()
    yield made
    await made.close()


CASES = [(login, known) for known in KNOWN for login in known.logins]


@pytest.mark.parametrize(("login", "known"), CASES, ids=[f"{c[0]}: {c[1].why}" for c in CASES])
async def test_a_known_attack_comes_to_nothing(prey: Prey, attacker: Attacker, login: str, known: Known) -> None:
    a, b = prey.world.a, prey.world.b
    statement = known.statement.format(
        a=a.id, b=b.id, user=a.user.id, b_user=b.user.id, b_admin=b.admin.id, platform=PLATFORM,
        token=attacker.token, login=login,
    )  # fmt: skip
    outcome = await attacker.run(statement, commit=True)
    assert prey.secrets.told_by(outcome.told) == set()
    assert await prey.intact()
    match known.outcome:
        case "*":
            assert outcome.state != "client", outcome
        case "DO":
            assert outcome.told.strip() == "DO", outcome
        case "ok":
            assert outcome.state == "", outcome
        case "nothing":
            assert outcome.state == "", outcome
            assert outcome.told.strip() in ("[]", "UPDATE 0", "DELETE 0", "MERGE 0"), outcome
        case state:
            assert outcome.state == state, outcome


REQUESTS = {
    "vanilla_runtime": (("select vanilla.key_identity($1)", "key"), ("select vanilla.list_models($1)", "key")),
    "vanilla_app": (
        ("select vanilla.set_context($1)", "token"),
        ("select id, email from public.users where email like '%' || $1 || '%'", "canary"),
        ("select display_name from public.users where id = $1::text::uuid", "id"),
    ),
}
"""What B asks, by login; each value is a parameter, as in every statement of the product."""


@pytest.mark.parametrize("login", LOGINS)
async def test_other_sessions_of_a_login_show_their_statements_but_no_value(
    prey: Prey, attacker: Attacker, login: str
) -> None:
    """PostgreSQL shows a role the text of all its own sessions; parameters travel apart and are not in it."""
    b = prey.world.b
    values = {
        "token": b.token(prey.world.signer, b.admin), "key": b.admin.key_hash, "canary": CANARY, "id": b.admin.id,
    }  # fmt: skip
    secret = {v if isinstance(v, str) else v.hex() for v in values.values()}
    other = await asyncpg.connect(prey.cluster.url(login, prey.name))
    transaction = other.transaction()
    await transaction.start()
    for statement, value in REQUESTS.get(login, REQUESTS["vanilla_app"]):
        assert await other.fetch(statement, values[value])
        shown = await attacker.run(f"select query from pg_stat_activity where pid = {other.get_server_pid()}")
        assert statement.split("$1")[0].split("'")[0] in shown.told
        whole = await attacker.run("select a::text from pg_stat_activity a union all select l::text from pg_locks l")
        for told in (shown.told, whole.told):
            assert prey.secrets.told_by(told) == set()
            assert [s for s in secret if s in told] == []
    await transaction.rollback()
    await other.close()


@pytest.mark.parametrize("login", LOGINS)
async def test_sessions_of_another_login_show_not_even_their_statements(
    prey: Prey, attacker: Attacker, login: str
) -> None:
    for stranger in {*LOGINS, "postgres"} - {login}:
        other = await asyncpg.connect(prey.cluster.url(stranger, prey.name))
        await other.fetch("select 'a literal of another login'")
        shown = await attacker.run(f"select query from pg_stat_activity where pid = {other.get_server_pid()}")
        await other.close()
        assert "<insufficient privilege>" in shown.told
        assert "literal" not in shown.told


async def test_a_literal_would_be_shown_so_the_product_sends_parameters(prey: Prey) -> None:
    """Why no statement of ours may hold a value: another session of the login reads it."""
    a = prey.world.a
    one, other = [await asyncpg.connect(prey.cluster.url("vanilla_app", prey.name)) for _ in range(2)]
    await other.fetch(f"select '{a.word} as a literal'")
    shown = await one.fetchval("select query from pg_stat_activity where pid = $1", other.get_server_pid())
    await one.close()
    await other.close()
    assert f"{a.word} as a literal" in shown


@pytest.mark.parametrize("form", ["{}", "reverse({})", "encode(convert_to({}, 'UTF8'), 'hex')", "upper({})",
                                  "encode(convert_to({}, 'UTF8'), 'base64')", "to_json({})"])  # fmt: skip
async def test_the_watch_sees_a_canary_in_every_spelling(prey: Prey, form: str) -> None:
    leak = await Attacker(prey.cluster.url(database=prey.name), "").connect()
    for pad in ("", "x", "xx"):
        value = form.format(f"'{pad}' || display_name")
        outcome = await leak.run(f"select {value} from users where display_name like '{CANARY}%'")
        assert prey.secrets.told_by(outcome.told), outcome
    failed = await leak.run(f"select display_name::int from users where display_name like '{CANARY}%'")
    assert failed.state == "22P02"
    assert prey.secrets.told_by(failed.told)
    noticed = await leak.run(
        "do $$ begin raise notice '%', (select min(display_name) from users"
        f" where tenant_id = '{prey.world.b.id}'); end $$"
    )
    assert prey.secrets.told_by(noticed.told)
    ids = await leak.run(f"select id from api_keys where tenant_id = '{prey.world.b.id}'")
    assert prey.secrets.told_by(ids.told)
    await leak.close()
    assert len(spellings(CANARY)) >= 6
