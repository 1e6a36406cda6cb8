"""What every protocol does with engines and agents: lists those of a caller, starts one, waits for it, ends it."""

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import asyncpg
from fastapi import Request

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import runs, starts
from vanilla_saas.engines import store as engine_store
from vanilla_saas.engines.protocols import store
from vanilla_saas.tenancy.identity import Caller, acting, again, client_ip
from vanilla_saas.tenancy.secret_tokens import token_hash
from vanilla_saas.workflows import execution_store, executions
from vanilla_saas.workflows.execution_models import Body, DecisionBody, SignalName
from vanilla_saas.workflows.execution_routes import require_spender
from vanilla_saas.workflows.executions import refuse_budget, require_fit

WAIT_S = 600.0
"""How long somebody waits for the end of a run at most: as long as a model call may take."""
AGENT, ENGINE = "agent_", "engine_"
OWN = (AGENT, ENGINE, "run_")
"""What begins a name that is no engine's slug; an engine whose slug does is called by it with `engine_` before."""
MESSAGE = {
    "type": "object",
    "properties": {"message": {"type": "string", "description": "what the agent is told"}},
    "required": ["message"],
    "additionalProperties": False,
}
"""What an agent is given."""


State = tuple[store.Answer, list[store.Answer], list[store.Answer]]
"""A run, the runs of its tree, and what they made."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An engine or an agent that a caller may run."""

    kind: Literal["engine", "agent"]
    id: UUID
    slug: str
    name: str
    description: str
    version: int
    input: dict[str, Any]
    output: dict[str, Any] | None
    parameters: dict[str, Any] | None = None

    @property
    def called(self) -> str:
        """What other protocols call it: an engine's slug, `agent_` and an agent's."""
        if self.kind == "agent":
            return AGENT + self.slug
        return called(self.slug)


def called(slug: str) -> str:
    """What other protocols call an engine."""
    return ENGINE + slug if slug.startswith(OWN) else slug


class Signal(Body):
    """A signal to a run that waits for it, or will."""

    signal: SignalName
    payload: Any = None


class Decision(DecisionBody):
    """What somebody decides of what a run asks."""

    approval_id: UUID


@dataclass(frozen=True, slots=True)
class Called:
    """A run that a request of the caller is about."""

    request: Request
    caller: Caller
    offer: Offer
    execution_id: UUID
    replayed: bool


async def offers(request: Request, caller: Caller) -> list[Offer]:
    """Engines and agents that the caller may run: of a key of an engine that one, without the scope chat none."""
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        if runs.key_of_engine(caller) is not None:
            return await _of_key(connection, caller)
        try:
            caller.require_scope("chat")
            await refuse_budget(connection, tenant_id, caller.key_id)
        except VanillaError:
            return []
        cards = await engine_store.cards(connection, tenant_id)
        agents = await store.agents(connection, tenant_id)
    return [_engine(card) for card in cards if card["access"] == "execute"] + [_agent(row) for row in agents]


async def _of_key(connection: asyncpg.Connection, caller: Caller) -> list[Offer]:
    found = await store.engine_of_key(connection, caller.identity.tenant_id, caller.key_id)
    if found["denied_reason"]:
        return []
    cards = await engine_store.cards(connection, caller.identity.tenant_id)
    of_name = next((card for card in cards if str(card["engine_id"]) == str(found["engine_id"])), {})
    # the key may have another version than its name means
    output = of_name.get("output") if of_name.get("version") == found["version"] else None
    blank = {"name": found["engine"], "description": ""}
    return [_engine(blank | of_name | found | {"slug": found["engine"], "output": output})]


def _engine(card: dict[str, Any]) -> Offer:
    return Offer(
        "engine",
        UUID(str(card["engine_id"])),
        card["slug"],
        card["name"],
        card["description"],
        card["version"],
        card["input"] or {},
        card["output"],
        card["parameters"],
    )


def _agent(row: dict[str, Any]) -> Offer:
    return Offer("agent", row["id"], row["slug"], row["name"], row["description"], row["version"], MESSAGE, None)


async def offered(request: Request, caller: Caller, name: str) -> Offer:
    """One of `offers`, as it is called. Raises VanillaError `not_found`, in the same words whatever the reason."""
    for offer in await offers(request, caller):
        if offer.called == name:
            return offer
    raise VanillaError("not_found", "There is nothing of that name that you may run.", {"name": name[:128]})


