"""The operator's commands for grants, holds, policies, statements and anchors."""

import csv
import json
import stat
from pathlib import Path

import pytest

from tests.conftest import People
from tests.tokens.test_anchor import rewritten
from tests.tokens.test_cli import Cli, vs
from vanilla_saas.tokens import anchor_file, proof_cli

__all__ = ["vs"]


async def test_a_grant_is_given_listed_and_voided(vs: Cli, people: People) -> None:
    person = await people.user(balance=0)
    given = ("wallets", "grant", person.email, "50", "--reason", "gift", "--kind", "trial", "--until", "2099-01-01")
    made = await vs.json(*given, "--key", "k")
    assert (made["kind"], made["remaining"], made["expires_at"]) == ("trial", 50, "2099-01-01T00:00:00+00:00")
    assert "nothing changed" in (await vs(*given, "--key", "k")).stdout
    coming = await vs.json("wallets", "grant", person.email, "7", "--reason", "x", "--from", "2098-01-01T00:00+02:00")
    assert (coming["state"], coming["effective_at"]) == ("scheduled", "2097-12-31T22:00:00+00:00")
    scheduled = await vs.json("wallets", "grants", person.email, "--state", "scheduled")
    assert [row["id"] for row in scheduled] == [coming["id"]]
    voided = await vs.json("wallets", "void", made["id"], "--reason", "mistake")
    assert (voided["state"], voided["void_reason"]) == ("voided", "mistake")
    assert "voided" in (await vs("wallets", "grants", person.email)).stdout
    assert (await vs.refused("wallets", "void", made["id"], "--reason", "x")).name == "invalid_state"
    assert (await people.wallet(person))["available_tokens"] == 0
    await vs("wallets", "grant", person.email, "5", "--reason", "x", "--until", "soon", code=2)
    await vs("wallets", "grant", person.email, "5", "--reason", "x", "--kind", "plan", code=2)


async def test_a_hold_is_listed_extended_charged_and_released(vs: Cli, people: People) -> None:
    person = await people.user(balance=100)
    reserve = "select adjust_user_tokens($1, 30, 'reserve')"
    first = (await people.operator.fetchval(reserve, person.identity.user_id))["hold_id"]
    second = (await people.operator.fetchval(reserve, person.identity.user_id))["hold_id"]
    assert [row["id"] for row in await vs.json("wallets", "holds", person.email)] == [second, first]
    wrong = await vs.refused("wallets", "extend", first, "2020-01-01")
    assert wrong.name == "invalid_request"
    end = await people.operator.fetchval("select (now() + interval '2 days')::text")
    extended = await vs.json("wallets", "extend", first, end)
    assert extended["hold_id"] == first
    await vs("wallets", "settle", first, "10", "--part")
    assert "available 60, reserved 30" in (await vs("wallets", "settle", first, "0")).stdout
    released = await vs.json("wallets", "release", second, "--reason", "given up", "--key", "k")
    assert released["reason"] == "given up"
    assert "nothing changed" in (await vs("wallets", "release", second, "--reason", "given up", "--key", "k")).stdout
    assert await vs.json("wallets", "holds", person.email) == []
    states = [row["state"] for row in await vs.json("wallets", "holds", person.email, "--all")]
    assert states == ["released", "settled"]
    assert (await people.wallet(person))["available_tokens"] == 90


async def test_exceptions_are_added_one_by_one_and_cleared(vs: Cli, people: People) -> None:
    person = await people.user()
    await vs("wallets", "policy", person.email, "--monthly-allocation", "5")
    policy = await vs.json("wallets", "policy", person.email, "--enforcement-mode", "warn")
    assert (policy["monthly_allocation"], policy["enforcement_mode"]) == (5, "warn")
    assert "monthly_allocation" in (await vs("wallets", "policy", person.email)).stdout
    policy = await vs.json("wallets", "policy", person.email, "--clear")
    assert set(policy["exceptions"].values()) == {None}
    assert policy["monthly_allocation"] == 10_000


