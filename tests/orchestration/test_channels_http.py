"""Channels and agreements over HTTP, by the client and by commands; a live view that breaks off goes on in the order."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import orjson
import pytest

from tests.conftest import Cluster, People, Person
from tests.tokens.test_cli import Cli, shell
from tests.workflows.test_events import following
from vanilla_saas.client import ApiError, Client

TERMS: dict[str, Any] = {
    "acts": {
        "request": {
            "senders": ["asks"],
            "replies": ["agree"],
            "schema": {"type": "object", "properties": {"refund": {"type": "integer", "minimum": 1}}},
        },
        "agree": {"senders": ["does"]},
    },
    "limits": {"max_violations": 2},
}


@pytest.fixture
async def pair(people: People) -> tuple[Person, Person]:
    return await people.user(), await people.user()


@pytest.fixture
async def ada(api: str, pair: tuple[Person, Person]) -> AsyncIterator[Client]:
    async with Client(api, pair[0].key) as client:
        yield client


@pytest.fixture
async def bo(api: str, pair: tuple[Person, Person]) -> AsyncIterator[Client]:
    async with Client(api, pair[1].key) as client:
        yield client


def both(pair: tuple[Person, Person], **of_bo: Any) -> list[dict[str, Any]]:
    return [{"name": "ada"}, {"name": "bo", "kind": "user", "user_id": str(pair[1].identity.user_id), **of_bo}]


LATE = {"limits": {"max_violations": 3}, "sla": {"max_latency_ms": 1}}
"""Two requests are further apart than this."""


async def agreed(ada: Client, bo: Client, pair: tuple[Person, Person], **more: Any) -> str:
    parties = {"asks": str(pair[0].identity.user_id), "does": str(pair[1].identity.user_id)}
    made = await ada.agreements.propose("refunds", parties, "asks", TERMS | more)
    assert made["status"] == "proposed"
    done = await bo.agreements.respond(made["agreement_id"], "does", made["hash"], "accept")
    assert done["status"] == "active"
    return str(made["agreement_id"])


async def refused(call: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await call
    return raised.value


async def test_a_message_is_sent_once_read_under_a_lease_and_acknowledged(
    ada: Client, bo: Client, pair: tuple[Person, Person]
) -> None:
    made = await ada.channels.open("desk", both(pair), kind="direct")
    channel, who = made["channel_id"], made["participants"]
    assert [row["id"] for row in await bo.channels.list()] == [channel]
    for replayed in (False, True):
        sent = await ada.channels.send(channel, who["ada"], {"text": "Hi"}, message_id="m")
        assert (sent, sent.replayed, sent.violated) == (1, replayed, None)
    other = await refused(ada.channels.send(channel, who["ada"], None, message_id="m"))
    assert other.code == "idempotency_key_reused"
    assert await ada.channels.send(channel, who["ada"], None, performative="query") == 2
    given = await bo.channels.receive(channel, who["bo"])
    assert [one["body"] for one in given["data"]] == [{"text": "Hi"}, None]
    assert (await bo.channels.receive(channel, who["bo"])) == {
        "lease_token": None, "lease_until": None, "attempt": None, "data": [],
    }  # fmt: skip
    assert await bo.channels.ack(channel, who["bo"], given["lease_token"], 1)
    assert not await bo.channels.ack(channel, who["bo"], given["lease_token"], 1)
    assert await bo.channels.nack(channel, who["bo"], given["lease_token"], 2, "busy") == "retry"
    assert (await refused(bo.channels.ack(channel, who["bo"], given["lease_token"], 2))).code == "invalid_state"
    assert (await bo.channels.receive(channel, who["bo"]))["attempt"] == 2
    assert [one["sender"] for one in await bo.channels.history(channel, after=1)] == ["ada"]
    assert (await refused(bo.channels.close(channel))).code == "forbidden"
    await ada.channels.close(channel, "done")
    found = await bo.channels.get(channel)
    assert (found["status"], found["close_reason"], found["participants"][1]["cursor_seq"]) == ("closed", "done", 1)


async def test_the_idempotency_key_names_a_message_that_has_no_name(
    ada: Client, pair: tuple[Person, Person], api: str
) -> None:
    made = await ada.channels.open("desk", both(pair))
    path = f"{api}/api/v1/channels/{made['channel_id']}/messages"
    body = {"participant_id": made["participants"]["ada"], "body": 1}
    async with aiohttp.ClientSession(headers=pair[0].headers | {"Idempotency-Key": "k"}) as http:
        for status, replayed in ((201, None), (200, "true")):
            async with http.post(path, json=body) as answer:
                assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (status, replayed)
                assert (await answer.json())["message_id"] == "k"


async def test_what_breaks_an_agreement_is_refused_and_stays_written(
    ada: Client, bo: Client, pair: tuple[Person, Person]
) -> None:
    agreement = await agreed(ada, bo, pair)
    seats = both(pair, party="does")
    seats[0]["party"] = "asks"
    made = await ada.channels.open("refunds", seats, agreement_id=agreement)
    channel, who = made["channel_id"], made["participants"]
    assert await ada.channels.send(channel, who["ada"], {"refund": 5}, performative="request") == 1
    broken = await refused(ada.channels.send(channel, who["ada"], {"refund": 0}, performative="request"))
    assert (broken.status, broken.code) == (422, "agreement_violated")
    assert (broken.problem["rule"], broken.problem["path"], broken.problem["suspended"]) == ("schema", "/refund", False)
    broken = await refused(bo.channels.send(channel, who["bo"], {}, performative="request"))
    assert (broken.problem["rule"], broken.problem["suspended"]) == ("sender", True)
    found = await bo.agreements.get(agreement)
    assert (found["status"], [one["rule"] for one in found["latest_violations"]]) == ("suspended", ["sender", "schema"])
    assert (await refused(ada.channels.send(channel, who["ada"], {}, performative="request"))).code == "invalid_state"
    assert len(await ada.channels.history(channel)) == 1


async def test_an_answer_that_is_late_is_sent_and_says_so(
    ada: Client, bo: Client, pair: tuple[Person, Person], api: str
) -> None:
    agreement = await agreed(ada, bo, pair, **LATE)
    seats = both(pair, party="does")
    seats[0]["party"] = "asks"
    made = await ada.channels.open("refunds", seats, agreement_id=agreement)
    channel, who = made["channel_id"], made["participants"]
    await ada.channels.send(channel, who["ada"], {"refund": 5}, performative="request")
    body = {"participant_id": who["bo"], "performative": "agree", "body": {}, "in_reply_to": 1}
    async with (
        aiohttp.ClientSession(headers=pair[1].headers) as http,
        http.post(f"{api}/api/v1/channels/{channel}/messages", json=body) as answer,
    ):
        sent = await answer.json()
    assert (answer.status, sent["seq"]) == (201, 2)
    assert (sent["violated"]["rule"], sent["violated"]["violations"]) == ("latency", 1)
    assert [one["rule"] for one in (await bo.agreements.get(agreement))["latest_violations"]] == ["latency"]
    asked = await ada.channels.send(channel, who["ada"], {"refund": 5}, performative="request")
    late = await bo.channels.send(channel, who["bo"], {}, performative="agree", in_reply_to=asked)
    assert (late, late.violated["rule"], late.violated["violations"]) == (4, "latency", 2)


async def test_parties_counter_amend_withdraw_suspend_resume_and_terminate(
    ada: Client, bo: Client, pair: tuple[Person, Person], people: People, api: str
) -> None:
    parties = {"asks": str(pair[0].identity.user_id), "does": str(pair[1].identity.user_id)}
    made = await ada.agreements.propose("refunds", parties, "asks", TERMS)
    agreement = made["agreement_id"]
    countered = await bo.agreements.respond(agreement, "does", made["hash"], "counter", TERMS | {"price": {}})
    stale = await refused(ada.agreements.respond(agreement, "asks", made["hash"], "accept"))
    assert (stale.code, stale.problem["hash"]) == ("invalid_state", countered["hash"])
    assert (await ada.agreements.respond(agreement, "asks", countered["hash"], "accept"))["version"] == 2
    assert (await bo.agreements.amend(agreement, "does", TERMS))["version"] == 3
    assert (await bo.agreements.withdraw(agreement, "does"))["status"] == "active"
    assert (await bo.agreements.suspend(agreement, "does", "rest"))["status"] == "suspended"
    assert (await refused(ada.agreements.resume(agreement, "asks"))).code == "forbidden"
    assert (await bo.agreements.resume(agreement, "does"))["status"] == "active"
    assert (await refused(ada.agreements.amend(agreement, "asks", {"acts": {}, "odd": 1}))).code == "invalid_definition"
    assert (await ada.agreements.terminate(agreement, "asks"))["status"] == "terminated"
    assert [row["status"] for row in await ada.agreements.list()] == ["terminated"]
    async with Client(api, (await people.user()).key) as stranger:
        assert await stranger.agreements.list() == []
        assert (await refused(stranger.agreements.get(agreement))).status == 404
        assert (await refused(stranger.agreements.terminate(agreement))).status == 404


async def test_strangers_hear_nothing(ada: Client, pair: tuple[Person, Person], people: People, api: str) -> None:
    made = await ada.channels.open("desk", both(pair))
    channel, seat = made["channel_id"], made["participants"]["ada"]
    for who in (await people.user(), await people.user("admin", await people.tenant())):
        async with Client(api, who.key) as stranger:
            assert await stranger.channels.list() == []
            calls = stranger.channels
            for call in (
                calls.get(channel), calls.history(channel), calls.send(channel, seat, 1), calls.receive(channel, seat),
                calls.ack(channel, seat, str(uuid.uuid4()), 1), calls.nack(channel, seat, str(uuid.uuid4()), 1),
                calls.floor(channel, seat), calls.close(channel), anext(calls.follow(channel)),
            ):  # fmt: skip
                assert (await refused(call)).status == 404


async def watch(api: str, who: Person, channel: str, breaks: int) -> list[tuple[int, str]]:
    """What a viewer sees until the channel is closed, who loses the stream after every so many messages."""
    seen: list[tuple[int, str]] = []
    last = ""
    async with aiohttp.ClientSession(api) as http, asyncio.timeout(20):
        while True:
            headers = who.headers | ({"Last-Event-ID": last} if last else {})
            async with http.get(f"/api/v1/channels/{channel}/events", headers=headers) as answer:
                assert answer.status == 200
                many = 0
                while block := await answer.content.readuntil(b"\n\n"):
                    event = dict(line.split(": ", 1) for line in block.decode().strip().split("\n") if ": " in line)
                    if event.get("event") == "end":
                        return seen
                    if event.get("event") == "message":
                        last, data = event["id"], orjson.loads(event["data"])
                        assert int(last) == data["seq"]
                        seen.append((data["seq"], data["sender"]))
                        many += 1
                        if many == breaks:
                            break


async def test_three_viewers_who_lose_their_streams_see_the_same_order(
    ada: Client, bo: Client, pair: tuple[Person, Person], people: People, api: str
) -> None:
    made = await ada.channels.open("desk", both(pair))
    channel, who = made["channel_id"], made["participants"]

    async def speak(client: Client, name: str) -> None:
        for n in range(15):
            await client.channels.send(channel, who[name], n)
            await asyncio.sleep(0.03)  # so that streams are open in between

    admin = await people.user("admin", scopes=["read", "admin"])
    viewers = [asyncio.create_task(watch(api, one, channel, n)) for n, one in enumerate((*pair, admin), 3)]
    followed = asyncio.create_task(collect(ada, channel))
    await asyncio.gather(speak(ada, "ada"), speak(bo, "bo"))
    await ada.channels.close(channel)
    seen = await asyncio.gather(*viewers)
    assert [seq for seq, _ in seen[0]] == list(range(1, 31))
    assert seen[0] == seen[1] == seen[2] == await followed


async def collect(client: Client, channel: str) -> list[tuple[int, str]]:
    return [(one["seq"], one["sender"]) async for one in client.channels.follow(channel)]


async def test_a_live_view_tells_who_has_the_floor(ada: Client, pair: tuple[Person, Person], api: str) -> None:
    made = await ada.channels.open("desk", both(pair), limits={"floor": "round_robin"})
    channel, who = made["channel_id"], made["participants"]
    events = ada.stream(f"/channels/{channel}/events")
    assert (await anext(events))[1]["floor_holder"] == who["ada"]
    await ada.channels.send(channel, who["ada"], "Yours.")
    assert (await anext(events))[1]["body"] == "Yours."
    assert (await anext(events))[1]["floor_holder"] == who["bo"]
    assert (await refused(ada.channels.send(channel, who["ada"], "Again."))).code == "invalid_state"
    assert (await ada.channels.floor(channel, who["ada"]))["floor_holder"] == who["bo"]
    await ada.channels.close(channel, "over")
    name, last = await anext(events)
    assert (name, last["close_reason"], last["floor_holder"]) == ("end", "over", None)
    wrong = pair[0].headers | {"Last-Event-ID": "odd"}
    path = f"{api}/api/v1/channels/{channel}/events"
    async with aiohttp.ClientSession(headers=wrong) as http, http.get(path) as answer:
        assert (answer.status, (await answer.json())["param"]) == (400, "Last-Event-ID")


async def test_a_revoked_key_hears_nothing_more_of_a_channel_within_a_second(
    ada: Client, bo: Client, pair: tuple[Person, Person], api: str, operator: asyncpg.Connection
) -> None:
    made = await ada.channels.open("desk", both(pair))
    channel, who = made["channel_id"], made["participants"]
    async with (
        aiohttp.ClientSession(api) as http,
        following(http, pair[0], f"/api/v1/channels/{channel}/events") as events,
    ):
        assert (await anext(events))[0] == "channel"
        await operator.execute("select revoke_api_key($1)", pair[0].key_id)
        async with asyncio.timeout(1):
            told = [event async for event in events]
        assert [(name, data["code"]) for name, data in told] == [("error", "authentication_failed")]
        await bo.channels.send(channel, who["bo"], "Only for us.")


@pytest.fixture
def vs(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, database_name: str, tmp_path: Path) -> Cli:
    return shell(monkeypatch, cluster, database_name, tmp_path)


async def test_commands_agree_speak_read_and_close(vs: Cli, pair: tuple[Person, Person], tmp_path: Path) -> None:
    file = tmp_path / "refunds.json"
    file.write_text(json.dumps(TERMS | LATE))
    one, two = pair
    made = await vs.json(
        "agreements", "propose", str(file), "--party", f"asks={one.email}", "--party", f"does={two.email}"
    )
    agreement, answer = made["agreement_id"], ("--party", "does", "--hash", made["hash"])
    assert "active" in (await vs("agreements", "respond", agreement, "accept", *answer)).stdout
    assert agreement in [row["id"] for row in await vs.json("agreements", "list")]
    seats = [
        {"name": name, "user_id": str(who.identity.user_id), "party": party}
        for name, who, party in (("a", one, "asks"), ("b", two, "does"))
    ]
    options = [part for seat in seats for part in ("--participant", json.dumps(seat))]
    opened = await vs.json("channels", "open", "desk", *options, "--agreement", agreement, "--user", one.email)
    channel = opened["channel_id"]
    assert channel in [row["id"] for row in await vs.json("channels", "list")]
    ask = ("--performative", "request")
    assert "message 1" in (await vs("channels", "send", channel, "a", '{"refund": 3}', *ask)).stdout
    broken = await vs.refused("channels", "send", channel, "a", '{"refund": 0}', *ask)
    assert (broken.name, broken.detail["path"]) == ("agreement_violated", "/refund")
    shown = (await vs("agreements", "show", agreement)).stdout
    assert "1 violations" in shown
    assert "/refund" in shown
    [given] = await vs.json("channels", "receive", channel, "b")
    lease = (channel, "b", given["lease_token"], "1")
    assert "given out again" in (await vs("channels", "nack", *lease, "--error", "busy")).stdout
    [given] = await vs.json("channels", "receive", channel, "b")
    assert "Acknowledged" in (await vs("channels", "ack", channel, "b", given["lease_token"], "1")).stdout
    assert '{"refund":3}' in (await vs("channels", "history", channel)).stdout
    assert "group, open, 1 messages" in (await vs("channels", "show", channel)).stdout
    late = await vs("channels", "send", channel, "b", "{}", "--performative", "agree", "--in-reply-to", "1")
    assert "message 2, a violation: an answer comes within 1 ms." in late.stdout
    assert (await vs.refused("channels", "floor", channel, "a")).name == "invalid_state"
    assert (await vs.refused("channels", "send", channel, "nobody", "1")).name == "not_found"
    assert "is closed" in (await vs("channels", "close", channel)).stdout
    amended = await vs.json("agreements", "amend", agreement, str(file), "--party", "does")
    assert (amended["version"], amended["status"]) == (2, "active")
    assert "active" in (await vs("agreements", "withdraw", agreement, "--party", "does")).stdout
    assert "suspended" in (await vs("agreements", "suspend", agreement)).stdout
    assert "active" in (await vs("agreements", "resume", agreement)).stdout
    assert "terminated" in (await vs("agreements", "terminate", agreement, "--reason", "over")).stdout


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("[]", "wrong_type", "Write an object with acts, limits, sla, data, price and gate."),
        ("acts: [", "document_syntax", "Line 2"),
    ],
)
async def test_a_file_that_is_no_agreement_is_refused_as_one(
    vs: Cli, tmp_path: Path, text: str, code: str, message: str
) -> None:
    file = tmp_path / "refunds.yaml"
    file.write_text(text)
    refused = await vs.refused("agreements", "propose", str(file), "--party", "asks=ada")
    [problem] = refused.detail["problems"]
    assert (refused.name, refused.message, problem["code"]) == (
        "invalid_definition",
        "the agreement does not validate",
        code,
    )
    assert problem["message"].startswith(message)
