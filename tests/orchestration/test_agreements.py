"""Agreements: who may do what when, what never changes, and what a message may not do under one."""

import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.orchestration.hall import EMPTY, START, Channel, Hall, VanillaError

TASK: dict[str, Any] = {
    "acts": {
        "request": {
            "schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 0}}},
            "senders": ["ada"],
            "replies": ["agree", "refuse"],
            "reply_within_s": 60,
        },
        "agree": {"senders": ["bo"], "replies": ["inform", "failure"]},
        "refuse": {"senders": ["bo"]},
        "inform": {"senders": ["bo"], "opens": True},
        "failure": {"senders": ["bo"]},
    },
    "limits": {"max_messages": 20, "max_open_conversations": 2, "max_violations": 3},
}
OTHER = TASK | {"price": {"max_tokens_per_task": 1000}}
GOOD = {"n": 1}


async def rule(talk: Hall, channel: Channel, sender: str, performative: str, body: Any = EMPTY, **more: Any) -> str:
    answer = await talk.send(channel, sender, performative, body, **more)
    assert answer["seq"] is None, answer
    assert answer["refused"]["code"] == "agreement_violated"
    return str(answer["refused"]["rule"])


async def test_an_agreement_is_active_when_the_last_party_accepts(talk: Hall) -> None:
    made = await talk.propose(TASK, "ada", "bo", "cy")
    assert (await talk.status(made), (await talk.respond(made, "bo"))["status"]) == ("proposed", "proposed")
    assert (await talk.respond(made, "bo"))["status"] == "proposed"  # the same again
    assert (await talk.respond(made, "cy"))["status"] == "active"
    with pytest.raises(VanillaError, match="nothing is proposed"):
        await talk.respond(made, "cy")


async def test_only_the_hash_that_is_open_is_accepted(talk: Hall) -> None:
    made = await talk.propose(TASK)
    with pytest.raises(VanillaError, match="something else is proposed"):
        await talk.respond(made | {"hash": "00" * 32}, "bo")
    countered = await talk.respond(made, "bo", "counter", OTHER)
    assert (countered["version"], countered["status"], countered["hash"] == made["hash"]) == (2, "proposed", False)
    with pytest.raises(VanillaError, match="something else is proposed"):
        await talk.respond(made, "ada")
    assert (await talk.respond(countered, "ada"))["status"] == "active"
    read = await talk.ask("agreement_read", uuid.UUID(made["agreement_id"]))
    assert [(v["version"], v["state"], v["accepted_by"]) for v in read["versions"]] == [
        (2, "active", ["ada", "bo"]),
        (1, "countered", ["ada"]),
    ]


async def test_a_rejected_or_withdrawn_proposal_is_over(talk: Hall) -> None:
    rejected, withdrawn = await talk.propose(TASK), await talk.propose(TASK)
    assert (await talk.respond(rejected, "bo", "reject"))["status"] == "rejected"
    with pytest.raises(VanillaError, match="has proposed nothing"):
        await talk.ask("agreement_withdraw", uuid.UUID(withdrawn["agreement_id"]), "bo")
    answer = await talk.ask("agreement_withdraw", uuid.UUID(withdrawn["agreement_id"]), "ada")
    assert answer["status"] == "withdrawn"
    for made in (rejected, withdrawn):
        with pytest.raises(VanillaError, match="the agreement is"):
            await talk.respond(made, "bo")
        with pytest.raises(VanillaError, match="the agreement is"):
            await talk.ask("agreement_terminate", uuid.UUID(made["agreement_id"]))


