"""What an agreement redacts is gone when a conversation is over: of the messages, and of all that agents keep of them."""

import asyncio
import json
import uuid
from typing import Any

import pytest

from tests.conftest import Person
from tests.orchestration.hall import Channel, Hall
from tests.orchestration.studio import Studio, calls, says
from tests.orchestration.test_runs import OPEN_APPROVAL
from tests.tenancy.test_erasure import where_it_is
from vanilla_saas.database.errors import VanillaError

CARD = "4111-1111-1111-1111"
ACCOUNT = 998877665544
DEAL = {"acts": {"request": {"replies": ["inform"]}, "inform": {}}, "data": {"redact": ["/card", "/payers/account"]}}
FREE = {"acts": {"inform": {"opens": True}}}
BODY = {"card": CARD, "payers": [{"account": ACCOUNT, "share": 1}, {"name": "Bo"}], "note": f"with {CARD}, now"}
READ = {"card": "***", "payers": [{"account": "***", "share": 1}, {"name": "Bo"}], "note": "with ***, now"}
FIELDS = READ | {"note": BODY["note"]}


async def bodies(talk: Hall, channel: Channel) -> list[Any]:
    rows = await talk.connection.fetch("select body from channel_history($1)", channel.id)
    return [row["body"] for row in rows]


async def read_all(talk: Hall, channel: Channel, *readers: str, **more: Any) -> None:
    for reader in readers:
        if rows := await talk.receive(channel, reader):
            await talk.ask(
                "channel_ack", channel.id, channel.of[reader], rows[-1]["lease_token"], rows[-1]["seq"], **more
            )


async def job(talk: Hall) -> int:
    """The conversations that the job redacts now in this tenant."""
    return int(await talk.ask("vanilla.redact_messages", talk.tenant, 90, 1000))


async def asked(talk: Hall, deal: dict[str, Any] | None = None) -> tuple[Channel, int]:
    channel = await talk.open_bound(await talk.agree(deal or DEAL))
    return channel, await talk.say(channel, "ada", "request", body=BODY)


async def test_what_is_named_goes_when_the_conversation_is_over_and_all_have_read_it(talk: Hall) -> None:
    channel, seq = await asked(talk)
    await read_all(talk, channel, "bo", "listener")
    assert (await job(talk), await bodies(talk, channel)) == (0, [BODY])  # it goes on
    await talk.say(channel, "bo", "inform", body={"done": f"{CARD} and {ACCOUNT}"}, p_in_reply_to=seq)
    await read_all(talk, channel, "ada")
    assert (await job(talk), (await bodies(talk, channel))[0]) == (0, BODY)  # one has not read it
    await read_all(talk, channel, "listener")
    assert (await job(talk), await bodies(talk, channel)) == (1, [READ, {"done": "*** and ***"}])
    assert await job(talk) == 0
    # the name of the message is still that of the message, whose words nobody knows
    again = await talk.send(channel, "ada", "request", {"card": "another"}, "m1")
    assert again == {"seq": 1, "replayed": True}


@pytest.mark.parametrize("end", ["closed", "terminated", "old"])
async def test_a_conversation_that_nobody_ends_is_over_too(talk: Hall, end: str) -> None:
    deal = DEAL | {"data": DEAL["data"] | {"retention_days": 3}}
    channel, _ = await asked(talk, deal)
    await read_all(talk, channel, "ada", "bo", "listener")
    agreement = (await talk.channel(channel))["agreement_id"]
    assert await job(talk) == 0
    if end == "closed":
        await talk.ask("channel_close", channel.id)
    elif end == "terminated":
        await talk.ask("agreement_terminate", agreement)
    else:
        await talk.later(days=4)
    await talk.ask("vanilla.prune_messages", talk.tenant, 90, 1000)
    assert await bodies(talk, channel) == [BODY]  # it does not go before it is redacted
    assert (await job(talk), await bodies(talk, channel)) == (1, [READ])
    await talk.ask("vanilla.prune_messages", talk.tenant, 90, 1000)
    assert await bodies(talk, channel) == ([] if end == "old" else [READ])


