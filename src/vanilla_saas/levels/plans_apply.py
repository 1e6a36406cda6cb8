"""What a file of plans would change in a tenant, and the change itself, in the transaction of the caller."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import translated_errors
from vanilla_saas.levels import change_store, store
from vanilla_saas.levels.change_models import Path, PathBody
from vanilla_saas.levels.models import Benefit, FeatureBody, LevelBody, Price, PriceBody, RestrictionBody, Terms
from vanilla_saas.levels.money import money
from vanilla_saas.levels.plans import Plan, PlanFile, PlanPrice
from vanilla_saas.tokens import wallet_store
from vanilla_saas.tokens.wallet_models import LevelPolicyBody

Place = tuple[int | str, ...]
Step = Callable[[asyncpg.Connection, UUID, UUID], Awaitable[object]]


@dataclass(frozen=True)
class Change:
    """One difference; `before` and `after` as people read them, '' for nothing."""

    level: str
    what: str
    before: str
    after: str
    place: Place
    step: Step

    @property
    def row(self) -> dict[str, str]:
        return {"level": self.level, "what": self.what, "before": self.before, "after": self.after}


async def changes(connection: asyncpg.Connection, tenant_id: UUID, file: PlanFile) -> list[Change]:
    """What differs between the file and the tenant's levels, in the order in which it is changed."""
    there = {terms.slug: terms for terms in await store.terms(connection, tenant_id)}
    found: list[Change] = []
    for n, plan in enumerate(file.plans):
        current = there.get(plan.slug)
        policy = await _policy(connection, tenant_id, current)
        found += _level(plan, current, ("levels", n))
        found += _tokens(plan, policy, ("levels", n, "tokens"))
        found += _features(plan, current, ("levels", n, "features"))
        found += _restrictions(plan, current, ("levels", n, "restrictions"))
        found += _prices(plan, current, ("levels", n, "prices"))
        found += _benefits(plan, current, ("levels", n, "benefits"))
    return found + _paths(file, there, await change_store.paths(connection, tenant_id))


async def apply(connection: asyncpg.Connection, tenant_id: UUID, file: PlanFile, found: list[Change]) -> None:
    """Makes the changes; a refusal names the place in the file, and the caller's transaction undoes the rest."""
    ids = {terms.slug: terms.id for terms in await store.terms(connection, tenant_id)}
    for change in found:
        try:
            async with translated_errors():
                made = await change.step(connection, tenant_id, ids.get(change.level, tenant_id))
        except VanillaError as error:
            raise file.error(error.name, change.place, error.message, error.detail, error.hint) from None
        if change.what == "level" and isinstance(made, UUID):
            ids[change.level] = made


async def _policy(connection: asyncpg.Connection, tenant_id: UUID, terms: Terms | None) -> LevelPolicyBody | None:
    if terms is None:
        return None
    row = await wallet_store.level_policy(connection, tenant_id, terms.id)
    return LevelPolicyBody(**{name: row[name] for name in LevelPolicyBody.model_fields})


def _said(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in values.items() if value is not False and value not in (None, "")
    )


def _level(plan: Plan, current: Terms | None, place: Place) -> Iterator[Change]:
    names = ("name", "description", "tier", "is_default")
    after = {name: getattr(plan, name) for name in names}
    before = {name: getattr(current, name) for name in names} if current else {}
    if current and current.is_default:
        after["is_default"] = True  # it steps down when another one is the default
    if before != after or (current and current.status != "active"):
        body = LevelBody(slug=plan.slug, **after | {"is_default": plan.is_default})
        yield Change(plan.slug, "level", _said(before), _said(after), place, _set_level(body))


def _set_level(body: LevelBody) -> Step:
    return lambda connection, tenant, _: store.set_level(connection, tenant, body)


def _tokens(plan: Plan, current: LevelPolicyBody | None, place: Place) -> Iterator[Change]:
    body = plan.tokens
    if body is not None and body != current:
        before = _said(current.model_dump()) if current else ""
        yield Change(plan.slug, "tokens", before, _said(body.model_dump()), place, _set_tokens(body))


def _set_tokens(body: LevelPolicyBody) -> Step:
    return lambda connection, tenant, level: wallet_store.set_level_policy(connection, tenant, level, body)


def _features(plan: Plan, current: Terms | None, place: Place) -> Iterator[Change]:
    if plan.features is None:
        return
    there = {f.feature: f.model_dump(exclude={"id", "feature"}) for f in current.features} if current else {}
    for name, body in plan.features.items():
        if there.get(name) != body.model_dump():
            before, after = _feature(there.get(name)), _feature(body.model_dump())
            yield Change(plan.slug, f"feature {name}", before, after, (*place, name), _set_feature(name, body))
    for name in sorted(there.keys() - plan.features.keys()):
        yield Change(plan.slug, f"feature {name}", _feature(there[name]), "", place, _delete_feature(name))


def _set_feature(name: str, body: FeatureBody) -> Step:
    return lambda connection, tenant, level: store.set_feature(connection, tenant, level, name, body)


def _delete_feature(name: str) -> Step:
    return lambda connection, tenant, level: store.delete_feature(connection, tenant, level, name)


def _feature(values: dict[str, Any] | None) -> str:
    if values is None:
        return ""
    allowed = "off" if not values["enabled"] else "on" if values["limit"] is None else ""
    return ", ".join(filter(None, (allowed, _said({k: v for k, v in values.items() if k != "enabled"}))))