async def test_an_amendment_binds_when_all_accept_it_and_supersedes(talk: Hall) -> None:
    agreement = await talk.agree(TASK)
    channel = await talk.open_bound(agreement)
    stricter = {"acts": TASK["acts"] | {"request": TASK["acts"]["request"] | {"schema": {"required": ["m"]}}}}
    amended = await talk.ask("agreement_amend", agreement, "bo", stricter)
    assert (amended["version"], amended["status"]) == (2, "active")
    with pytest.raises(VanillaError, match="proposed already"):
        await talk.ask("agreement_amend", agreement, "ada", OTHER)
    await talk.say(channel, "ada", "request", body=GOOD)
    assert (await talk.respond(amended, "ada"))["status"] == "active"
    assert await rule(talk, channel, "ada", "request", GOOD) == "schema"
    rejected = await talk.ask("agreement_amend", agreement, "ada", OTHER)
    assert (await talk.respond(rejected, "bo", "reject"))["status"] == "active"
    read = await talk.ask("agreement_read", agreement)
    assert [(v["version"], v["state"]) for v in read["versions"]] == [(3, "rejected"), (2, "active"), (1, "superseded")]


async def test_a_suspended_agreement_lets_nothing_pass_until_the_same_party_resumes_it(talk: Hall) -> None:
    agreement = await talk.agree(TASK)
    channel = await talk.open_bound(agreement)
    await talk.ask("agreement_suspend", agreement, "ada", "a pause")
    with pytest.raises(VanillaError, match="agreement is suspended"):
        await talk.say(channel, "ada", "request", body=GOOD)
    with pytest.raises(VanillaError, match="agreement is suspended"):
        await talk.ask("agreement_suspend", agreement, "bo")
    with pytest.raises(VanillaError, match="for another party"):
        await talk.ask("agreement_resume", agreement, "bo")
    await talk.ask("agreement_resume", agreement, "ada")
    with pytest.raises(VanillaError, match="agreement is active"):
        await talk.ask("agreement_resume", agreement, "ada")
    await talk.say(channel, "ada", "request", body=GOOD)


async def test_a_terminated_agreement_is_over_for_its_channels(talk: Hall) -> None:
    agreement = await talk.agree(TASK)
    channel = await talk.open_bound(agreement)
    await talk.ask("agreement_terminate", agreement, "bo", "enough")
    with pytest.raises(VanillaError, match="agreement is terminated"):
        await talk.say(channel, "ada", "request", body=GOOD)
    with pytest.raises(VanillaError, match="agreement is terminated"):
        await talk.open_bound(agreement)


async def test_an_agreement_expires_by_the_clock_and_the_job_only_writes_it_down(talk: Hall) -> None:
    end = START + timedelta(hours=1)
    agreement = await talk.agree(TASK | {"expires_at": end.isoformat()})
    proposed = await talk.propose(TASK | {"expires_at": end.isoformat()})
    channel = await talk.open_bound(agreement)
    await talk.say(channel, "ada", "request", body=GOOD)
    await talk.at(end)
    assert (await talk.status(agreement), await talk.status(proposed)) == ("expired", "expired")
    with pytest.raises(VanillaError, match="agreement is expired"):
        await talk.say(channel, "ada", "request", body=GOOD)
    with pytest.raises(VanillaError, match="agreement is expired"):
        await talk.respond(proposed, "bo")
    assert (await talk.ask("vanilla.job_channels", 1000))["expired"] >= 2
    rows = await talk.connection.fetch(
        "select status, open_version from protocol_agreements where tenant_id = $1", talk.tenant
    )
    assert {tuple(row) for row in rows} == {("expired", None)}
    await talk.at(START)  # a clock that is put back brings nothing back
    assert await talk.status(agreement) == "expired"


@pytest.mark.parametrize(
    ("sender", "performative", "body", "expected"),
    [
        ("ada", "query", GOOD, "performative"),
        ("bo", "request", GOOD, "sender"),
        ("listener", "inform", {}, "sender"),
        ("bo", "agree", {}, "reply"),
        ("ada", "request", {"n": -1}, "schema"),
        ("ada", "request", {}, "schema"),
    ],
)
async def test_a_message_that_breaks_a_rule_is_not_sent(
    talk: Hall, sender: str, performative: str, body: Any, expected: str
) -> None:
    channel = await talk.open_bound(await talk.agree(TASK))
    assert await rule(talk, channel, sender, performative, body) == expected
    assert await talk.seqs(channel) == []