async def test_a_closed_channel_that_somebody_has_not_read_is_redacted_before_it_goes(talk: Hall) -> None:
    channel, _ = await asked(talk)
    await talk.ask("channel_close", channel.id)
    assert await job(talk) == 0
    await talk.later(days=91)
    await talk.ask("vanilla.job_channels", 1000)
    assert await talk.connection.fetchval("select count(*) from communication_channels where id = $1", channel.id) == 0


async def test_who_only_listens_never_sees_it(talk: Hall) -> None:
    channel, _ = await asked(talk)
    assert [row["body"] for row in await talk.receive(channel, "listener")] == [FIELDS]
    assert [row["body"] for row in await talk.receive(channel, "bo")] == [BODY]


async def test_a_message_without_such_fields_is_left_alone_and_so_is_one_that_another_version_bound(talk: Hall) -> None:
    agreement = await talk.agree(FREE | {"data": {"retention_days": 9}})
    channel = await talk.open_bound(agreement)
    await talk.say(channel, "ada", "inform", body=BODY)
    made = await talk.ask("agreement_amend", agreement, "ada", FREE | {"data": DEAL["data"]})
    await talk.respond(made, "bo")
    await talk.say(channel, "ada", "inform", body=BODY)
    await talk.say(channel, "ada", "inform", body={"note": CARD})
    await read_all(talk, channel, "ada", "bo", "listener")
    assert (await job(talk), await bodies(talk, channel)) == (1, [BODY, READ, {"note": CARD}])


async def test_an_acknowledgement_names_a_run_of_who_acknowledges(talk: Hall) -> None:
    channel, _ = await asked(talk)
    with pytest.raises(VanillaError, match="no such run"):
        await read_all(talk, channel, "bo", p_run_id=uuid.uuid4())
    assert (await talk.participant(channel, "bo"))["cursor_seq"] == 0


async def test_what_could_not_be_handled_says_it_no_longer(talk: Hall) -> None:
    channel, _ = await asked(talk, DEAL | {"sla": {"max_attempts": 1}})
    token = (await talk.receive(channel, "bo"))[0]["lease_token"]
    await talk.ask("channel_nack", channel.id, channel.of["bo"], token, 1, f"{CARD} is no card")
    await read_all(talk, channel, "listener")
    await talk.ask("channel_close", channel.id)
    assert await job(talk) == 1
    said = "select error from channel_dead_letters where channel_id = $1"
    assert await talk.connection.fetchval(said, channel.id) == "*** is no card"
    assert (await talk.participant(channel, "bo"))["last_error"] == "*** is no card"


@pytest.mark.parametrize(
    ("value", "words", "left"),
    [
        ("4111 1111, and 4111", ["4111 1111"], "***, and 4111"),
        # a text that is JSON itself, as what tools give is
        ('{"who": "A \\"B\\" C"}', ['A "B" C'], '{"who": "***"}'),
        ({"12345": [12345, 123456, "12345 and 123456"]}, ["12345"], {"***": ["***", 123456, "*** and ***6"]}),
        # the longest first, or their beginning would go and their end stay
        ("peter and peterson", ["peterson", "peter"], "*** and ***"),
        ([None, True, 1.5, {}], ["12345"], [None, True, 1.5, {}]),
    ],
)  # fmt: skip
async def test_words_go_wherever_they_stand(talk: Hall, value: Any, words: list[str], left: Any) -> None:
    assert await talk.ask("vanilla.redact_words", value, words) == left


@pytest.mark.parametrize(
    ("pointer", "body", "words", "left"),
    [
        ("/a", {"a": "long enough"}, ["long enough"], {"a": "***"}),
        ("/a", {"a": "four"}, [], {"a": "***"}),  # what others keep of it would be any word
        ("/a/b", {"a": [{"b": 12345}, {"c": 1}]}, ["12345"], {"a": [{"b": "***"}, {"c": 1}]}),
        ("/a", {"a": {"b": ["first", {"c": "second"}]}}, ["first", "second"], {"a": "***"}),
        ("/a~1b/~0", {"a/b": {"~": "tilde"}}, ["tilde"], {"a/b": {"~": "***"}}),
        ("/a", {"b": "other"}, None, {"b": "other"}),
        ("/a", "text", None, "text"),
    ],
)
async def test_a_pointer_names_a_field(talk: Hall, pointer: str, body: Any, words: list[str] | None, left: Any) -> None:
    path = await talk.ask("vanilla.pointer_path", pointer)
    found = await talk.ask("vanilla.words_at", body, path)
    assert (found and sorted(found)) == words
    assert await talk.ask("vanilla.redact_fields", body, [pointer]) == left


