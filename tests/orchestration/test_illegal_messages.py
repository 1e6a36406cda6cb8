"""Random talk under an agreement: a model in Python says what is legal, and SQL refuses all else and nothing more."""

import random
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import jsonschema_rs
import pytest

from tests.conftest import LONG
from tests.orchestration.hall import Channel, Hall, VanillaError

ILLEGAL = 10_000 if LONG else 2_500
"""Messages that are refused before the test is content; the same number of legal ones pass meanwhile."""
PRICE = {
    "type": "object",
    "required": ["price_tokens"],
    "properties": {"price_tokens": {"type": "integer", "exclusiveMinimum": 0}},
}
ACTS: dict[str, Any] = {
    "cfp": {
        "senders": ["ada"],
        "replies": ["propose", "refuse"],
        "reply_within_s": 30,
        "schema": {
            "type": "object",
            "required": ["task"],
            "additionalProperties": False,
            "properties": {
                "task": {"type": "string", "minLength": 1, "maxLength": 5},
                "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True, "maxItems": 2},
            },
        },
    },
    "propose": {
        "senders": ["bo", "cy"],
        "replies": ["accept_proposal", "reject_proposal"],
        "reply_within_s": 60,
        "schema": PRICE,
    },
    "refuse": {"senders": ["bo", "cy"], "ends": False},
    "accept_proposal": {"senders": ["ada"], "replies": ["inform", "failure"], "schema": {"type": "null"}},
    "reject_proposal": {"senders": ["ada"], "ends": False, "schema": {"type": ["null", "string"]}},
    "inform": {"senders": ["bo", "cy"], "opens": True, "schema": {"oneOf": [PRICE, {"required": ["done"]}]}},
    "failure": {"schema": {"pattern": "^E[0-9]{2}$", "type": "string"}},
    "cancel": {"senders": ["ada"], "opens": True, "replies": ["cancel"]},
}
PERFORMATIVES = [*ACTS, "request", "query", "not_understood"]
BODIES: list[Any] = [
    {"task": "t"}, {"task": "t", "tags": ["x"]}, {"task": "t", "tags": ["x", "x"]}, {"task": ""}, {"task": "toolong"}, {"task": "t", "z": 1},
    {"price_tokens": 1}, {"price_tokens": 2.0}, {"price_tokens": 0}, {"price_tokens": "1"}, {"price_tokens": 1, "done": 1},
    {"price_tokens": 5}, {"price_tokens": 6}, {"price_tokens": 1e30}, {"done": True}, {"done": "well"}, {"done": "Well"}, {}, [], None, "", "E01", "E1", "e01", 3, True,
]  # fmt: skip
FITTING = {
    name: [b for b in BODIES if jsonschema_rs.is_valid(act.get("schema", True), b)] for name, act in ACTS.items()
}
OPEN = 4
MOST = 5
"""Tokens that a bid asks for at most."""
LATENCY = timedelta(seconds=20)
GATE = {"kind": "regex", "acts": ["inform"], "field": "done", "pattern": "^[a-z]+$"}
RULES = {"performative", "sender", "reply", "conversation", "deadline", "limit", "schema", "price", "gate", "latency"}


@dataclass
class Message:
    performative: str
    sender: str
    at: datetime
    root: int


@dataclass
class Model:
    """What was said and which conversations go on, by the rules and nothing of the database."""

    log: list[Message] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)

    def illegal(self, sender: str, performative: str, body: Any, reply: int | None, now: datetime) -> str | None:
        act = ACTS.get(performative)
        if act is None:
            return "performative"
        if sender not in act.get("senders", ("ada", "bo", "cy")):
            return "sender"
        if reply is None:
            if not act.get("opens", all(performative not in other.get("replies", ()) for other in ACTS.values())):
                return "reply"
        else:
            asked = self.log[reply - 1]
            if performative not in ACTS[asked.performative].get("replies", ()):
                return "reply"
            if asked.root in self.ended:
                return "conversation"
            within = ACTS[asked.performative].get("reply_within_s")
            if within is not None and now > asked.at + timedelta(seconds=within):
                return "deadline"
        if reply is None and not self.ends(act) and len(self.begun - self.ended) >= OPEN:
            return "limit"
        if not jsonschema_rs.is_valid(act.get("schema", True), body):
            return "schema"
        if performative == "propose" and body["price_tokens"] > MOST:
            return "price"
        if performative in GATE["acts"] and not (isinstance(body, dict) and body.get("done") == "well"):
            return "gate"
        return None

    def late(self, reply: int | None, now: datetime) -> bool:
        return reply is not None and now - self.log[reply - 1].at > LATENCY

    @staticmethod
    def ends(act: dict[str, Any]) -> bool:
        return bool(act.get("ends", not act.get("replies")))

    def said(self, sender: str, performative: str, reply: int | None, now: datetime) -> int:
        seq = len(self.log) + 1
        root = self.log[reply - 1].root if reply else seq
        self.log.append(Message(performative, sender, now, root))
        if reply is None:
            self.begun.add(seq)
        if self.ends(ACTS[performative]):
            self.ended.add(root)
        return seq