async def test_a_reply_is_one_that_the_act_has_in_a_conversation_that_goes_on(talk: Hall) -> None:
    channel = await talk.open_bound(await talk.agree(TASK | {"limits": {}}))
    asked = await talk.say(channel, "ada", "request", body=GOOD)
    assert await rule(talk, channel, "bo", "failure", p_in_reply_to=asked) == "reply"
    agreed = await talk.say(channel, "bo", "agree", p_in_reply_to=asked)
    told = await talk.say(channel, "bo", "inform", p_in_reply_to=agreed)
    assert await rule(talk, channel, "bo", "failure", p_in_reply_to=agreed) == "conversation"
    assert await rule(talk, channel, "bo", "inform", p_in_reply_to=told) == "reply"
    assert (await talk.channel(channel))["open_conversations"] == 0


async def test_a_reply_comes_in_time(talk: Hall) -> None:
    channel = await talk.open_bound(await talk.agree(TASK))
    asked = await talk.say(channel, "ada", "request", body=GOOD)
    await talk.later(seconds=60)
    in_time = await talk.say(channel, "bo", "agree", p_in_reply_to=asked)
    await talk.later(microseconds=1)
    assert await rule(talk, channel, "bo", "refuse", p_in_reply_to=asked) == "deadline"
    await talk.later(days=1)
    await talk.say(channel, "bo", "inform", p_in_reply_to=in_time)


async def test_no_more_conversations_and_messages_than_agreed(talk: Hall) -> None:
    limits = {"max_messages": 6, "max_open_conversations": 2}
    channel = await talk.open_bound(await talk.agree(TASK | {"limits": limits}))
    first = await talk.say(channel, "ada", "request", body=GOOD)
    await talk.say(channel, "ada", "request", body=GOOD)
    assert await rule(talk, channel, "ada", "request", GOOD) == "limit"
    await talk.say(channel, "bo", "inform")  # begins and ends
    await talk.say(channel, "bo", "refuse", p_in_reply_to=first)
    await talk.say(channel, "ada", "request", body=GOOD)
    await talk.say(channel, "bo", "inform")
    assert await rule(talk, channel, "bo", "inform") == "limit"


BIDS: dict[str, Any] = {
    "acts": {"cfp": {"senders": ["ada"], "replies": ["propose"]}, "propose": {"senders": ["bo"]}, "inform": {}}
}


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        ({"price_tokens": 1000}, True),
        ({"price_tokens": 1000.0}, True),
        ({"price_tokens": 1001}, False),
        ({"price_tokens": 1000.5}, False),
        ({"price_tokens": 1e300}, False),
        ({"price_tokens": "1"}, False),  # more or less than nothing that can be compared
        ({"price_tokens": None}, False),
        ({"plan": "for nothing"}, True),
        ([{"price_tokens": 1001}], True),  # no bid: its act has no schema that asks for one
        ("price_tokens", True),
        (None, True),
    ],
)
async def test_a_bid_is_not_above_the_price_that_was_agreed(talk: Hall, body: Any, passes: bool) -> None:
    agreement = await talk.agree(BIDS | {"price": {"max_tokens_per_task": 1000}})
    channel = await talk.open_bound(agreement)
    asked = await talk.say(channel, "ada", "cfp")
    answer = await talk.send(channel, "bo", "propose", body, p_in_reply_to=asked)
    if passes:
        assert answer["seq"] == 2
    else:
        assert (answer["seq"], answer["refused"]["rule"]) == (None, "price")
        assert answer["refused"]["path"] == "/price_tokens"
        assert answer["refused"]["message"] == "a price is a number of tokens, at most 1000"
        [broken] = (await talk.ask("agreement_read", agreement))["latest_violations"]
        assert (broken["rule"], broken["path"], broken["party"]) == ("price", "/price_tokens", "bo")


