"""Pages of channels and agreements: who sees them, a channel as it goes on, what broke an agreement."""

import re
import uuid
from typing import Any

import pytest

from tests.conftest import People, Person
from tests.console.console_support import look, signed_in, submit
from vanilla_saas.orchestration.channel_pages import in_words, text_of

FRAGMENT = {"hx-request": "true"}
HOSTILE = "</p><script>alert(1)</script>"
TERMS = {"acts": {"request": {"senders": ["asks"], "schema": {"type": "object", "required": ["refund"]}}}}
FIGURES = {
    "price": {"max_tokens_per_task": 20000},
    "gate": {"kind": "regex", "acts": ["request"], "pattern": "<b>", "field": "why"},
}


async def channel_of(people: People, *whose: Person, **more: object) -> tuple[uuid.UUID, list[uuid.UUID]]:
    """A channel of the first one's with an agent for each, and its participants."""
    seats = [{"name": f"agent-{n}", "user_id": str(one.identity.user_id)} for n, one in enumerate(whose)]
    for seat, party in zip(seats, ("asks", "does"), strict=False):
        seat |= {"party": party} if "p_agreement_id" in more else {}
    named = "".join(f", {name} => ${n}" for n, name in enumerate(more, 3))
    made = await people.operator.fetchval(
        f"select channel_open('desk', 'group', $1, p_user_id => $2{named})",
        seats, whose[0].identity.user_id, *more.values(),
    )  # fmt: skip
    return uuid.UUID(made["channel_id"]), [uuid.UUID(made["participants"][seat["name"]]) for seat in seats]


async def say(people: People, channel: uuid.UUID, speaker: uuid.UUID, body: object, act: str = "inform") -> None:
    send = "select channel_send($1, $2, $3, $4, $5)"
    await people.operator.fetchval(send, channel, speaker, act, body, str(uuid.uuid4()))


async def test_a_channel_is_read_by_those_who_take_part_and_goes_on_as_they_look(api: str, people: People) -> None:
    ada, bo, stranger = await people.user(), await people.user(), await people.user()
    channel, (first, second) = await channel_of(people, ada, bo, p_limits={"floor": "round_robin"})
    await say(people, channel, first, {"text": HOSTILE})
    async with signed_in(api, people, stranger) as http:
        assert str(channel) not in (await look(http, "/channels"))[1].text
        for path in (f"/channels/{channel}", f"/channels/{channel}/live"):
            assert (await look(http, path))[0] == 404
        assert (await submit(http, f"/channels/{channel}/close", FRAGMENT))[0] == 404
    async with signed_in(api, people, bo) as http:
        assert f"/channels/{channel}" in (await look(http, "/channels"))[1].text
        _, page, _ = await look(http, f"/channels/{channel}")
        assert HOSTILE not in page.text
        assert "&lt;script&gt;" in page.text
        assert "the floor: agent-1" in page.text
        assert "hx-confirm" not in page.text
        again = re.search(r'hx-get="(/channels/[^"]+)"', page.text)
        assert again is not None
        assert (await look(http, again[1]))[0] == 204
        await say(people, channel, second, {"text": "Mine now."})
        status, page, _ = await look(http, again[1])
        assert (status, "Mine now." in page.text, "the floor: agent-0" in page.text) == (200, True, True)
        assert (await submit(http, f"/channels/{channel}/close", FRAGMENT))[0] == 403
    async with signed_in(api, people, ada) as http:
        await submit(http, f"/channels/{channel}/close", FRAGMENT, reason="agreed")
        _, page, _ = await look(http, f"/channels/{channel}")
        assert "closed: agreed" in page.text
        assert 'id="poll"' not in page.text


