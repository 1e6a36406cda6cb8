"""The inbox of approvals: what waits for the person who looks, and what they decide."""

from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Form, Request
from fastapi.responses import Response

from vanilla_saas.console import NavigationEntry, Room, page_router, redirect, render
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageCaller
from vanilla_saas.workflows import execution_store, executions, forms, run_store

router = page_router()
Decision = Annotated[Literal["approved", "rejected"], Form()]


def _fields(edit: Any, subject: Any) -> list[forms.Field]:
    """What of the subject may be changed: the properties of `edit`, and of an object only."""
    if not isinstance(edit, dict) or not edit.get("properties") or not isinstance(subject, dict):
        return []
    return [field for field in forms.fields_of(edit, subject) if field.name != forms.WHOLE]


@router.get("/approvals")
async def approvals(request: Request, caller: PageCaller, notice: str = "") -> Response:
    async with acting(request, caller, read_only=True) as connection:
        rows = await run_store.approvals(connection, caller.identity.tenant_id)
    return render(
        request, "workflows/approvals.html", notice=notice, most=run_store.MOST_TEXT,
        rows=[dict(row) | {"fields": _fields(row["edit"], row["subject"])} for row in rows],
    )  # fmt: skip


@router.get("/approvals/count")
async def count(request: Request, caller: PageCaller) -> Response:
    """The figure in the navigation; nothing when there is none."""
    async with acting(request, caller, read_only=True) as connection:
        waiting = await run_store.waiting(connection)
    return render(request, "workflows/approvals_count.html", waiting=waiting)


@router.post("/approvals/{approval_id}")
async def decide(
    request: Request,
    caller: PageCaller,
    approval_id: UUID,
    decision: Decision,
    comment: Annotated[str, Form(max_length=20_000)] = "",
) -> Response:
    form = await request.form()
    async with acting(request, caller, read_only=True) as connection:
        rows = await execution_store.approvals(connection, approval_id)
    value = None
    if decision == "approved" and rows and (fields := _fields(rows[0]["edit"], rows[0]["subject"])):
        value = _edited(rows[0]["subject"], fields, form)
    answer = await executions.decide(
        partial(acting, request, caller), approval_id, decision, comment.strip() or None, value
    )
    notice = "voted" if answer["status"] == "open" else answer["status"]
    return redirect(request, f"/approvals?notice={notice}")


def _edited(subject: dict[str, Any], fields: list[forms.Field], form: Any) -> dict[str, Any] | None:
    """The subject as the form changes it, or None when it does not. Raises VanillaError `invalid_request`."""
    written = {field.name: str(form.get(field.key, field.value)).replace("\r\n", "\n") for field in fields}
    changed = [field for field in fields if written[field.name] != field.value.replace("\r\n", "\n")]
    if not changed:
        return None
    kept = {name: given for name, given in subject.items() if name not in {field.name for field in changed}}
    return kept | forms.read(changed, form)


ROOM = Room(
    "workflows",
    "vanilla_saas.workflows",
    router,
    (NavigationEntry("Build", "Approvals", "/approvals", "inbox", 32, count="/approvals/count"),),
)