async def test_exactly_the_illegal_messages_are_refused(talk: Hall) -> None:
    limits = {"max_open_conversations": OPEN, "max_violations": 1_000_000}
    figures = {"price": {"max_tokens_per_task": MOST}, "sla": {"max_latency_ms": LATENCY // timedelta(milliseconds=1)}}
    agreement = await talk.agree({"acts": ACTS, "limits": limits, "gate": GATE} | figures, "ada", "bo", "cy")
    draw = random.Random(7)
    rules: dict[str, int] = {}
    legal = refused = 0
    channel, model = await new_channel(talk, agreement)
    while refused < ILLEGAL or legal < ILLEGAL // 4:
        if len(model.log) >= 60:
            assert await talk.seqs(channel) == list(range(1, len(model.log) + 1))
            channel, model = await new_channel(talk, agreement)
        if draw.random() < 0.1:
            await talk.later(seconds=draw.choice((1, 20, 29, 31, 61)))
        sender, performative, body, reply = message(draw, model)
        expected = model.illegal(sender, performative, body, reply, talk.now)
        answer = await talk.send(channel, sender, performative, body, p_in_reply_to=reply)
        if expected is None:
            assert answer.get("refused") is None, (answer, sender, performative, body, reply)
            late = model.late(reply, talk.now)
            assert answer.get("violated", {}).get("rule") == ("latency" if late else None)
            assert answer["seq"] == model.said(sender, performative, reply, talk.now)
            legal += 1
            if late:
                rules["latency"] = rules.get("latency", 0) + 1
        else:
            assert answer["seq"] is None, (expected, sender, performative, body, reply)
            assert answer["refused"]["rule"] == expected
            rules[expected] = rules.get(expected, 0) + 1
            refused += 1
    assert set(rules) == RULES
    assert (await talk.ask("agreement_read", agreement))["violations"] == sum(rules.values())
    read = await talk.connection.fetch(
        "select rule, count(*) from agreement_violations where agreement_id = $1 group by rule", agreement
    )
    assert {row["rule"]: row["count"] for row in read} == rules
    await no_message_passes_a_suspended_agreement(talk, channel, agreement)


async def no_message_passes_a_suspended_agreement(talk: Hall, channel: Channel, agreement: uuid.UUID) -> None:
    await talk.ask("agreement_suspend", agreement)
    for performative in ACTS:
        for body in FITTING[performative]:
            with pytest.raises(VanillaError, match="agreement is suspended"):
                await talk.send(channel, "ada", performative, body)


def message(draw: random.Random, model: Model) -> tuple[str, str, Any, int | None]:
    """Often what could come next, with one thing or two of it changed; else anything."""
    performative = draw.choice(PERFORMATIVES)
    reply = (
        draw.randrange(max(1, len(model.log) - 12), len(model.log) + 1) if model.log and draw.random() < 0.7 else None
    )
    if reply is not None and draw.random() < 0.8:
        performative = draw.choice(ACTS[model.log[reply - 1].performative].get("replies") or [performative])
    senders = ACTS.get(performative, {}).get("senders", ["ada", "bo", "cy"])
    sender = draw.choice(senders if draw.random() < 0.85 else ["ada", "bo", "cy"])
    body = draw.choice(FITTING.get(performative, BODIES) if draw.random() < 0.8 else BODIES)
    return sender, performative, body, reply


async def new_channel(talk: Hall, agreement: uuid.UUID) -> tuple[Channel, Model]:
    return await talk.open_bound(agreement, "ada", "bo", "cy"), Model()