async def test_earlier_messages_are_pages_of_their_own(api: str, people: People) -> None:
    ada = await people.user()
    channel, (speaker, _) = await channel_of(people, ada, ada)
    for n in range(1, 106):
        await say(people, channel, speaker, n)
    async with signed_in(api, people, ada) as http:
        _, page, _ = await look(http, f"/channels/{channel}")
        assert ('id="message-5"' in page.text, 'id="message-6"' in page.text) == (False, True)
        _, page, _ = await look(http, f"/channels/{channel}?after=0")
        assert ('id="message-1"' in page.text, 'id="message-101"' in page.text) == (True, False)
        assert f"/channels/{channel}?after=100" in page.text
        assert 'id="poll"' not in page.text


async def test_an_agreement_shows_its_state_and_what_broke_it(api: str, people: People) -> None:
    ada, bo, stranger = await people.user(), await people.user(), await people.user()
    parties = {"asks": str(ada.identity.user_id), "does": str(bo.identity.user_id)}
    made = await people.operator.fetchval(
        "select agreement_propose('refunds', $1, 'asks', $2, $3)", parties, TERMS | FIGURES, ada.identity.user_id
    )
    agreement = uuid.UUID(made["agreement_id"])
    accept = "select agreement_respond($1, 'does', $2, 'accept')"
    await people.operator.fetchval(accept, agreement, bytes.fromhex(made["hash"]))
    channel, (first, _) = await channel_of(people, ada, bo, p_agreement_id=agreement)
    await say(people, channel, first, {}, "request")
    async with signed_in(api, people, bo) as http:
        _, page, _ = await look(http, "/agreements")
        assert f"/agreements/{agreement}" in page.text
        _, page, _ = await look(http, f"/agreements/{agreement}")
        for told in ("active", "schema", "required", f"/channels/{channel}", made["hash"], "accepted by asks, does"):
            assert told in page.text, told
        assert "<dd>a bid asks for 20,000 tokens at most</dd>" in page.text
        assert "<dd>the field why of request matches &lt;b&gt;</dd>" in page.text
    async with signed_in(api, people, stranger) as http:
        assert str(agreement) not in (await look(http, "/agreements"))[1].text
        assert (await look(http, f"/agreements/{agreement}"))[0] == 404


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (TERMS, []),
        ({"price": {}, "sla": {"max_attempts": 3}}, [("Attempts", "3 until a message is a dead letter")]),
        (
            {"price": {"max_tokens_per_task": 20000}, "sla": {"max_latency_ms": 1500}, "data": {"retention_days": 30}},
            [
                ("Price", "a bid asks for 20,000 tokens at most"),
                ("Latency", "an answer after 1,500 ms is delivered, and a violation"),
                ("Kept", "30 days, once all have read"),
            ],
        ),
        (
            {"limits": {"max_messages": 5, "max_open_conversations": 2, "max_violations": 4}},
            [
                ("Messages", "5 at most in a channel"),
                ("Conversations", "2 open at most in a channel"),
                ("Suspended", "after 4 violations"),
            ],
        ),
        ({"data": {"redact": ["/a", "/b"]}}, [("Redacted", "/a, /b, once all have read and it is over")]),
        (
            {"gate": {"kind": "schema", "acts": ["inform", "agree"], "schema": {}}},
            [("Gate", "the body of inform, agree fits its schema")],
        ),
        ({"gate": {"kind": "regex", "acts": ["inform"], "pattern": "^a"}}, [("Gate", "the text of inform matches ^a")]),
        (
            {"gate": {"kind": "regex", "acts": ["inform"], "pattern": "^a", "field": "f"}},
            [("Gate", "the field f of inform matches ^a")],
        ),
        ({"gate": "of-before"}, [("Gate", "of-before, which nothing enforces")]),
    ],
)
def test_terms_are_said_in_words(terms: dict[str, Any], said: list[tuple[str, str]]) -> None:
    assert in_words(terms) == said


@pytest.mark.parametrize(
    ("body", "text"),
    [({"text": "Hi"}, "Hi"), ("Hi", "Hi"), ({"text": 1}, '{\n  "text": 1\n}'), ("x" * 5000, "x" * 4000 + "…")],
)
def test_a_message_is_shown_as_the_text_it_is(body: object, text: str) -> None:
    assert text_of(body) == text