async def test_a_statement_is_printed_or_written_whole(vs: Cli, people: People, tmp_path: Path) -> None:
    person = await people.user(balance=100)
    await vs("wallets", "debit", person.email, "30", "--reason", "=cmd()")
    document = await vs.json("wallets", "statement", person.email)
    assert (document["opening_balance"], document["closing_balance"]) == (0, 70)
    printed = (await vs("wallets", "statement", person.email)).stdout
    assert printed.startswith("balance 0 at ")
    assert "balance 70 at " in printed
    rows = list(csv.DictReader((await vs("wallets", "statement", person.email, "--csv")).stdout.splitlines()))
    assert rows[-1]["reason"] == "'=cmd()"
    file = tmp_path / "statement.csv"
    await vs("wallets", "statement", person.email, "-o", str(file))
    assert [row["seq"] for row in csv.DictReader(file.read_text().splitlines())] == [row["seq"] for row in rows]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    last = document["entries"][-1]["created_at"]
    assert (await vs.json("wallets", "statement", person.email, "--from", last))["count"] == 1
    assert (await vs.json("wallets", "statement", person.email, "--until", last))["closing_balance"] == 100
    assert (await vs.json("wallets", "balance", person.email, "--at", last))["balance"] == 70
    assert (await vs("wallets", "balance", person.email, "--at", "2001-01-01")).stdout == "0\n"


async def test_an_anchor_is_written_and_convicts_a_rewritten_chain(
    vs: Cli, people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, file = await people.user(), tmp_path / "anchor.jsonl"
    monkeypatch.setattr(anchor_file, "PART", 2)  # more than one part
    seal = await vs.json("wallets", "anchor", "-o", str(file))
    *chains, last = [json.loads(line) for line in file.read_text().splitlines()]
    assert seal == last | {"file": str(file)}
    assert (
        seal["count"]
        == len(chains)
        == await people.operator.fetchval("select count(*) from user_token_wallets where seq > 0")
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    printed = (await vs("wallets", "anchor")).stdout.splitlines()
    assert sorted(printed[:-1]) == sorted(file.read_text().splitlines()[:-1])
    assert (
        f"{len(chains)} of {len(chains)} chains continue"
        in (await vs("wallets", "verify", "--anchor", str(file))).stdout
    )
    other = await people.user()
    one = (await vs("wallets", "verify", person.email, "--anchor", str(file))).stdout
    assert f"1 of {len(chains)} chains" in one
    async with rewritten(people.operator, person):
        assert await vs.json("wallets", "verify") == []
        found = await vs.json("wallets", "verify", "--anchor", str(file), code=1)
        assert [row["user_id"] for row in found] == [str(person.identity.user_id)]
        assert await vs.json("wallets", "verify", other.email, "--anchor", str(file)) == []


@pytest.mark.parametrize("keep", [0, 1, -1, -20])
async def test_a_truncated_anchor_is_refused(vs: Cli, people: People, tmp_path: Path, keep: int) -> None:
    await people.user()
    file = tmp_path / "anchor.jsonl"
    await vs("wallets", "anchor", "-o", str(file))
    file.write_bytes(file.read_bytes()[:keep])
    refusal = await vs.refused("wallets", "verify", "--anchor", str(file))
    assert refusal.name == "invalid_request"
    assert "The anchor is damaged" in refusal.message


async def test_an_endless_line_is_not_read_to_its_end(vs: Cli, tmp_path: Path) -> None:
    file = tmp_path / "anchor.jsonl"
    file.write_bytes(b"x" * 10_000_000)
    assert "line 1 is cut off" in (await vs.refused("wallets", "verify", "--anchor", str(file))).message


async def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "anchor.jsonl"
    file.write_text("old")

    def interrupted() -> None:
        with proof_cli.whole_file(file) as sink:
            sink.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