async def test_a_price_binds_bids_only_and_comes_after_the_schema(talk: Hall) -> None:
    acts = BIDS["acts"] | {"propose": {"senders": ["bo"], "opens": True, "schema": {"required": ["plan"]}}}
    channel = await talk.open_bound(await talk.agree({"acts": acts, "price": {"max_tokens_per_task": 0}}))
    assert await rule(talk, channel, "bo", "propose", {"price_tokens": 1}) == "schema"
    assert await rule(talk, channel, "bo", "propose", {"price_tokens": 1, "plan": ""}) == "price"
    await talk.say(channel, "bo", "inform", body={"price_tokens": 1})
    free = await talk.open_bound(await talk.agree({"acts": acts, "price": {}}))
    await talk.say(free, "bo", "propose", body={"price_tokens": 10**15, "plan": ""})


SLOW: dict[str, Any] = {
    "acts": {
        "request": {"senders": ["ada"], "replies": ["agree", "inform"]},
        "agree": {"senders": ["bo"], "replies": ["inform"]},
        "inform": {"senders": ["bo"], "opens": True},
    },
    "sla": {"max_latency_ms": 1500},
    "limits": {"max_violations": 2},
}


async def test_a_late_answer_is_delivered_and_a_violation_of_its_sender(talk: Hall) -> None:
    agreement = await talk.agree(SLOW)
    channel = await talk.open_bound(agreement)
    asked = await talk.say(channel, "ada", "request")
    await talk.later(milliseconds=1500)
    agreed = await talk.send(channel, "bo", "agree", p_in_reply_to=asked)
    assert agreed == {"seq": 2, "replayed": False}
    await talk.later(milliseconds=1500, microseconds=1)
    late = await talk.send(channel, "bo", "inform", {"n": "secret"}, "late", p_in_reply_to=2)
    assert late == {
        "seq": 3,
        "replayed": False,
        "violated": {
            "code": "agreement_violated",
            "rule": "latency",
            "path": "",
            "message": "an answer comes within 1500 ms",
            "violations": 1,
            "suspended": False,
        },
    }
    again = await talk.send(channel, "bo", "inform", {"n": "secret"}, "late", p_in_reply_to=2)
    assert again == {"seq": 3, "replayed": True}
    assert [row["seq"] for row in await talk.receive(channel, "ada")] == [2, 3]
    read = await talk.ask("agreement_read", agreement)
    assert [(v["rule"], v["party"], v["performative"]) for v in read["latest_violations"]] == [
        ("latency", "bo", "inform")
    ]
    assert (read["violations"], "secret" in str(read)) == (1, False)


async def test_late_answers_suspend_and_what_opens_a_conversation_is_never_late(talk: Hall) -> None:
    agreement = await talk.agree(SLOW)
    channel = await talk.open_bound(agreement)
    first, second = await talk.say(channel, "ada", "request"), await talk.say(channel, "ada", "request")
    await talk.later(seconds=2)
    await talk.say(channel, "bo", "inform")
    answers = [await talk.send(channel, "bo", "inform", p_in_reply_to=asked) for asked in (first, second)]
    assert [(a["seq"], a["violated"]["violations"], a["violated"]["suspended"]) for a in answers] == [
        (4, 1, False),
        (5, 2, True),
    ]
    assert await talk.status(agreement) == "suspended"
    with pytest.raises(VanillaError, match="agreement is suspended"):
        await talk.say(channel, "ada", "request")
    with pytest.raises(VanillaError, match="for another party"):
        await talk.ask("agreement_resume", agreement, "bo")
    await talk.ask("agreement_resume", agreement, "ada")
    await talk.say(channel, "ada", "request")


