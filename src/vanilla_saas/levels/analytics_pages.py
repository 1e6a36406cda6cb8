"""The page of level analytics: thirty days in small charts, levels in a table, the tenant's own plan beside them."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from vanilla_saas.console import page_router, render
from vanilla_saas.levels import analytics_store as store
from vanilla_saas.levels.analytics_models import LevelDay
from vanilla_saas.levels.money import money, whole_units
from vanilla_saas.tenancy.identity import acting
from vanilla_saas.tenancy.page_session import PageAdmin

router = page_router()


@router.get("/levels/analytics")
async def level_analytics(request: Request, caller: PageAdmin) -> Response:
    tenant_id = caller.identity.tenant_id
    async with acting(request, caller, read_only=True) as connection:
        rows = await store.days(connection, tenant_id, *await store.period(connection, tenant_id))
        plan = await store.plan(connection, tenant_id)
    return render(
        request, "levels/analytics.html", rows=rows, charts=charts(rows), levels=levels(rows), plan=plan, money=money,
        days=sorted({row.day for row in rows}),
    )  # fmt: skip


def charts(rows: list[LevelDay]) -> list[dict[str, Any]]:
    """What is drawn: a title, a unit, a point for each day that was counted, and the words for who sees no chart."""
    figures: list[tuple[str, str, Callable[[LevelDay], int], bool]] = [
        ("Users", "users", lambda row: row.users, False),
        ("Active users", "active", lambda row: row.active_users, False),
        ("New users", "new", lambda row: row.new_users, True),
        ("Tokens spent", "tokens", lambda row: row.tokens_spent, True),
    ]
    found = [_chart(rows, *figure) for figure in figures]
    for currency in sorted({currency for row in rows for currency in row.run_rate}):
        chart = _chart(rows, f"Run rate, {currency}", f"{currency} a month", _rate(currency), False)
        summary = f"{money(chart['values'][-1], currency)} a month"
        found.append(chart | {"summary": summary, "values": [whole_units(v, currency) for v in chart["values"]]})
    return found


def _rate(currency: str) -> Callable[[LevelDay], int]:
    return lambda row: row.run_rate.get(currency, 0)


def _chart(
    rows: list[LevelDay], title: str, unit: str, figure: Callable[[LevelDay], int], is_flow: bool
) -> dict[str, Any]:
    totals: dict[date, int] = {}
    for row in rows:
        totals[row.day] = totals.get(row.day, 0) + figure(row)
    values = list(totals.values())
    summary = f"{sum(values):,} in {len(values)} days" if is_flow else f"{values[-1] if values else 0:,} now"
    at = [int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) for day in totals]
    return {"title": title, "unit": unit, "days": at, "values": values, "summary": summary}


def levels(rows: list[LevelDay]) -> list[dict[str, Any]]:
    """Each level over the days: its users at the end, and the sums of what happened."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        level = found.setdefault(str(row.level_id), {"happened": Counter[str](), "hits": Counter[str]()})
        level |= {"level": row.level, "users": row.users, "run_rate": row.run_rate}
        for name in ("new_users", "upgraded", "downgraded", "churned", "tokens_granted", "tokens_spent",
                     "tokens_lapsed", "trials_ended", "trials_converted"):  # fmt: skip
            level["happened"][name] += getattr(row, name)
        level["hits"].update(row.limit_hits)
    return list(found.values())
