"""How pages and commands write figures and times: tokens with thousands separators, times in UTC."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from markupsafe import Markup

_MINUS = "\u2212"


def tokens(value: int | None) -> str:
    """1234567 as 1,234,567; nothing for None."""
    return "" if value is None else f"{value:,}".replace("-", _MINUS)


def signed(value: int) -> str:
    """With its sign, zero without: +1,234, \u22125, 0."""
    return f"+{value:,}" if value > 0 else tokens(value)


def usd(micros: int | None) -> str:
    """Micros of USD as dollars with the digits that matter: $0.000125, $1.25."""
    if micros is None:
        return ""
    text = f"{micros / 1_000_000:.6f}".rstrip("0")
    whole, _, fraction = text.partition(".")
    return f"${int(whole):,}.{fraction:0<2}"


def size(value: int | None) -> str:
    """Bytes as 512 B, 3.4 MiB; nothing for None."""
    if value is None:
        return ""
    figure, unit = float(value), 0
    while figure >= 1024 and unit < 4:
        figure, unit = figure / 1024, unit + 1
    return f"{value} B" if unit == 0 else f"{figure:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[unit - 1]}"


def _utc(value: datetime | date | str) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value.astimezone(UTC)


def _time(value: datetime | date | str | None, form: str) -> Markup:
    if value is None:
        return Markup("")
    moment = _utc(value)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%Y-%m-%d %H:%M:%S"), moment.strftime(form)
    )


def moment(value: datetime | str | None) -> Markup:
    """2026-11-23 20:15, in UTC, with the machine-readable time around it."""
    return _time(value, "%Y-%m-%d %H:%M")


def clock(value: datetime | str | None) -> Markup:
    """20:15:09, for rows that stand under their day."""
    return _time(value, "%H:%M:%S")


def day(value: datetime | date | str | None) -> Markup:
    """Mon 23 Nov 2026."""
    return _time(value, "%a %-d %b %Y")


def span(value: timedelta) -> str:
    """30 s, 1 h, 1 d 12 h: the parts that are not zero."""
    seconds = int(value.total_seconds())
    parts = ((seconds // 86_400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def elapsed(value: timedelta) -> str:
    """Time that something took: 240 ms, 3.2 s, then as span says."""
    seconds = max(value.total_seconds(), 0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else span(value)


def short_id(value: UUID | str | None) -> str:
    """The last characters of a UUIDv7: its first ones are the time, and alike in neighbours."""
    return "" if value is None else f"\u2026{str(value)[-8:]}"


def details(value: dict[str, Any]) -> str:
    """A flat object as `name: value` pairs."""
    return ", ".join(
        f"{name}: {item if isinstance(item, str) else orjson.dumps(item).decode()}" for name, item in value.items()
    )


def json_attribute(value: object) -> str:
    """For data attributes; the template escapes it."""
    return orjson.dumps(value).decode()


FILTERS = {
    "tokens": tokens,
    "signed": signed,
    "usd": usd,
    "size": size,
    "moment": moment,
    "clock": clock,
    "day": day,
    "span": span,
    "elapsed": elapsed,
    "short_id": short_id,
    "details": details,
    "json_attribute": json_attribute,
}