async def test_what_is_refused_is_not_late_as_well(talk: Hall) -> None:
    acts = SLOW["acts"] | {"request": SLOW["acts"]["request"] | {"reply_within_s": 2}}
    agreement = await talk.agree(SLOW | {"acts": acts})
    channel = await talk.open_bound(agreement)
    asked = await talk.say(channel, "ada", "request")
    await talk.later(seconds=2)
    assert (await talk.send(channel, "bo", "agree", p_in_reply_to=asked))["violated"]["rule"] == "latency"
    await talk.later(microseconds=1)
    answer = await talk.send(channel, "bo", "agree", p_in_reply_to=asked)
    assert (answer["refused"]["rule"], answer["refused"]["violations"]) == ("deadline", 2)


WORDS = {"kind": "regex", "acts": ["inform"], "pattern": "^[A-Z][a-z ]*$"}
SHAPE = {
    "$defs": {"n": {"type": "integer", "minimum": 0}},
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/n"}},
}


@pytest.mark.parametrize(
    ("gate", "body", "path", "message"),
    [
        (WORDS, "Done it", None, None),
        (WORDS, "done", "", "pattern"),
        (WORDS, "Done\n", "", "pattern"),
        (WORDS, {"text": "Done"}, "", "type"),
        (WORDS, None, "", "type"),
        (WORDS | {"field": "text"}, {"text": "Done", "n": 1}, None, None),
        (WORDS | {"field": "text"}, {"text": "done"}, "/text", "pattern"),
        (WORDS | {"field": "text"}, {"text": ["Done"]}, "/text", "type"),
        (WORDS | {"field": "text"}, {"n": 1}, "", "required"),
        (WORDS | {"field": "text"}, "Done", "", "type"),
        (WORDS | {"field": "a/b~"}, {"a/b~": "1"}, "/a~1b~0", "pattern"),
        ({"kind": "schema", "acts": ["inform"], "schema": SHAPE}, {"n": 1}, None, None),
        ({"kind": "schema", "acts": ["inform"], "schema": SHAPE}, {"n": -1}, "/n", "minimum"),
        ({"kind": "schema", "acts": ["inform"], "schema": False}, {}, "", "false"),
    ],
)
async def test_a_message_passes_the_gate_of_its_act(
    talk: Hall, gate: dict[str, Any], body: Any, path: str | None, message: str | None
) -> None:
    agreement = await talk.agree({"acts": {"inform": {}, "query": {}}, "gate": gate})
    channel = await talk.open_bound(agreement)
    await talk.say(channel, "ada", "query", body=body)  # an act that the gate does not name
    answer = await talk.send(channel, "ada", "inform", body)
    if message is None:
        assert answer == {"seq": 2, "replayed": False}
    else:
        told = answer["refused"]
        assert (answer["seq"], told["rule"], told["path"]) == (None, "gate", path)
        assert told["message"] == f"it does not pass the gate: {message}"
        [broken] = (await talk.ask("agreement_read", agreement))["latest_violations"]
        assert (broken["rule"], broken["path"], await talk.seqs(channel)) == ("gate", path, [1])


async def test_what_is_nested_too_deep_passes_no_gate(talk: Hall) -> None:
    deep: dict[str, Any] = {"$defs": {"x": {"items": {"$ref": "#/$defs/x"}}}, "$ref": "#/$defs/x"}
    gate = {"kind": "schema", "acts": ["inform"], "schema": deep}
    channel = await talk.open_bound(await talk.agree(ACT | {"gate": gate}))
    body: Any = []
    for _ in range(40):
        body = [body]
    answer = await talk.send(channel, "ada", "inform", body)
    assert answer["refused"]["message"] == "it does not pass the gate: it is nested too deep"


async def test_the_gate_comes_after_the_schema_and_the_price(talk: Hall) -> None:
    acts = {"propose": {"schema": {"required": ["plan"]}}}
    gate = {"kind": "regex", "acts": ["propose"], "field": "plan", "pattern": "^by "}
    terms = {"acts": acts, "gate": gate, "price": {"max_tokens_per_task": 5}}
    channel = await talk.open_bound(await talk.agree(terms))
    for body, broken in (({}, "schema"), ({"plan": "", "price_tokens": 6}, "price"), ({"plan": ""}, "gate")):
        assert await rule(talk, channel, "bo", "propose", body) == broken
    await talk.say(channel, "bo", "propose", body={"plan": "by hand", "price_tokens": 5})