async def start(request: Request, caller: Caller, offer: Offer, given: dict[str, Any], key: str | None) -> Called:
    """Starts it as REST does: the input is looked at first, the same key and input answer with the first run.

    Raises VanillaError `invalid_input` naming fields, and all that a start is refused for.
    """
    tenant_id = caller.identity.tenant_id
    if runs.key_of_engine(caller) is not None:
        database, request_id = request.app.state.database, getattr(request.state, "request_id", "")
        started = await starts.start_by_key(
            database, token_hash(caller.token), None, given, key, request_id, client_ip(request)
        )
    else:
        await require_spender(request, caller)
        if offer.kind == "engine":
            started = await starts.start(lambda: acting(request, caller), tenant_id, offer.slug, given, key=key)
        else:
            await require_fit([MESSAGE], given, "input")
            async with acting(request, caller) as connection:
                started = await store.start_agent(connection, tenant_id, offer.slug, given, key)
    return Called(request, caller, offer, UUID(started["execution_id"]), started["replayed"])


async def found(request: Request, caller: Caller, execution_id: UUID) -> store.Answer:
    """A run as it is. Raises VanillaError `not_found`."""
    async with acting(request, caller, read_only=True) as connection:
        return await store.run(connection, caller.identity.tenant_id, execution_id, runs.key_of_engine(caller))


async def ended(request: Request, caller: Caller, execution_id: UUID, seconds: float) -> store.Answer:
    """A run as it is when it has ended, the time is over or the process stops.

    Raises VanillaError when the key or session is not good any more.
    """
    ends = request.app.state.ends
    await runs.wait(ends, caller, execution_id, seconds, again(request, caller))
    return await found(request, caller, execution_id)


async def state(request: Request, caller: Caller, execution_id: UUID) -> State:
    """A run as it is, with what it asks the caller, the runs of its tree, and what they made.

    A key of an engine is asked nothing. Raises VanillaError `not_found`.
    """
    tenant_id, key_id = caller.identity.tenant_id, runs.key_of_engine(caller)
    async with acting(request, caller, read_only=True) as connection:
        run = await store.run(connection, tenant_id, execution_id, key_id)
        if run["task_state"] == "input_required" and key_id is None:
            run["approvals"] = await store.asked(connection, tenant_id, execution_id, run["run_id"])
        if run["run_id"] is None:
            return run, [], []
        tree = await store.tree(connection, tenant_id, run["run_id"])
        return run, tree, await store.artifacts(connection, tenant_id, run["run_id"])


async def begun(
    request: Request, caller: Caller, prefix: str, context: str, before: UUID | None, limit: int
) -> tuple[list[UUID], int]:
    """The caller's own runs whose idempotency keys begin so, last changed first, and how many there are."""
    who, key_id = caller.identity, runs.key_of_engine(caller)
    if key_id is None:
        caller.require_scope("read")
    async with acting(request, caller, read_only=True) as connection:
        return await store.begun(connection, who.tenant_id, who.user_id, key_id, prefix, context, before, limit)


async def tell(request: Request, caller: Caller, run: store.Answer, told: Signal | Decision) -> None:
    """Sends a run a signal, or decides what it asks.

    Raises VanillaError `forbidden`, `invalid_input`, `invalid_request`, `invalid_state`.
    """
    caller.require_scope("chat")
    tenant_id, execution_id = caller.identity.tenant_id, run["execution_id"]
    if isinstance(told, Signal):
        try:
            await executions.signal(lambda: acting(request, caller), tenant_id, execution_id, told.signal, told.payload)
        except VanillaError as error:
            # of the signal, not of the run
            name = "invalid_request" if error.name == "not_found" else error.name
            raise VanillaError(name, error.message, error.detail, error.hint) from None
        return
    asked = [one["id"] for one in run.get("approvals", ())]
    if told.approval_id not in asked:
        raise VanillaError(
            "invalid_state",
            "The task does not ask you that, or not any more.",
            {"approval_id": str(told.approval_id), "approvals": [str(one) for one in asked]},
        )
    await executions.decide(lambda: acting(request, caller), told.approval_id, told.decision, told.comment, told.value)


async def cancel(request: Request, caller: Caller, execution_id: UUID, reason: str) -> store.Answer:
    """Ends a run that the caller may see; one that has ended stays as it ended."""
    if runs.key_of_engine(caller) is None:
        caller.require_scope("chat")
    await found(request, caller, execution_id)
    try:
        async with acting(request, caller) as connection:
            await execution_store.cancel(connection, caller.identity.tenant_id, execution_id, reason)
    except VanillaError as error:
        if error.name != "invalid_state":
            raise
    return await found(request, caller, execution_id)
