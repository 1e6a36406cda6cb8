"""Channels: one order for all, nothing twice, nothing lost, one worker at a time, one floor."""

import asyncio
import uuid
from datetime import timedelta

import asyncpg
import pytest

from tests.orchestration.hall import Hall, VanillaError

SHORT = timedelta(seconds=10)


async def test_messages_count_from_one_for_everybody(talk: Hall) -> None:
    channel = await talk.open("a", "b", "c")
    assert [await talk.say(channel, sender) for sender in "abcab"] == [1, 2, 3, 4, 5]
    assert [row["seq"] for row in await talk.receive(channel, "a")] == [2, 3, 5]  # never its own


async def test_a_message_that_is_sent_again_is_the_same_message(talk: Hall) -> None:
    channel = await talk.open("a", "b")
    first = await talk.send(channel, "a", body={"n": 1}, message_id="x")
    again = await talk.send(channel, "a", body={"n": 1}, message_id="x")
    of_another = await talk.send(channel, "b", body={"n": 1}, message_id="x")
    assert (first, again) == ({"seq": 1, "replayed": False}, {"seq": 1, "replayed": True})
    assert of_another == {"seq": 2, "replayed": False}
    await talk.ask("channel_close", channel.id)
    assert (await talk.send(channel, "a", body={"n": 1}, message_id="x"))["replayed"]
    assert await talk.seqs(channel) == [1, 2]


@pytest.mark.parametrize("change", [{"body": {"n": 2}}, {"performative": "request"}, {"in_reply_to": 1}])
async def test_a_message_id_is_not_used_for_another_message(talk: Hall, change: dict[str, object]) -> None:
    channel = await talk.open("a", "b")
    await talk.say(channel, "b")
    same: dict[str, object] = {"performative": "inform", "body": {"n": 1}, "message_id": "x"}
    await talk.send(channel, "a", **same)  # type: ignore[arg-type]
    reply = change.pop("in_reply_to", None)
    more = {"p_in_reply_to": reply} if reply else {}
    with pytest.raises(VanillaError, match="used for another message") as refused:
        await talk.send(channel, "a", **same | change | more)  # type: ignore[arg-type]
    assert refused.value.code.name == "idempotency_key_reused"
    assert await talk.seqs(channel) == [1, 2]
    assert await talk.send(channel, "a", **same) == {"seq": 2, "replayed": True}  # type: ignore[arg-type]
    assert await talk.say(channel, "b") == 3


async def test_two_that_send_the_same_at_once_write_it_once(talk: Hall, clocked_url: str) -> None:
    channel = await talk.open("a", "b")
    send = "select channel_send($1, $2, 'inform', '{}', $3)"
    others = [await asyncpg.connect(clocked_url) for _ in range(6)]
    for n in range(20):
        await asyncio.gather(*[c.fetchval(send, channel.id, channel.of["a"], f"same {n}") for c in others])
    for connection in others:
        await connection.close()
    assert await talk.seqs(channel) == list(range(1, 21))


async def test_one_worker_of_a_participant_has_the_lease(talk: Hall) -> None:
    channel = await talk.open("a", "b", "c")
    await talk.say(channel, "a")
    first = await talk.receive(channel, "b")
    assert [len(first), len(await talk.receive(channel, "b")), len(await talk.receive(channel, "c"))] == [1, 0, 1]
    assert await talk.ack(channel, "b", first[0]["lease_token"], 1)
    assert await talk.receive(channel, "b") == []
    assert (await talk.participant(channel, "b"))["lease_token"] is None


async def test_a_lease_that_has_ended_acknowledges_nothing(talk: Hall) -> None:
    channel = await talk.open("a", "b")
    await talk.say(channel, "a")
    token = (await talk.receive(channel, "b", lease=SHORT))[0]["lease_token"]
    await talk.later(seconds=10)
    for given in ([2], []):  # before another has it, and after
        with pytest.raises(VanillaError, match="lease has ended"):
            await talk.ack(channel, "b", token, 1)
        with pytest.raises(VanillaError, match="lease has ended"):
            await talk.nack(channel, "b", token, 1)
        assert [row["attempt"] for row in await talk.receive(channel, "b")] == given
    for wrong in (uuid.uuid4(), None):
        with pytest.raises(VanillaError, match="lease has ended"):
            await talk.ack(channel, "b", wrong, 1)  # type: ignore[arg-type]
    assert (await talk.participant(channel, "b"))["cursor_seq"] == 0


