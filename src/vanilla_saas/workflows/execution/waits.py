"""Kinds that wait: for a moment, a signal, people, another execution. The database holds the wait and ends it."""

from datetime import datetime, timedelta
from typing import Any

from vanilla_saas.workflows.execution.attempt import Attempt, wrong_type
from vanilla_saas.workflows.execution.failures import Failure, of_mismatches
from vanilla_saas.workflows.execution.steps import Outcome, succeeded, waiting
from vanilla_saas.workflows.nodes import Approval, Engine, Signal, Wait, Workflow


async def wait(attempt: Attempt, node: Wait) -> Outcome:
    if node.seconds is not None:
        due = attempt.tooling.now() + timedelta(seconds=node.seconds)
    else:
        assert node.until is not None
        due = _moment(await attempt.compute("until", node.until))
    return waiting({"kind": "timer", "due_at": due.isoformat()})


def _moment(found: Any) -> datetime:
    try:
        due = datetime.fromisoformat(found)
    except (TypeError, ValueError):
        due = None
    if due is None or due.tzinfo is None:
        raise wrong_type("until", "a time with its zone, as timestamp() gives", found)
    return due


async def signal(attempt: Attempt, node: Signal) -> Outcome:
    """Comes back only when its payload must be checked against a schema."""
    decision = attempt.step.decision
    if decision is None:
        asked = {"kind": "signal", "name": node.signal, "timeout_s": node.timeout_s, "check": node.schema_ is not None}
        return waiting(asked)
    payload = decision["payload"]
    if node.schema_ is not None and (found := await attempt.mismatches("schema", node.schema_, payload)):
        raise of_mismatches("schema_mismatch", f"The payload of the signal {node.signal}", found)
    return succeeded(payload, "received")


async def approval(attempt: Attempt, node: Approval) -> Outcome:
    """Does not come back: who decides gives the node its outcome."""
    value = None if node.of is None else await attempt.compute("of", node.of)
    templates = {"title": node.title} | ({} if node.prompt is None else {"prompt": node.prompt})
    texts = await attempt.render(templates, value=value)
    return waiting(
        asked_of_people(
            texts["title"],
            value,
            approvers=node.approvers,
            quorum=node.quorum,
            prompt=texts.get("prompt"),
            edit=node.edit,
            deadline_s=node.deadline_s,
            on_deadline=node.on_deadline,
            escalate_to=node.escalate_to,
        )
    )


def asked_of_people(title: str, subject: Any, **more: Any) -> dict[str, Any]:
    """The wait for an approval, with every field that it has."""
    title = " ".join(title.split()) or "Approval"
    fields = dict.fromkeys(("prompt", "edit", "deadline_s", "on_deadline", "escalate_to"))
    return {"kind": "approval", "title": title, "subject": subject, **fields, **more}


async def execution(attempt: Attempt, node: Workflow | Engine) -> Outcome:
    """Starts another execution; its output is this step's when it has ended."""
    decision = attempt.step.decision
    if decision is None:
        given = await attempt.compute_object("input", node.input)
        return waiting({"kind": "execution", "of": node.kind, "ref": node.ref, "input": given})
    if decision.get("status") == "succeeded":
        return succeeded(decision.get("output"))
    error = decision.get("error")
    said = f": {error['message']}" if isinstance(error, dict) and error.get("message") else "."
    details = {name: decision.get(name) for name in ("execution_id", "status", "error")}
    raise Failure(
        f"{node.kind}_failed", f"The execution of {node.ref} ended as {decision.get('status')}{said}", details
    )