# what agents keep ------------------------------------------------------------------------------------------------
THE_CARD, THE_ACCOUNT = "{{ input.message.card }}", "{{ input.message.payers[0].account }}"
OPEN_OF_EXECUTION = "select * from workflow_approvals where execution_id = $1 and status = 'open'"
FLOW = {
    "nodes": [
        {"id": "a", "kind": "transform", "value": "input.card"},
        {
            "id": "p",
            "kind": "approval",
            "title": "Pay",
            "prompt": "With {{ input.card }}?",
            "approvers": ["role:admin"],
        },
        {"id": "s", "kind": "signal", "signal": "paid"},
    ],
    "connections": [{"from": "a", "to": "p"}, {"from": "p", "to": "s"}],
}


def scripted(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An agent whose turns have what it was given in them: its definition has not."""
    return {"instructions": "You pay.\nsandbox: " + json.dumps({"turns": turns}), "model": "sandbox-small", **more}


async def bidder(desk: Studio) -> str:
    bid = says(json.dumps({"price_tokens": 900, "plan": "With {{ input.message.bid_for.card }}."}))
    scripts = [json.dumps({"turns": [turn]}) for turn in (bid, says(f"Paid with {THE_CARD}."))]
    text = "You pay.\n{{% if 'bid_for' in input.message %}}sandbox: {}{{% else %}}sandbox: {}{{% endif %}}"
    return await desk.save({"instructions": text.format(*scripts), "model": "sandbox-small"})


async def parties(desk: Studio) -> tuple[Person, Person, Channel]:
    """Two people who agree, and a channel between them."""
    ada, bo = await desk.shop.person(balance=1_000_000), await desk.shop.person(balance=1_000_000)
    whose = {"ada": str(ada.identity.user_id), "bo": str(bo.identity.user_id)}
    made = await desk.shop.ask(ada, "agreement_propose", "deal", whose, "ada", DEAL)
    agreement = uuid.UUID(made["agreement_id"])
    await desk.shop.ask(bo, "agreement_respond", agreement, "bo", bytes.fromhex(made["hash"]), "accept")
    seats = [{"name": name, "kind": "agent", "user_id": user, "party": name} for name, user in whose.items()]
    opened = await desk.shop.ask(ada, "channel_open", "talk", "group", seats, agreement)
    of = {name: uuid.UUID(seat) for name, seat in opened["participants"].items()}
    return ada, bo, Channel(uuid.UUID(opened["channel_id"]), of)


async def everything(desk: Studio) -> dict[str, set[str]]:
    """Where in the whole database one of the two words is."""
    found = await where_it_is(desk.shop.operator, CARD)
    for table, columns in (await where_it_is(desk.shop.operator, str(ACCOUNT))).items():
        found[table] = found.get(table, set()) | columns
    return found


async def say(desk: Studio, who: Person, channel: Channel, name: str, n: int, **more: Any) -> None:
    act = "inform" if more else "request"
    await desk.shop.ask(who, "channel_send", channel.id, channel.of[name], act, BODY, f"{act}-{n}", **more)


async def take(desk: Studio, who: Person, channel: Channel, name: str, run_id: uuid.UUID | None = None) -> None:
    """Receives all that there is, for a run or for nobody's."""
    seat = channel.of[name]
    token = await desk.shop.ask(who, "lease_token from channel_receive", channel.id, seat)
    last = await desk.shop.operator.fetchval("select lease_seq from channel_participants where id = $1", seat)
    await desk.shop.ask(who, "channel_ack", channel.id, seat, token, last, p_run_id=run_id)


async def approved(desk: Studio, sql: str, of: uuid.UUID) -> None:
    async with asyncio.timeout(20):
        while (asked := await desk.shop.operator.fetchrow(sql, of)) is None:
            await asyncio.sleep(0.02)
    await desk.shop.ask(desk.shop.admin, "decide_approval", asked["id"], "approved", f"{CARD} is good")


async def payer(desk: Studio) -> str:
    """Writes what it was given wherever an agent can write."""
    helper = await desk.save(scripted(says(f"Booked {THE_CARD}.")))
    return await desk.save(
        scripted(
            calls(("state_write", {"key": f"of {THE_CARD}", "value": {THE_CARD: [THE_ACCOUNT]}, "version": 0})),
            calls(("artifact_save", {"name": f"receipt {THE_CARD}", "content": f"Paid with {THE_CARD}."})),
            calls(("look_up", {"name": THE_CARD})),
            calls((f"delegate_to_{helper}", {"message": {"card": THE_CARD}})),
            calls(("contract_out", {"message": {"card": THE_CARD}})),
            says(f"Paid with {THE_CARD}."),
            tools=["state_write", "artifact_save", {"tool": "look_up", "approval": {"approvers": ["role:admin"]}}],
            delegates=[helper],
            contract={"bidders": [await bidder(desk)]},
        )
    )


async def test_nothing_that_agents_keep_of_a_message_says_it_when_the_conversation_is_over(desk: Studio) -> None:
    ada, bo, channel = await parties(desk)
    shop = desk.shop
    await say(desk, ada, channel, "ada", 1)
    run = await desk.start(bo, await payer(desk), BODY)  # type: ignore[arg-type]
    await take(desk, bo, channel, "bo", run)
    await approved(desk, OPEN_APPROVAL, run)
    assert (await desk.ended(run))["stop_reason"] == "done"
    await say(desk, bo, channel, "bo", 2, p_in_reply_to=1, p_run_id=run)

    await say(desk, ada, channel, "ada", 3)
    chatter = [await desk.save(scripted(says(f"I say {THE_CARD}."))) for _ in range(2)]
    chat = await desk.start(bo, await desk.save(scripted(chat={"members": chatter, "rounds": 1})), BODY)  # type: ignore[arg-type]
    await take(desk, bo, channel, "bo", chat)
    assert (await desk.ended(chat))["stop_reason"] == "done"
    await say(desk, bo, channel, "bo", 4, p_in_reply_to=3)

    await say(desk, ada, channel, "ada", 5)
    flow = await shop.room.start(await shop.flow(FLOW, bo), person=bo, card=CARD)
    await take(desk, bo, channel, "bo", flow)
    await say(desk, bo, channel, "bo", 6, p_in_reply_to=5)
    await take(desk, ada, channel, "ada")

    async def job() -> int:
        return int((await shop.operator.fetchval("select vanilla.job_channels(1000)"))["redacted"])

    written = {"agent_runs", "agent_run_steps", "agent_run_state", "run_artifacts", "contract_calls", "contract_bids"}
    kept = {
        "channel_messages",
        "workflow_approvals",
        "workflow_approval_votes",
        "workflow_executions",
        "workflow_steps",
    }
    assert set(await everything(desk)) == written | kept
    assert await job() == 2
    # the flow waits: it needs what it was given, and so does who tells it again
    assert set(await everything(desk)) == kept - {"workflow_approval_votes"}
    await approved(desk, OPEN_OF_EXECUTION, flow)
    await shop.ask(bo, "signal_execution", flow, "paid", {"card": CARD})
    async with asyncio.timeout(20):
        while (await shop.room.execution(flow))["finished_at"] is None:
            await asyncio.sleep(0.02)
    assert set(await everything(desk)) == kept | {"workflow_signals"}
    assert await job() == 1
    assert await everything(desk) == {}


async def test_a_run_of_somebody_else_is_left_alone(desk: Studio) -> None:
    ada, bo, channel = await parties(desk)
    others = await desk.start(ada, await desk.save(scripted(says(f"It is {THE_CARD}."))), BODY)  # type: ignore[arg-type]
    await desk.ended(others)
    await desk.shop.ask(bo, "channel_send", channel.id, channel.of["bo"], "request", BODY, "r", p_run_id=others)
    await take(desk, ada, channel, "ada")
    await desk.shop.ask(ada, "channel_close", channel.id)
    await desk.shop.operator.fetchval("select vanilla.job_channels(1000)")
    assert CARD in (await desk.run(others))["output"]["text"]
    await desk.shop.operator.execute(
        "select vanilla.redact_tree(tenant_id, execution_id, $2) from agent_runs where id = $1",
        others,
        [CARD, str(ACCOUNT)],
    )
    assert await everything(desk) == {}


KEPT = {
    "workflow_executions": "input = $2, output = $3, error = $3, slot = $1",
    "workflow_steps": "value = $3, output = $3, error = $3, state = $3, decision = $3, feedback = $3",
    "workflow_approvals": "title = $1, prompt = $1, comment = $1, subject = $3, value = $2",
    "workflow_signals": "payload = $3",
    "quality_gate_results": "feedback = $1, suggestions = $3, metrics = $2",
    "agent_runs": "input = $2, output = $3, error = $3",
}
"""What of a tree of executions has words of people in it, beside what only agents have."""
JUDGED = """
insert into quality_gate_results (tenant_id, id, user_id, workflow_id, version, execution_id, gate, round, passed, score, threshold, created_at)
    select tenant_id, gen_random_uuid(), user_id, workflow_id, version, id, 'g', 1, true, 1, 1, now() from workflow_executions where id = $1;
"""
SIGNALLED = """
insert into workflow_signals (tenant_id, execution_id, name, user_id, sent_at) select tenant_id, id, 'paid', user_id, now() from workflow_executions where id = $1;
"""
ASKED = """
insert into workflow_approvals (tenant_id, id, execution_id, node, user_id, title, approvers, quorum, created_at)
    select tenant_id, gen_random_uuid(), id, 1, user_id, 'x', '{role:admin}', 1, now() from workflow_executions where id = $1
"""


async def test_every_column_of_a_tree_that_can_have_it_is_redacted(desk: Studio) -> None:
    bo = await desk.shop.person()
    run = await desk.ended(await desk.start(bo, await desk.save(scripted(says("Done.")))))
    operator, execution = desk.shop.operator, run["execution_id"]
    for statement in (JUDGED, SIGNALLED, ASKED):
        await operator.execute(statement, execution)
    values = (CARD, {"a": [CARD], CARD: ACCOUNT}, CARD)
    for table, columns in KEPT.items():
        key = "id" if table == "workflow_executions" else "execution_id"
        of = columns.replace("$1", "$1::text").replace("$2", "$2::jsonb").replace("$3", "$3::jsonb")
        given = f"with given as (select $1::text, $2::jsonb, $3::jsonb) update {table} set {of} where {key} = $4"
        await operator.execute(given, *values, execution)
    assert set(await everything(desk)) == set(KEPT)
    redact = "select vanilla.redact_tree(tenant_id, id, $2) from workflow_executions where id = $1"
    await operator.execute(redact, execution, [CARD, str(ACCOUNT)])
    assert await everything(desk) == {}


async def test_who_reads_the_history_without_being_a_party_does_not_see_it(desk: Studio) -> None:
    ada, _, channel = await parties(desk)
    cy = await desk.shop.person()
    await desk.shop.operator.execute(
        "insert into channel_participants (tenant_id, channel_id, place, name, kind, user_id)"
        " select tenant_id, id, 9, 'cy', 'user', $2 from communication_channels where id = $1",
        channel.id,
        cy.identity.user_id,
    )
    await say(desk, ada, channel, "ada", 1)
    for who, seen in ((cy, FIELDS), (ada, BODY), (desk.shop.admin, BODY)):
        assert await desk.shop.ask(who, "body from channel_history", channel.id) == seen
    await desk.shop.ask(None, "erase_user", ada.identity.user_id, "asked")


async def test_what_an_erased_person_said_is_gone_from_what_the_others_agents_keep(desk: Studio) -> None:
    ada, bo, channel = await parties(desk)
    await say(desk, ada, channel, "ada", 1)
    run = await desk.start(bo, await desk.save(scripted(says(f"It is {THE_CARD}."))), BODY)  # type: ignore[arg-type]
    await take(desk, bo, channel, "bo", run)
    await desk.ended(run)
    await desk.shop.ask(None, "erase_user", ada.identity.user_id, "asked")
    assert await everything(desk) == {}
    assert (await desk.run(run))["output"]["text"] == "It is ***."
