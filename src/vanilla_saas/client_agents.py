"""Agents, channels and agreements of `vanilla_saas.client`."""

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Self
from uuid import UUID

from vanilla_saas.client_http import Connection, path_of


class Agents:
    """`client.agents`. A reference is `slug` or `slug@3`."""

    def __init__(self, client: Connection):
        self._client = client

    async def list(self) -> list[dict[str, Any]]:
        """Own ones and those that are shared."""
        return await self._client.rows("/agents")

    async def save(self, slug: str, definition: Mapping[str, Any], *, shared: bool | None = None) -> int:
        """The version, the latest one when nothing has changed. Raises ApiError `invalid_definition`."""
        body = {"definition": dict(definition), "shared": shared}
        version: int = (await self._client.call("PUT", path_of("agents", slug), body))["version"]
        return version

    async def start(
        self,
        ref: str,
        input: Mapping[str, Any] | None = None,
        *,
        tokens: int | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Begins a run within a budget of tokens and gives its id; with a key it may be sent again and begins once.

        Raises ApiError `not_found`, `invalid_state`, `insufficient_tokens`.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        body = {"input": dict(input or {}), "tokens": tokens}
        path = path_of("agents", ref, "runs")
        run_id: str = (await self._client.call("POST", path, body, headers=headers))["run_id"]
        return run_id

    async def get(self, run_id: str | UUID, *, wait_s: float = 0) -> dict[str, Any]:
        """The tree of a run as it is now, or as soon as it is over, after `wait_s` at the latest."""
        path = path_of("agent-runs", run_id)
        found: dict[str, Any] = await self._client.call("GET", path, query={"wait_s": wait_s})
        return found

    async def result(self, run_id: str | UUID) -> dict[str, Any]:
        """Waits for the end and gives the tree, whose `state`, `stop_reason` and `output` say what came of it."""
        return await self._client.ended(path_of("agent-runs", run_id))

    async def cancel(self, run_id: str | UUID, reason: str | None = None) -> None:
        """Ends it with all that it started."""
        await self._client.call("POST", path_of("agent-runs", run_id, "cancel"), {"reason": reason})


class Seq(int):
    """A message's place in its channel, and what came of sending it."""

    replayed: bool
    """It had been sent before."""
    violated: dict[str, Any] | None
    """Of an answer that was delivered later than the agreement allows: rule, message, violations, suspended."""

    @classmethod
    def of(cls, sent: Mapping[str, Any]) -> Self:
        seq = cls(sent["seq"])
        seq.replayed, seq.violated = sent["replayed"], sent["violated"]
        return seq


class Channels:
    """`client.channels`. Participants are named by their ids, which `open` and `get` tell."""

    def __init__(self, client: Connection):
        self._client = client

    async def open(
        self,
        name: str,
        participants: Sequence[Mapping[str, Any]],
        *,
        kind: str = "group",
        agreement_id: str | UUID | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`channel_id`, and the participants' ids by name."""
        body = {
            "name": name, "kind": kind, "participants": [dict(one) for one in participants],
            "agreement_id": str(agreement_id) if agreement_id else None, "limits": dict(limits or {}),
        }  # fmt: skip
        made: dict[str, Any] = await self._client.call("POST", "/channels", body)
        return made

    async def list(self) -> builtins.list[dict[str, Any]]:
        """Own ones and those that the caller takes part in."""
        return await self._client.rows("/channels")

    async def get(self, channel_id: str | UUID) -> dict[str, Any]:
        found: dict[str, Any] = await self._client.call("GET", path_of("channels", channel_id))
        return found

    async def history(
        self, channel_id: str | UUID, *, after: int = 0, limit: int = 100
    ) -> builtins.list[dict[str, Any]]:
        """Messages in their order, behind a seq."""
        query = {"after": after, "limit": limit}
        path = path_of("channels", channel_id, "messages")
        return await self._client.rows(path, query=query)

    async def send(
        self,
        channel_id: str | UUID,
        participant_id: str | UUID,
        body: Any,
        *,
        performative: str = "inform",
        message_id: str | None = None,
        in_reply_to: int | None = None,
        run_id: str | UUID | None = None,
    ) -> Seq:
        """The message's seq; with a `message_id` it may be sent again and is said once. `run_id`: which run says it.

        An answer later than the agreement's `sla.max_latency_ms` is sent too; `violated` of the seq tells of it.
        Raises ApiError `agreement_violated`, `invalid_state`, `idempotency_key_reused`.
        """
        message = {
            "participant_id": str(participant_id), "performative": performative, "body": body,
            "message_id": message_id, "in_reply_to": in_reply_to, "run_id": run_id and str(run_id),
        }  # fmt: skip
        return Seq.of(await self._client.call("POST", path_of("channels", channel_id, "messages"), message))

    async def receive(
        self, channel_id: str | UUID, participant_id: str | UUID, *, limit: int = 50, lease_s: float = 60
    ) -> dict[str, Any]:
        """`lease_token` (None: nothing is there, or another worker has it) and `data`, the messages."""
        body = {"participant_id": str(participant_id), "limit": limit, "lease_s": lease_s}
        found: dict[str, Any] = await self._client.call("POST", path_of("channels", channel_id, "receive"), body)
        return found

    async def ack(
        self,
        channel_id: str | UUID,
        participant_id: str | UUID,
        lease_token: str,
        seq: int,
        *,
        run_id: str | UUID | None = None,
    ) -> bool:
        """`run_id`: the run that they went to, which keeps nothing that the agreement redacts.

        Raises ApiError `invalid_state` when the lease has ended.
        """
        body = {
            "participant_id": str(participant_id), "lease_token": lease_token, "seq": seq,
            "run_id": run_id and str(run_id),
        }  # fmt: skip
        told: dict[str, Any] = await self._client.call("POST", path_of("channels", channel_id, "ack"), body)
        return bool(told["acknowledged"])

    async def nack(
        self,
        channel_id: str | UUID,
        participant_id: str | UUID,
        lease_token: str,
        seq: int,
        error: str = "",
        *,
        retry_after_s: float = 0,
    ) -> str:
        """`retry` or `dead`."""
        body = {
            "participant_id": str(participant_id), "lease_token": lease_token, "seq": seq, "error": error,
            "retry_after_s": retry_after_s,
        }  # fmt: skip
        told: dict[str, str] = await self._client.call("POST", path_of("channels", channel_id, "nack"), body)
        return told["outcome"]

    async def floor(
        self,
        channel_id: str | UUID,
        participant_id: str | UUID,
        action: str = "read",
        *,
        to: str | UUID | None = None,
        bid: float | None = None,
    ) -> dict[str, Any]:
        body = {"participant_id": str(participant_id), "action": action, "to": str(to) if to else None, "bid": bid}
        told: dict[str, Any] = await self._client.call("POST", path_of("channels", channel_id, "floor"), body)
        return told

    async def close(self, channel_id: str | UUID, reason: str = "") -> None:
        await self._client.call("POST", path_of("channels", channel_id, "close"), {"reason": reason})

    async def follow(self, channel_id: str | UUID, *, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Every message behind a seq, once and in order, until the channel is closed. What breaks off goes on.

        Raises ApiError when it is refused.
        """

        def behind() -> str:
            return f"{path_of('channels', channel_id, 'events')}?after={after}"

        async for name, data in self._client.events(behind):
            if name == "message":
                after = data["seq"]
                yield data


class Agreements:
    """`client.agreements`. A party accepts a hash, which `propose` and `get` tell."""

    def __init__(self, client: Connection):
        self._client = client

    async def propose(
        self, name: str, parties: Mapping[str, str | UUID], party: str, content: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Between roles, each with the user who answers for it; `party` proposes.

        Raises ApiError `invalid_definition`.
        """
        whose = {role: str(user_id) for role, user_id in parties.items()}
        body = {"name": name, "parties": whose, "party": party, "content": dict(content)}
        made: dict[str, Any] = await self._client.call("POST", "/agreements", body)
        return made

    async def list(self) -> builtins.list[dict[str, Any]]:
        return await self._client.rows("/agreements")

    async def get(self, agreement_id: str | UUID) -> dict[str, Any]:
        """With its versions and the last violations."""
        found: dict[str, Any] = await self._client.call("GET", path_of("agreements", agreement_id))
        return found

    async def respond(
        self,
        agreement_id: str | UUID,
        party: str,
        hash: str,
        decision: Literal["accept", "counter", "reject"],
        content: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Raises ApiError `invalid_state` when something else is proposed by now."""
        answer = {"party": party, "hash": hash, "decision": decision, "content": dict(content) if content else None}
        return await self._do(agreement_id, "respond", answer)

    async def amend(self, agreement_id: str | UUID, party: str, content: Mapping[str, Any]) -> dict[str, Any]:
        return await self._do(agreement_id, "amend", {"party": party, "content": dict(content)})

    async def withdraw(self, agreement_id: str | UUID, party: str) -> dict[str, Any]:
        return await self._do(agreement_id, "withdraw", {"party": party})

    async def suspend(self, agreement_id: str | UUID, party: str | None = None, reason: str = "") -> dict[str, Any]:
        return await self._do(agreement_id, "suspend", {"party": party, "reason": reason})

    async def resume(self, agreement_id: str | UUID, party: str | None = None) -> dict[str, Any]:
        return await self._do(agreement_id, "resume", {"party": party})

    async def terminate(self, agreement_id: str | UUID, party: str | None = None, reason: str = "") -> dict[str, Any]:
        return await self._do(agreement_id, "terminate", {"party": party, "reason": reason})

    async def _do(self, agreement_id: str | UUID, what: str, body: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = await self._client.call("POST", path_of("agreements", agreement_id, what), body)
        return told
