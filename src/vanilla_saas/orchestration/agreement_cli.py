"""`vanilla-saas agreements`: agreements of a tenant proposed, answered, suspended, ended, as the operator."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import typer

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, TenantSlug, as_operator, show, tell, tenant_id
from vanilla_saas.orchestration import agreement_store as store
from vanilla_saas.orchestration import drafts
from vanilla_saas.tokens.store import find_user
from vanilla_saas.workflows.documents import Format

agreements = typer.Typer(no_args_is_help=True, help="Agreements that channels are held to: proposed, answered, ended.")
AgreementId = Annotated[UUID, typer.Argument(metavar="AGREEMENT", help="Id of an agreement.")]
PartyName = Annotated[str, typer.Option("--party", help="Who does this.")]
MayParty = Annotated[str | None, typer.Option("--party", help="Who does this (an admin).")]
Content = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="What it says, in YAML, or JSON when it ends so.", exists=True, dir_okay=False),
]
Reason = Annotated[str, typer.Option(help="Shown to the parties.")]
Answer = dict[str, Any]


@agreements.command("propose")
def propose(
    path: Content,
    parties: Annotated[list[str], typer.Option("--party", help="role=user (email or UUID); the first one proposes.")],
    name: Annotated[str | None, typer.Option(help="The file's name without its ending, when none is given.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Propose an agreement between parties, and accept it as the first of them."""
    content = _read(path)

    async def run(connection: asyncpg.Connection) -> Answer:
        owner = await tenant_id(connection, tenant)
        whose = {}
        for one in parties:
            role, _, user = one.partition("=")
            whose[role] = (await find_user(connection, tenant, user))[1]
        first = parties[0].partition("=")[0]
        named = {role: str(user_id) for role, user_id in whose.items()}
        return await store.propose(connection, owner, name or path.stem, named, first, content, whose[first])

    _tell(as_operator(run), as_json)


@agreements.command("list")
def list_agreements(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """The newest 1,000 agreements of a tenant."""

    async def run(connection: asyncpg.Connection) -> list[Answer]:
        return await store.agreements(connection, await tenant_id(connection, tenant))

    show(as_operator(run), as_json)


@agreements.command("show")
def show_agreement(agreement: AgreementId, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """An agreement with its versions, who accepted them, and the last violations."""

    async def run(connection: asyncpg.Connection) -> Answer:
        return await store.read(connection, await tenant_id(connection, tenant), agreement)

    found = as_operator(run)
    if as_json:
        tell("", found, True)
        return
    typer.echo(f"{found['name']}, {found['status']}, {found['violations']} violations")
    names = ("version", "state", "hash", "proposed_by", "accepted_by")
    show([{name: one[name] for name in names} for one in found["versions"]], False)
    if found["latest_violations"]:
        parts = ("created_at", "party", "performative", "rule", "path", "message")
        show([{name: one[name] for name in parts} for one in found["latest_violations"]], False)


@agreements.command("respond")
def respond(
    agreement: AgreementId,
    decision: Annotated[str, typer.Argument(help="accept, reject or counter.")],
    party: PartyName,
    content_hash: Annotated[str, typer.Option("--hash", help="Of what is answered: show tells it.")],
    counter: Annotated[
        Path | None, typer.Option(help="Of counter: a file with what is proposed instead.", exists=True, dir_okay=False)
    ] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Answer what is proposed as a party, naming its hash."""
    content = _read(counter) if counter else None
    try:
        answered = bytes.fromhex(content_hash)
    except ValueError:
        raise VanillaError("invalid_request", "A hash is hexadecimal.", {"param": "hash"}) from None
    _act(
        tenant, as_json,
        lambda connection, owner: store.respond(connection, owner, agreement, party, answered, decision, content),
    )  # fmt: skip


@agreements.command("amend")
def amend(
    agreement: AgreementId, path: Content, party: PartyName, tenant: TenantSlug = "default", as_json: AsJson = False
) -> None:
    """Propose another version; what is active binds until all have accepted the new one."""
    content = _read(path)
    _act(tenant, as_json, lambda connection, owner: store.amend(connection, owner, agreement, party, content))


@agreements.command("withdraw")
def withdraw(agreement: AgreementId, party: PartyName, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Take back what the party proposed and not all have accepted."""
    _act(tenant, as_json, lambda connection, owner: store.withdraw(connection, owner, agreement, party))


@agreements.command("suspend")
def suspend(
    agreement: AgreementId,
    party: MayParty = None,
    reason: Reason = "",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Let its channels take no message until it is resumed."""
    _act(tenant, as_json, lambda connection, owner: store.suspend(connection, owner, agreement, party, reason))


@agreements.command("resume")
def resume(
    agreement: AgreementId, party: MayParty = None, tenant: TenantSlug = "default", as_json: AsJson = False
) -> None:
    """Let a suspended agreement go on; violations count from 0."""
    _act(tenant, as_json, lambda connection, owner: store.resume(connection, owner, agreement, party))


@agreements.command("terminate")
def terminate(
    agreement: AgreementId,
    party: MayParty = None,
    reason: Reason = "",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """End an agreement for good."""
    _act(tenant, as_json, lambda connection, owner: store.terminate(connection, owner, agreement, party, reason))


def _act(tenant: str, as_json: bool, act: Callable[[asyncpg.Connection, UUID], Awaitable[Answer]]) -> None:
    async def run(connection: asyncpg.Connection) -> Answer:
        return await act(connection, await tenant_id(connection, tenant))

    _tell(as_operator(run), as_json)


def _tell(told: Answer, as_json: bool) -> None:
    version = f", version {told['version']}" if told["version"] else ""
    hashed = f", {told['hash']}" if "hash" in told else ""
    tell(f"{told['agreement_id']} is {told['status']}{version}{hashed}.", told, as_json)


def _read(path: Path) -> Answer:
    format: Format = "json" if path.suffix == ".json" else "yaml"
    return drafts.read(path.read_bytes(), format, "agreement", "acts, limits, sla, data, price and gate")