def _restrictions(plan: Plan, current: Terms | None, place: Place) -> Iterator[Change]:
    if plan.restrictions is None:
        return
    there: dict[str, RestrictionBody] = {r.type: r for r in current.restrictions} if current else {}
    for kind, body in plan.restrictions.items():
        before, after = _restriction(there.get(kind)), _restriction(body)
        if before != after:
            yield Change(plan.slug, f"restriction {kind}", before, after, (*place, kind), _restrict(kind, body))
    for gone in sorted(there.keys() - plan.restrictions.keys()):
        yield Change(plan.slug, f"restriction {gone}", _restriction(there[gone]), "", place, _lift(gone))


def _restrict(kind: str, body: RestrictionBody) -> Step:
    return lambda connection, tenant, level: store.set_restriction(connection, tenant, level, kind, body)


def _lift(kind: str) -> Step:
    return lambda connection, tenant, level: store.delete_restriction(connection, tenant, level, kind)


def _restriction(body: RestrictionBody | None) -> str:
    if body is None:
        return ""
    return str(body.amount) if body.patterns is None else ", ".join(body.patterns)


def _prices(plan: Plan, current: Terms | None, place: Place) -> Iterator[Change]:
    if plan.prices is None:
        return
    # of prices that follow each other the first: what is to come was set by hand and is left
    there = {(p.cycle, p.currency): p for p in reversed(current.prices)} if current else {}
    for n, price in enumerate(plan.prices):
        former = there.get((price.cycle, price.currency))
        if former is None or PlanPrice(**former.model_dump(include=set(PlanPrice.model_fields))) != price:
            what, step = (
                f"price {price.cycle} {price.currency}",
                _set_price(PriceBody(**price.model_dump(), replace=True)),
            )
            yield Change(plan.slug, what, _price(former), _price(price), (*place, n), step)
    wanted = {(price.cycle, price.currency) for price in plan.prices}
    for kind, former in there.items():
        if kind not in wanted:
            yield Change(plan.slug, f"price {kind[0]} {kind[1]}", _price(former), "", place, _end_price(former.id))


def _set_price(body: PriceBody) -> Step:
    return lambda connection, tenant, level: store.set_price(connection, tenant, level, body)


def _end_price(price_id: UUID) -> Step:
    return lambda connection, tenant, _: store.end_price(connection, tenant, price_id)


def _price(price: PlanPrice | Price | None) -> str:
    if price is None:
        return ""
    trial = f", {price.trial_days} days and {price.trial_credits} tokens free" if price.trial_days else ""
    return money(price.amount, price.currency) + trial


def _benefits(plan: Plan, current: Terms | None, place: Place) -> Iterator[Change]:
    if plan.benefits is None:
        return
    wanted: list[Benefit] = [Benefit(**benefit.model_dump()) for benefit in plan.benefits]
    there = current.benefits if current else []
    if wanted != there:
        yield Change(plan.slug, "benefits", _lines(there), _lines(wanted), place, _set_benefits(wanted))


def _set_benefits(benefits: list[Benefit]) -> Step:
    return lambda connection, tenant, level: store.set_benefits(connection, tenant, level, benefits)


def _lines(benefits: list[Benefit]) -> str:
    return " | ".join(f"*{benefit.text}" if benefit.highlighted else benefit.text for benefit in benefits)


def _paths(file: PlanFile, there: dict[str, Terms], paths: list[Path]) -> list[Change]:
    """Paths last, when every level is there: those that go before those that come, which might close a circle."""
    gone: list[Change] = []
    come: list[Change] = []
    known = there.keys() | {plan.slug for plan in file.plans}
    for n, plan in enumerate(file.plans):
        if plan.upgrade_paths is None:
            continue
        place: Place = ("levels", n, "upgrade_paths")
        current = {path.to_level: path for path in paths if path.from_level == plan.slug}
        for slug, path in current.items():
            if slug not in plan.upgrade_paths:
                gone.append(Change(plan.slug, f"path to {slug}", _path(path), "", place, _delete_path(slug)))
        for slug, body in plan.upgrade_paths.items():
            if slug not in known or slug == plan.slug:
                raise file.error("invalid_request", (*place, slug), f"{slug} is no other level of the tenant")
            before, after = _path(current.get(slug)), _path(body)
            if before != after:
                come.append(Change(plan.slug, f"path to {slug}", before, after, (*place, slug), _set_path(slug, body)))
    return gone + sorted(come, key=_opens_first)


def _opens_first(change: Change) -> int:
    """What opens a circle comes before what may close one, so that a file that is right is never refused on the way."""
    if change.after.startswith("period_end"):
        return 0
    return 2 if "%" in change.after else 0 if "%" in change.before else 1


def _path(body: PathBody | None) -> str:
    if body is None:
        return ""
    by = "users themselves" if body.self_service else "admins"
    return f"{body.timing}, by {by}" + (f", {body.discount_percent} % less" if body.discount_percent else "")


def _set_path(slug: str, body: PathBody) -> Step:
    async def step(connection: asyncpg.Connection, tenant: UUID, level: UUID) -> None:
        await change_store.set_path(
            connection, tenant, level, await change_store.level_id(connection, tenant, slug), body
        )

    return step


def _delete_path(slug: str) -> Step:
    async def step(connection: asyncpg.Connection, tenant: UUID, level: UUID) -> None:
        await change_store.delete_path(connection, tenant, level, await change_store.level_id(connection, tenant, slug))

    return step