async def test_messages_are_acknowledged_one_by_one_under_the_same_lease_and_never_back(talk: Hall) -> None:
    channel = await talk.open("a", "b")
    for _ in range(3):
        await talk.say(channel, "a")
    token = (await talk.receive(channel, "b"))[0]["lease_token"]
    assert await talk.ack(channel, "b", token, 2)
    assert not await talk.ack(channel, "b", token, 1)
    assert (await talk.participant(channel, "b"))["cursor_seq"] == 2
    with pytest.raises(VanillaError, match="not given under the lease"):
        await talk.ack(channel, "b", token, 4)
    assert await talk.ack(channel, "b", token, 3)
    with pytest.raises(VanillaError, match="lease has ended"):
        await talk.ack(channel, "b", token, 3)


async def test_an_acknowledgement_is_undone_with_its_effect(talk: Hall) -> None:
    channel = await talk.open("a", "b")
    await talk.say(channel, "a")
    token = (await talk.receive(channel, "b"))[0]["lease_token"]
    transaction = talk.connection.transaction()
    await transaction.start()
    assert await talk.ack(channel, "b", token, 1)
    await transaction.rollback()
    assert (await talk.participant(channel, "b"))["cursor_seq"] == 0
    assert await talk.ack(channel, "b", token, 1)


async def test_what_keeps_failing_becomes_a_dead_letter_and_the_next_is_given(talk: Hall) -> None:
    channel = await talk.open("a", "b", p_limits={"max_attempts": 3})
    await talk.say(channel, "a")
    await talk.say(channel, "a")
    outcomes = []
    for attempt in (1, 2, 3):
        rows = await talk.receive(channel, "b")
        assert [row["seq"] for row in rows] == ([1, 2] if attempt == 1 else [1])  # one at a time after a failure
        assert rows[0]["attempt"] == attempt
        outcomes.append(await talk.nack(channel, "b", rows[0]["lease_token"], 1))
    assert outcomes == ["retry", "retry", "dead"]
    letter = await talk.connection.fetchrow("select * from channel_dead_letters where channel_id = $1", channel.id)
    assert (letter["seq"], letter["attempts"], letter["error"]) == (1, 3, "no")
    rows = await talk.receive(channel, "b")
    assert [(row["seq"], row["attempt"]) for row in rows] == [(2, 1)]


async def test_a_worker_that_dies_with_a_message_each_time_is_a_failure_too(talk: Hall) -> None:
    channel = await talk.open("a", "b", p_limits={"max_attempts": 2})
    await talk.say(channel, "a")
    for _ in range(2):
        assert len(await talk.receive(channel, "b", lease=SHORT)) == 1
        await talk.later(seconds=11)
    assert await talk.receive(channel, "b") == []
    assert (await talk.participant(channel, "b"))["cursor_seq"] == 1
    letters = await talk.connection.fetch("select error from channel_dead_letters where channel_id = $1", channel.id)
    assert [letter["error"] for letter in letters] == ["its lease ran out"]


async def test_another_attempt_waits_as_long_as_asked(talk: Hall) -> None:
    channel = await talk.open("a", "b")
    await talk.say(channel, "a")
    token = (await talk.receive(channel, "b"))[0]["lease_token"]
    with pytest.raises(VanillaError, match="first message that is not acknowledged"):
        await talk.nack(channel, "b", token, 2)
    assert await talk.nack(channel, "b", token, 1, p_retry_after=SHORT) == "retry"
    assert await talk.receive(channel, "b") == []
    await talk.later(seconds=10)
    assert [row["attempt"] for row in await talk.receive(channel, "b")] == [2]


async def test_a_cursor_goes_past_the_reader_s_own_messages(talk: Hall) -> None:
    channel = await talk.open("a", "b")
    for _ in range(3):
        await talk.say(channel, "a")
    assert await talk.receive(channel, "a") == []
    assert (await talk.participant(channel, "a"))["cursor_seq"] == 3
    await talk.say(channel, "a")
    await talk.say(channel, "b")
    assert [row["seq"] for row in await talk.receive(channel, "a")] == [5]


async def test_a_closed_channel_takes_nothing_and_can_be_read_to_its_end(talk: Hall) -> None:
    channel = await talk.open("a", "b")
    await talk.say(channel, "a")
    assert await talk.ask("channel_close", channel.id, "done")
    assert not await talk.ask("channel_close", channel.id)
    with pytest.raises(VanillaError, match="channel is closed"):
        await talk.say(channel, "a")
    row = (await talk.receive(channel, "b"))[0]
    assert await talk.ack(channel, "b", row["lease_token"], 1)