async def test_an_agreement_of_before_with_a_gate_by_name_holds_nobody_to_it(talk: Hall) -> None:
    breach = "select vanilla.body_breach($1, 'inform', '{}')"
    assert await talk.connection.fetchval(breach, ACT | {"gate": "inform"}) is None
    assert await talk.connection.fetchval(breach, ACT | {"gate": WORDS}) is not None


async def test_violations_are_counted_and_suspend(talk: Hall) -> None:
    agreement = await talk.agree(TASK)
    channel = await talk.open_bound(agreement)
    answers = [await talk.send(channel, "bo", "request", GOOD) for _ in range(3)]
    assert [(a["refused"]["violations"], a["refused"]["suspended"]) for a in answers] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    with pytest.raises(VanillaError, match="agreement is suspended"):
        await talk.say(channel, "ada", "request", body=GOOD)
    with pytest.raises(VanillaError, match="for another party"):
        await talk.ask("agreement_resume", agreement, "bo")
    await talk.ask("agreement_resume", agreement, "ada")
    await talk.say(channel, "ada", "request", body=GOOD)
    answer = await talk.send(channel, "ada", "request", {"n": "secret"})
    assert answer["refused"] == {
        "code": "agreement_violated",
        "rule": "schema",
        "path": "/n",
        "message": "it does not fit the schema's type",
        "violations": 1,
        "suspended": False,
    }
    read = await talk.ask("agreement_read", agreement)
    assert [v["rule"] for v in read["latest_violations"]] == ["schema", "sender", "sender", "sender"]
    assert "secret" not in str(read["latest_violations"])


async def test_after_violations_who_has_made_none_since_it_was_resumed_resumes_it(talk: Hall) -> None:
    agreement = await talk.agree(TASK)
    channel = await talk.open_bound(agreement)
    for _ in range(3):
        await talk.send(channel, "bo", "request", GOOD)
    await talk.ask("agreement_resume", agreement, "ada")
    answers = [await talk.send(channel, "ada", "request", {"n": "no"}) for _ in range(3)]
    assert [answer["refused"]["suspended"] for answer in answers] == [False, False, True]
    with pytest.raises(VanillaError, match="for another party"):
        await talk.ask("agreement_resume", agreement, "ada")
    await talk.ask("agreement_resume", agreement, "bo")
    await talk.say(channel, "ada", "request", body=GOOD)


async def test_what_was_agreed_does_not_change_for_anybody(talk: Hall) -> None:
    agreement = await talk.agree(TASK)
    proposed = await talk.propose(TASK)
    for statement in (
        "update agreement_versions set terms = '{}', hash = sha256('{}') where agreement_id = $1",
        "update agreement_versions set proposed_at = now() where agreement_id = $1",
        "update agreement_versions set state = 'proposed', decided_at = null where agreement_id = $1",
        "update agreement_versions set state = 'rejected' where agreement_id = $1",
        "update protocol_agreements set status = 'proposed', version = null, open_version = 1 where id = $1",
        "update protocol_agreements set version = 0 where id = $1",
    ):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await talk.connection.execute(statement, agreement)
        assert caught.value.sqlstate in ("VS409", "23514")
    with pytest.raises(asyncpg.PostgresError, match="not every party"):
        await talk.connection.execute(
            "update agreement_versions set state = 'active', decided_at = now() where agreement_id = $1",
            uuid.UUID(proposed["agreement_id"]),
        )


