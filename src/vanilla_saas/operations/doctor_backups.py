"""What doctor says of backups: the last one failed or is old, the last rehearsal failed or is long ago."""

from datetime import timedelta
from typing import Any

import asyncpg

from vanilla_saas.checks import Severity
from vanilla_saas.operations import backup_store as store
from vanilla_saas.operations.rehearsal import FAILED, MADE, REHEARSED
from vanilla_saas.settings import Settings

CHECKS = ("backup_failed", "backup_old", "rehearsal_failed", "rehearsal_old")
Found = tuple[str, str, str, Severity]
"""Check, what was found, how it is mended, severity."""
BACK_UP, REHEARSE = "vanilla-saas backup", "vanilla-saas backup rehearse"


async def backup_findings(connection: asyncpg.Connection, settings: Settings) -> list[Found]:
    """Ages are by the database's clock. Without any backup the installation's own age counts: a new one has time."""
    kept = await store.recorded(connection)
    made, failed, rehearsed = kept.get(MADE), kept.get(FAILED), kept.get(REHEARSED)
    age = await store.installed_age(connection)
    found: list[Found] = []
    if failed and (made is None or failed["at"] > made["at"]):
        why = f"{failed.get('code')}: {failed.get('message')}"
        found.append(("backup_failed", f"The last backup of {_day(failed)} failed, {why}", BACK_UP, "error"))
    if rehearsed and not rehearsed.get("ok"):
        why = "; ".join(map(str, rehearsed.get("problems", [])[:3]))
        found.append(
            (
                "rehearsal_failed",
                f"The backup {rehearsed.get('backup')} did not stand its rehearsal of {_day(rehearsed)}: {why}",
                f"{BACK_UP} && {REHEARSE}",
                "error",
            )
        )
    found += _old("backup_old", "backup was made", made, age, settings.backup_max_age_days, BACK_UP)
    found += _old("rehearsal_old", "backup was rehearsed", rehearsed, age, settings.rehearsal_max_age_days, REHEARSE)
    return found


def _old(
    check: str, what: str, kept: dict[str, Any] | None, installed: timedelta | None, days: float, mend: str
) -> list[Found]:
    age = kept["age"] if kept else installed
    if days == 0 or age is None or age <= timedelta(days=days):
        return []
    last = f"the last was {_day(kept)}" if kept else f"the installation is {age.days} days old"
    return [(check, f"No {what} in the last {days:g} days; {last}.", mend, "warning")]


def _day(kept: dict[str, Any]) -> str:
    return f"{kept['at']:%Y-%m-%d %H:%M} UTC"