async def test_a_channel_has_at_most_max_messages(talk: Hall) -> None:
    channel = await talk.open("a", "b", p_limits={"max_messages": 2})
    assert [await talk.say(channel, sender) for sender in "ab"] == [1, 2]
    with pytest.raises(VanillaError, match="channel is full"):
        await talk.say(channel, "a")


async def test_the_floor_goes_round(talk: Hall) -> None:
    channel = await talk.open("a", "b", "c", p_limits={"floor": "round_robin"})
    for sender in "abcab":
        for other in set("abc") - {sender}:
            with pytest.raises(VanillaError, match="another participant has the floor"):
                await talk.say(channel, other)
        await talk.say(channel, sender)
    await talk.ask("channel_floor", channel.id, channel.of["c"], "pass")
    await talk.say(channel, "a")
    with pytest.raises(VanillaError, match="not for this participant"):
        await talk.ask("channel_floor", channel.id, channel.of["a"], "pass")
    await talk.later(seconds=301)  # b is gone
    await talk.ask("channel_floor", channel.id, channel.of["a"], "pass")
    assert (await talk.channel(channel))["floor_holder"] == channel.of["c"]


async def test_a_manager_gives_the_floor_and_has_it_again_afterwards(talk: Hall) -> None:
    participants = [{"name": "a"}, {"name": "m", "manages": True}, {"name": "c"}]
    channel = await talk.open_with(participants, p_limits={"floor": "manager"})
    await talk.say(channel, "m")
    with pytest.raises(VanillaError, match="another participant has the floor"):
        await talk.say(channel, "c")
    await talk.ask("channel_floor", channel.id, channel.of["m"], "give", channel.of["c"])
    with pytest.raises(VanillaError, match="another participant has the floor"):
        await talk.say(channel, "m")
    await talk.say(channel, "c")
    await talk.ask("channel_floor", channel.id, channel.of["m"], "give", channel.of["a"])
    await talk.ask("channel_floor", channel.id, channel.of["m"], "take")
    await talk.say(channel, "m")
    for name, action in (("a", "give"), ("a", "take"), ("a", "bid")):
        with pytest.raises(VanillaError, match="not for this participant"):
            await talk.ask("channel_floor", channel.id, channel.of[name], action, channel.of["a"], 1)
    with pytest.raises(VanillaError, match="no such participant"):
        await talk.ask("channel_floor", channel.id, channel.of["m"], "give", uuid.uuid4())


async def test_the_highest_bid_has_the_floor_next_and_is_used_up(talk: Hall) -> None:
    channel = await talk.open("a", "b", "c", p_limits={"floor": "bid"})
    with pytest.raises(VanillaError, match="another participant has the floor"):
        await talk.say(channel, "a")
    for name, bid in (("a", 1), ("b", 2), ("c", 3), ("a", 3)):
        await talk.ask("channel_floor", channel.id, channel.of[name], "bid", None, bid)
    for name in ("a", "a", "c", "b"):  # the free floor; of equal bids the earlier place
        await talk.say(channel, name)
    with pytest.raises(VanillaError, match="another participant has the floor"):
        await talk.say(channel, "b")


async def test_a_message_tells_ids_and_never_what_it_says(talk: Hall, clocked_url: str) -> None:
    channel = await talk.open("a", "b")
    told: list[str] = []
    listener = await asyncpg.connect(clocked_url)
    await listener.add_listener("vanilla_channels", lambda *heard: told.append(heard[-1]))
    await talk.say(channel, "a", body={"word": "secret"})
    async with asyncio.timeout(10):
        while not told:
            await asyncio.sleep(0.01)
    await listener.close()
    assert told == [str(channel.id)]