STATES = ("proposed", "active", "suspended", "rejected", "withdrawn", "terminated", "expired")
DRAWN = {
    "proposed": {"active", "rejected", "withdrawn", "terminated", "expired"},
    "active": {"suspended", "terminated", "expired"},
    "suspended": {"active", "terminated", "expired"},
}


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
async def test_a_transition_that_is_not_drawn_is_refused(talk: Hall, before: str, after: str) -> None:
    agreement = await talk.agree(TASK)
    state = "status = '{0}', version = case when '{0}' in ('active', 'suspended') then 1 end, open_version = case when '{0}' = 'proposed' then 1 end"
    await talk.connection.execute("set session_replication_role = replica")
    await talk.connection.execute(f"update protocol_agreements set {state.format(before)} where id = $1", agreement)
    await talk.connection.execute("set session_replication_role = origin")
    change = f"update protocol_agreements set {state.format(after)} where id = $1"
    if after == before or after in DRAWN.get(before, set()):
        await talk.connection.execute(change, agreement)
    else:
        with pytest.raises(asyncpg.PostgresError, match="does not become"):
            await talk.connection.execute(change, agreement)


ACT = {"acts": {"inform": {}}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "is an object"),
        ({}, "acts are an object"),
        ({"acts": {}}, "acts are an object"),
        (ACT | {"odd": 1}, "nothing else"),
        ({"acts": {"odd": {}}}, "no performative"),
        ({"acts": {"inform": []}}, "is an object"),
        ({"acts": {"inform": {"odd": 1}}}, "nothing else"),
        ({"acts": {"inform": {"senders": []}}}, "list of parties"),
        ({"acts": {"inform": {"senders": ["cy"]}}}, "list of parties"),
        ({"acts": {"inform": {"senders": [1]}}}, "list of parties"),
        ({"acts": {"inform": {"replies": ["agree"]}}}, "acts that are there"),
        ({"acts": {"inform": {"reply_within_s": 1}}}, "with replies"),
        ({"acts": {"inform": {"replies": ["inform"], "reply_within_s": 0}}}, "whole number"),
        ({"acts": {"inform": {"opens": 1}}}, "true or false"),
        ({"acts": {"inform": {"opens": False}}}, "nothing leads to it"),
        ({"acts": {"inform": {"schema": {"format": "date"}}}}, "/schema/format: this keyword is not enforced"),
        (ACT | {"price": {"max_tokens_per_task": -1}}, "whole number"),
        (ACT | {"price": {"odd": 1}}, "nothing else"),
        (ACT | {"sla": {"max_attempts": 101}}, "whole number"),
        (ACT | {"data": {"retention_days": 0}}, "whole number"),
        *(
            (ACT | {"data": {"redact": odd}}, "JSON pointers")
            for odd in ([], "/a", [1], [""], ["a"], ["/"], ["/a~2"], ["/a"] * 21, ["/" + "a" * 200])
        ),
        (ACT | {"gate": "a-slug"}, "gate is an object"),
        (ACT | {"gate": {}}, "of the kind schema or regex"),
        *[
            (ACT | {"gate": {"kind": kind, "acts": ["inform"]}}, "of the kind schema or regex: it is decided in")
            for kind in ("model_judge", "human", "sql", 1, None)
        ],
        (ACT | {"gate": {"kind": "schema", "acts": ["inform"]}}, "says its schema"),
        (ACT | {"gate": {"kind": "schema", "acts": ["inform"], "schema": 1}}, "gate/schema: a schema is an object"),
        (
            ACT | {"gate": {"kind": "schema", "acts": ["inform"], "schema": {"items": {"format": "date"}}}},
            "gate/schema/items/format: this keyword is not enforced",
        ),
        (ACT | {"gate": {"kind": "schema", "acts": ["inform"], "schema": {}, "pattern": "a"}}, "nothing else"),
        (ACT | {"gate": {"kind": "regex", "acts": ["inform"], "pattern": "a", "schema": {}}}, "nothing else"),
        (ACT | {"gate": {"kind": "regex", "acts": ["inform"]}}, "says its pattern"),
        (ACT | {"gate": {"kind": "regex", "acts": ["inform"], "pattern": 1}}, "gate/pattern: it is a text"),
        (
            ACT | {"gate": {"kind": "regex", "acts": ["inform"], "pattern": "(a)\\1"}},
            "different things to different readers",
        ),
        (
            ACT | {"gate": {"kind": "regex", "acts": ["inform"], "pattern": "a" * 201}},
            "gate/pattern: a pattern has at most 200 characters",
        ),
        (ACT | {"gate": {"kind": "regex", "acts": ["inform"], "pattern": "a", "field": ""}}, "the field of a gate"),
        (ACT | {"gate": {"kind": "regex", "acts": ["inform"], "pattern": "a", "field": 1}}, "the field of a gate"),
        (ACT | {"gate": {"kind": "regex", "acts": [], "pattern": "a"}}, "acts that are there"),
        (ACT | {"gate": {"kind": "regex", "acts": "inform", "pattern": "a"}}, "acts that are there"),
        (ACT | {"gate": {"kind": "regex", "acts": ["agree"], "pattern": "a"}}, "acts that are there"),
        (ACT | {"gate": {"kind": "regex", "pattern": "a"}}, "acts that are there"),
        (ACT | {"limits": {"max_violations": 0}}, "whole number"),
        (ACT | {"limits": 1}, "is an object"),
        (ACT | {"expires_at": "soon"}, "a time"),
        (ACT | {"expires_at": "2020-01-01T00:00:00Z"}, "before it begins"),
        (ACT | {"name": "x" * 70000}, "64 KiB"),
    ],
)
async def test_what_could_not_be_enforced_is_not_proposed(talk: Hall, content: Any, problem: str) -> None:
    with pytest.raises(VanillaError, match=problem):
        await talk.propose(content)


