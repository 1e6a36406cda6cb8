"""`vanilla-saas channels`: channels of a tenant opened, read, spoken on and closed, as the operator."""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, get_args
from uuid import UUID, uuid4

import asyncpg
import orjson
import typer

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.orchestration import channel_store as store
from vanilla_saas.orchestration.channel_models import Performative
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows import execution_store

channels = typer.Typer(no_args_is_help=True, help="Channels of agents and people: opened, read, spoken on, closed.")
ChannelId = Annotated[UUID, typer.Argument(metavar="CHANNEL", help="Id of a channel.")]
As = Annotated[str, typer.Argument(metavar="PARTICIPANT", help="As whom: name or id.")]
Token = Annotated[UUID, typer.Argument(metavar="LEASE", help="What receive gave.")]
Seq = Annotated[int, typer.Argument(metavar="SEQ", min=1)]
Answer = dict[str, Any]
COLUMNS = ("seq", "sender", "performative", "body", "in_reply_to", "run_id", "created_at")


@channels.command("open")
def open_channel(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    participant: Annotated[
        list[str],
        typer.Option(help="name, or JSON as {name, kind, user_id, party, reads, manages}; once for each."),
    ],
    kind: Annotated[str, typer.Option(help="direct, group or topic.")] = "group",
    agreement: Annotated[UUID | None, typer.Option(help="Every message is held to it.")] = None,
    limits: Annotated[str, typer.Option(help="JSON: max_messages, max_attempts, floor, floor_s.")] = "{}",
    user: Annotated[str | None, typer.Option(help="Whose it is to be: email or UUID (the only user).")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Open a channel between participants."""
    participants = [_json(one) if one.startswith("{") else {"name": one} for one in participant]

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        user_id = (await find_user(connection, tenant, user))[1] if user else None
        return await store.open_channel(
            connection, owner, name, kind, participants, agreement_id=agreement, limits=_json(limits),
            user_id=user_id or await execution_store.only_user(connection, owner),
        )  # fmt: skip

    made = as_operator(run)
    tell(f"It is open: {made['channel_id']}.", made, as_json)


@channels.command("list")
def list_channels(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """The newest 1,000 channels of a tenant."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        return await store.channels(connection, await tenant_id(connection, tenant))

    show(as_operator(run), as_json)


@channels.command("show")
def show_channel(channel: ChannelId, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """A channel with its participants, how far each has read and what it could not handle."""

    async def run(connection: asyncpg.Connection) -> Answer:
        return await store.read(connection, await tenant_id(connection, tenant), channel)

    found = as_operator(run)
    if as_json:
        tell("", found, True)
        return
    holder = next((one["name"] for one in found["participants"] if one["id"] == found["floor_holder"]), None)
    floor = f", {holder or 'nobody'} has the floor" if found["floor_policy"] and found["status"] == "open" else ""
    typer.echo(f"{found['name']}, {found['kind']}, {found['status']}, {found['last_seq']} messages{floor}")
    show([{name: value for name, value in one.items() if name != "last_error"} for one in found["participants"]], False)


@channels.command("history")
def history(
    channel: ChannelId,
    after: Annotated[int, typer.Option(min=0, help="Only messages behind this seq.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Messages in their order; no cursor moves."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        return await store.history(connection, await tenant_id(connection, tenant), channel, after, limit)

    rows = as_operator(run)
    if not as_json:
        rows = [{name: row[name] for name in COLUMNS} | {"body": orjson.dumps(row["body"]).decode()} for row in rows]
    show(rows, as_json)


@channels.command("send")
def send(
    channel: ChannelId,
    participant: As,
    body: Annotated[str, typer.Argument(metavar="BODY", help="JSON.")],
    performative: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Performative))}.")] = "inform",
    message_id: Annotated[str | None, typer.Option(help="Sent again, it is the same message (a fresh one).")] = None,
    in_reply_to: Annotated[int | None, typer.Option(min=1, help="Seq of a message.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Say something as a participant; what breaks the channel's agreement is refused and written down."""

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        return await store.send(
            connection, owner, channel, await _participant(connection, owner, channel, participant), performative,
            _json(body, any_kind=True), message_id or str(uuid4()), in_reply_to=in_reply_to,
        )  # fmt: skip

    sent = as_operator(run)
    store.refuse_breach(sent)
    late = f", a violation: {sent['violated']['message']}" if "violated" in sent else ""
    tell(f"It is message {sent['seq']}{', sent before' if sent['replayed'] else ''}{late}.", sent, as_json)


@channels.command("receive")
def receive(
    channel: ChannelId,
    participant: As,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    lease_s: Annotated[float, typer.Option(min=0.01, max=86_400, help="Seconds that nobody else is given them.")] = 60,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """The next messages of others for a participant, under a lease."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        owner = await tenant_id(connection, tenant)
        speaker = await _participant(connection, owner, channel, participant)
        return await store.receive(connection, owner, channel, speaker, limit, timedelta(seconds=lease_s))

    rows = as_operator(run)
    if not as_json:
        names = ("lease_token", "seq", "attempt", "performative", "body", "in_reply_to")
        rows = [{name: row[name] for name in names} | {"body": orjson.dumps(row["body"]).decode()} for row in rows]
    show(rows, as_json)


@channels.command("ack")
def ack(
    channel: ChannelId, participant: As, token: Token, seq: Seq, tenant: TenantSlug = "default", as_json: AsJson = False
) -> None:
    """All messages up to this one are done with."""

    async def run(connection: asyncpg.Connection) -> bool:
        owner = await tenant_id(connection, tenant)
        speaker = await _participant(connection, owner, channel, participant)
        return await store.ack(connection, owner, channel, speaker, token, seq)

    done = as_operator(run)
    tell("Acknowledged." if done else "They were acknowledged already.", {"acknowledged": done}, as_json)


@channels.command("nack")
def nack(
    channel: ChannelId,
    participant: As,
    token: Token,
    seq: Seq,
    error: Annotated[str, typer.Option(help="What went wrong.")] = "",
    retry_after_s: Annotated[float, typer.Option(min=0, max=604_800, help="Seconds until the next attempt.")] = 0,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """The first message that is not acknowledged failed."""

    async def run(connection: asyncpg.Connection) -> str:
        owner = await tenant_id(connection, tenant)
        speaker = await _participant(connection, owner, channel, participant)
        after = timedelta(seconds=retry_after_s)
        return await store.nack(connection, owner, channel, speaker, token, seq, error, after)

    outcome = as_operator(run)
    said = "It is given out again." if outcome == "retry" else "It is a dead letter."
    tell(said, {"outcome": outcome}, as_json)


@channels.command("floor")
def floor(
    channel: ChannelId,
    participant: As,
    action: Annotated[str, typer.Option(help="read, pass, give, take or bid.")] = "read",
    to: Annotated[str | None, typer.Option(help="Of give: a participant, name or id.")] = None,
    bid: Annotated[float | None, typer.Option(help="Of bid.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Who may speak in a group: read, or passed on."""

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        speaker = await _participant(connection, owner, channel, participant)
        whom = await _participant(connection, owner, channel, to) if to else None
        amount = None if bid is None else Decimal(str(bid))
        return await store.floor(connection, owner, channel, speaker, action, to=whom, bid=amount)

    told = as_operator(run)
    tell(f"The floor has: {told['floor_holder'] or 'nobody'}.", told, as_json)


@channels.command("close")
def close(
    channel: ChannelId,
    reason: Annotated[str, typer.Option(help="Shown to who reads it.")] = "",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Let it take no message any more; what it has can be read and acknowledged."""

    async def run(connection: asyncpg.Connection) -> bool:
        return await store.close(connection, await tenant_id(connection, tenant), channel, reason)

    done = as_operator(run)
    tell("It is closed." if done else "It was closed already.", {"channel_id": channel, "closed": done}, as_json)


async def _participant(connection: asyncpg.Connection, owner: UUID, channel: UUID, name: str) -> UUID:
    found = (await store.read(connection, owner, channel))["participants"]
    for one in found:
        if name in (one["name"], one["id"]):
            return UUID(one["id"])
    raise VanillaError("not_found", f"The channel has no participant {name}.", {"participant": name})


def _json(text: str, *, any_kind: bool = False) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise VanillaError(
            "invalid_request", f"This is no JSON: {text}", hint='Texts stand in quotes: "yes".'
        ) from None
    if not any_kind and not isinstance(value, dict):
        raise VanillaError("invalid_request", f"This is no JSON object: {text}")
    return value