@pytest.mark.parametrize(
    ("kind", "participants", "limits"),
    [
        ("direct", [{"name": "a"}, {"name": "b"}, {"name": "c"}], {}),
        ("group", [{"name": "a"}], {}),
        ("group", [{"name": "a"}, {"name": "a"}], {}),
        ("group", [{"name": "a"}, {"name": ""}], {}),
        ("group", [{"name": "a"}, "b"], {}),
        ("group", [{"name": "a"}, {"name": "b", "odd": 1}], {}),
        ("group", [{"name": "a"}, {"name": "b", "kind": "odd"}], {}),
        ("group", [{"name": "a"}, {"name": "b", "reads": "odd"}], {}),
        ("group", [{"name": "a"}, {"name": "b", "party": "nobody"}], {}),
        ("group", [{"name": "a"}, {"name": "b", "manages": True}], {}),
        ("group", [{"name": "a"}, {"name": "b", "user_id": "odd"}], {}),
        ("group", [{"name": "a"}, {"name": "b", "user_id": str(uuid.uuid4())}], {}),
        ("odd", [{"name": "a"}, {"name": "b"}], {}),
        ("topic", [{"name": "a"}, {"name": "b"}], {"floor": "bid"}),
        ("group", [{"name": "a"}, {"name": "b"}], {"floor": "odd"}),
        ("group", [{"name": "a"}, {"name": "b"}], {"floor": "manager"}),
        ("group", [{"name": "a"}, {"name": "b"}], {"odd": 1}),
        ("group", [{"name": "a"}, {"name": "b"}], {"max_messages": 0}),
        ("group", [{"name": "a"}, {"name": "b"}], {"max_attempts": 101}),
        ("group", [{"name": "a"}, {"name": "b"}], {"floor_s": "1"}),
    ],
)
async def test_a_channel_that_makes_no_sense_is_refused(
    talk: Hall, kind: str, participants: list[dict[str, object]], limits: dict[str, object]
) -> None:
    with pytest.raises(VanillaError):
        await talk.open_with(participants, kind, p_limits=limits)


@pytest.mark.parametrize(
    ("performative", "body", "message_id", "more"),
    [
        ("odd", {}, "x", {}),
        ("inform", {}, "x" * 201, {}),
        ("inform", {"x": "y" * 70000}, "x", {}),
        ("inform", {}, "x", {"p_in_reply_to": 1}),
        ("inform", {}, "x", {"p_in_reply_to": -1}),
    ],
)
async def test_a_message_that_makes_no_sense_is_refused(
    talk: Hall, performative: str, body: object, message_id: str, more: dict[str, object]
) -> None:
    channel = await talk.open("a", "b")
    with pytest.raises(VanillaError):
        await talk.send(channel, "a", performative, body, message_id, **more)
    assert await talk.seqs(channel) == []


async def test_only_a_participant_of_the_channel_speaks_in_it(talk: Hall) -> None:
    channel, other = await talk.open("a", "b"), await talk.open("a", "b")
    channel.of["x"] = other.of["a"]
    with pytest.raises(VanillaError, match="no such participant") as refused:
        await talk.say(channel, "x")
    assert refused.value.code.name == "not_found"
    assert (await talk.seqs(channel), await talk.seqs(other)) == ([], [])
    assert (await talk.say(channel, "a"), await talk.say(other, "a")) == (1, 1)


async def test_what_all_have_read_is_deleted_when_it_is_old(talk: Hall) -> None:
    publisher = {"name": "p", "reads": False}
    channel = await talk.open_with([publisher, {"name": "b"}, {"name": "c"}], "topic")
    for _ in range(3):
        await talk.say(channel, "p")
    for reader, until in (("b", 2), ("c", 3)):
        token = (await talk.receive(channel, reader))[0]["lease_token"]
        await talk.ack(channel, reader, token, until)
    await talk.ask("vanilla.job_channels", 1000)
    assert await talk.seqs(channel) == [1, 2, 3]
    await talk.later(days=91)
    await talk.ask("vanilla.job_channels", 1000)
    assert await talk.seqs(channel) == [3]
    assert await talk.say(channel, "p") == 4
    await talk.ask("channel_close", channel.id)
    await talk.later(days=91)
    await talk.ask("vanilla.job_channels", 1000)
    assert await talk.channel(channel) is None


async def test_an_erased_person_leaves_no_word_and_no_name(talk: Hall) -> None:
    alone = await talk.open("a", "b")
    shared = await talk.open("ada", "bo", "cy")
    of_bo = await talk.ask(
        "channel_open", "bo's", "group", [{"name": "x"}, {"name": "ada", "user_id": str(talk.users["ada"])}],
        p_user_id=talk.users["bo"],
    )  # fmt: skip
    await talk.say(alone, "a", body={"word": "hers"})
    await talk.say(shared, "ada", body={"word": "hers"}, message_id="hers")
    await talk.say(shared, "bo", body={"word": "his"})
    await talk.ask("erase_user", talk.users["ada"], "asked", p_tenant_id=talk.tenant)
    assert await talk.channel(alone) is None
    history = await talk.connection.fetch("select * from channel_history($1)", shared.id)
    assert [(row["sender"], row["body"], row["message_id"]) for row in history] == [
        ("erased-0", None, "erased-1"),
        ("bo", {"word": "his"}, "m3"),
    ]
    assert (await talk.channel(shared))["status"] == "closed"
    left = await talk.connection.fetchval(
        "select status from communication_channels where id = $1", uuid.UUID(of_bo["channel_id"])
    )
    assert left == "open"