@pytest.mark.parametrize(
    "parties", [{"ada": "ada"}, {"ada": "ada", "b B": "bo"}, {"ada": "bo", "bo": "ada"}, {"ada": "ada", "bo": None}]
)
async def test_parties_are_users_and_the_one_who_proposes_among_them(
    talk: Hall, parties: dict[str, str | None]
) -> None:
    whose = {party: str(talk.users[user]) if user else "odd" for party, user in parties.items()}
    with pytest.raises(VanillaError):
        await talk.ask("agreement_propose", "deal", whose, "ada", ACT, p_user_id=talk.users["ada"])


async def test_a_participant_speaks_as_its_user_s_party_only(talk: Hall) -> None:
    agreement = await talk.agree(TASK)
    participants = [{"name": "a", "party": "bo"}, {"name": "b"}]
    with pytest.raises(VanillaError, match="as a party that its user is not"):
        await talk.open_with(participants, p_agreement_id=agreement)


async def test_a_bound_channel_takes_attempts_and_retention_from_the_agreement(talk: Hall) -> None:
    agreement = await talk.agree(ACT | {"sla": {"max_attempts": 1}, "data": {"retention_days": 1}})
    channel = await talk.open_bound(agreement)
    await talk.say(channel, "ada", "inform")
    await talk.say(channel, "ada", "inform")
    for reader in ("bo", "listener"):
        token = (await talk.receive(channel, reader))[0]["lease_token"]
        assert await talk.nack(channel, reader, token, 1) == "dead"
    await talk.later(days=2)
    await talk.ask("vanilla.job_channels", 1000)
    assert await talk.seqs(channel) == [1, 2]  # ada's own cursor is not past them
    await talk.receive(channel, "ada")
    await talk.ask("vanilla.job_channels", 1000)
    assert await talk.seqs(channel) == [2]


async def test_an_erased_party_ends_what_it_had_agreed_on(talk: Hall) -> None:
    agreement, other = await talk.agree(TASK), await talk.agree(ACT, "bo", "cy")
    await talk.ask("erase_user", talk.users["ada"], "asked", p_tenant_id=talk.tenant)
    assert (await talk.status(agreement), await talk.status(other)) == ("terminated", "active")
