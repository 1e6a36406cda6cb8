"""Jobs that are coroutines of this program, by the name of their row in `schedules`; SQL jobs need no line here."""

from collections.abc import Mapping
from typing import Any

from vanilla_saas.operations.log_export import export_logs
from vanilla_saas.operations.rehearsal import scheduled_backup, scheduled_rehearsal
from vanilla_saas.operations.schedules import Job, JobContext
from vanilla_saas.payments.top_ups import charge_due


async def _backup(context: JobContext) -> dict[str, Any]:
    made = await scheduled_backup(context.where, context.settings)
    return {"backup": made.path.name, "removed": len(made.removed)}


async def _rehearsal(context: JobContext) -> dict[str, Any]:
    """Raises RuntimeError when the backup did not stand: the job failed, though it ran."""
    proof = await scheduled_rehearsal(context.where, context.settings)
    if proof.errors:
        raise RuntimeError("the backup did not stand its rehearsal: " + "; ".join(proof.errors[:3]))
    return {"rows": proof.rows, "chains": proof.chains, "seconds": round(proof.total_s, 1)}


async def _auto_top_up(context: JobContext) -> dict[str, Any]:
    return await charge_due(context.where, context.settings)


JOBS: Mapping[str, Job] = {
    "log_export": export_logs,
    "backup": _backup,
    "backup_rehearsal": _rehearsal,
    "auto_top_up": _auto_top_up,
}
