"""Routing said a second time, in Python: from the table of docs/design/routing.md, not from the SQL.

Where the SQL has closed formulas (turns, rounds), this walks: round robin steps along a ring, deficit round robin visits
one queue after the other, smooth weighted round robin keeps its sums.
"""

import hashlib
import math
from typing import Any

Candidate = dict[str, Any]


def unit(key: str, node: str) -> float:
    """Between 0 and 1: the first 52 bits of a SHA-256, and a half."""
    digest = hashlib.sha256(f"{len(key)}:{key}{node}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2**52


def one_of(value: Any, values: list[Any]) -> bool:
    """As JSON compares: true is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def fits(labels: dict[str, Any], rule: dict[str, Any] | None) -> bool:
    for name, want in (rule or {}).items():
        there, has = name in labels, labels.get(name)
        if isinstance(want, list):
            good = there and one_of(has, want)
        elif isinstance(want, dict):
            unwanted = want.get("not", [])
            good = not (there and "not" in want and one_of(has, unwanted if isinstance(unwanted, list) else [unwanted]))
            good = good and ("exists" not in want or there == want["exists"])
            number = has if isinstance(has, (int, float)) and not isinstance(has, bool) else None
            good = good and ("min" not in want or (number is not None and number >= want["min"]))
            good = good and ("max" not in want or (number is not None and number <= want["max"]))
        else:
            good = there and one_of(has, [want])
        if not good:
            return False
    return True


def refusal(kind: str, config: dict[str, Any], one: Candidate, context: dict[str, Any]) -> str | None:
    """Why a candidate is out, whatever its health."""
    labels = one.get("labels", {})
    if one["id"] in context.get("exclude", []):
        return "tried"
    if one.get("status", "active") not in ("active", "registered"):
        return "status"
    if "pool" in context and "pools" in one and context["pool"] not in one["pools"]:
        return "pool"
    if one.get("breaker") == "open":
        return "circuit"
    if not (fits(labels, context.get("require")) and fits(labels, config.get("require"))):
        return "labels"
    match kind:
        case "region" if config.get("residency") and one.get("region") != context.get("region"):
            return "residency"
        case "capacity_aware" if one.get("in_flight", 0) + context.get("cost", 1) > one.get("capacity", 1):
            return "capacity"
        case "cost" if "input_price" not in one or "output_price" not in one:
            return "price"
        case "cost" if one.get("quality", 0) < config.get("min_quality", -math.inf):
            return "quality"
        case "cost" if one.get("latency_ms", 0) > config.get("max_latency_ms", math.inf):
            return "slow"
        case "headroom" if one.get("rpm_left", 1) < 1 or one.get("tpm_left", math.inf) < context.get("tokens", 0):
            return "headroom"
        case "fair_share" if one.get("backlog", 1) <= 0:
            return "idle"
        case "fallback" if "order" in config and one["id"] not in config["order"]:
            return "unlisted"
    return None


def judge(
    kind: str, config: dict[str, Any], candidates: list[Candidate], context: dict[str, Any]
) -> tuple[list[Candidate], dict[str, str], bool]:
    """Those who are eligible, why the others are not, and whether it is panic."""
    out = {c["id"]: reason for c in candidates if (reason := refusal(kind, config, c, context))}
    rest = [c for c in candidates if c["id"] not in out]
    well = [c for c in rest if c.get("health", 100) > config.get("min_health", 60)]
    panic = len(well) < len(rest) * config.get("panic_percent", 50) / 100
    if panic:
        return rest, out, True
    return well, out | {c["id"]: "health" for c in rest if c not in well}, False


def load(one: Candidate) -> float:
    return float(one.get("in_flight", 0)) / float(one.get("capacity", 1))


def score(kind: str, config: dict[str, Any], one: Candidate, context: dict[str, Any], seed: int) -> float:
    """Of kinds that look at one candidate at a time; the highest comes first."""
    match kind:
        case "weighted":
            return math.log(unit(f"seed {seed}", one["id"])) / one.get("weight", 1)
        case "least_loaded":
            return -load(one)
        case "health_based":
            return one.get("health", 100) * (1 - min(1, load(one)))
        case "capacity_aware":
            free = one.get("capacity", 1) - one.get("in_flight", 0) - context.get("cost", 1)
            return float(-free if config.get("fit") == "best" else free)
        case "sticky":
            return one.get("weight", 1) * (-1 / math.log(unit(context.get("key", ""), one["id"])))
        case "affinity":
            wishes = [*context.get("prefer", []), *config.get("prefer", [])]
            return float(sum(w.get("weight", 1) for w in wishes if fits(one.get("labels", {}), w.get("match"))))
        case "region" if "region" not in context:
            return 0
        case "region":
            near = [context.get("region"), *config.get("nearest", {}).get(context.get("region"), [])]
            return float(-near.index(one.get("region")) if one.get("region") in near else -len(near))
        case "latency":
            known, busy = one.get("latency_ms", 0), one.get("in_flight", 0)
            return -float(known * (busy + 1) if known else 1e12 + busy if busy else 0)
        case "cost":
            price = (
                context.get("input_tokens", 0) * one["input_price"]
                + context.get("output_tokens", 0) * one["output_price"]
            )
            return -price / 1_000_000
        case "headroom":
            shares = [
                one.get(f"{what}_left", 1) / max(1, one.get(f"{what}_limit", one.get(f"{what}_left", 1)))
                for what in ("rpm", "tpm")
            ]
            return float(min(shares))
        case "fallback":
            return -float(config["order"].index(one["id"]) + 1)
    raise AssertionError(kind)


def ring(ids: list[str], start: str | None, *, behind: bool) -> list[str]:
    """The ids in order from `start` on, or from the one behind it."""
    ordered = sorted(ids)
    first = [i for i in ordered if start is None or (i > start if behind else i >= start)]
    return first + [i for i in ordered if i not in first]


def deficit_round_robin(queues: list[Candidate], quantum: float, cursor: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """One item more: who is served, and where the pointer and the deficits are then."""
    by_id = {q["id"]: q for q in queues}
    deficits = {i: cursor.get("deficits", {}).get(i, 0) for i in by_id}
    granted = cursor.get("at") in by_id
    while True:
        for i in ring([*by_id], cursor.get("at"), behind=False):
            if not granted:
                deficits[i] += quantum * by_id[i].get("weight", 1)
            granted = False
            if by_id[i].get("cost", 1) <= deficits[i]:
                deficits[i] -= by_id[i].get("cost", 1)
                return i, {"at": i, "deficits": deficits}


def smooth(candidates: list[Candidate], cursor: dict[str, float]) -> tuple[str, dict[str, float]]:
    """nginx's smooth weighted round robin."""
    sums = {c["id"]: cursor.get(c["id"], 0) + c.get("weight", 1) for c in candidates}
    chosen = min(sums, key=lambda i: (-sums[i], i))
    total = sum(c.get("weight", 1) for c in candidates)
    return chosen, sums | {chosen: sums[chosen] - total}


def order(
    kind: str, config: dict[str, Any], candidates: list[Candidate], context: dict[str, Any], seed: int
) -> list[str]:
    """Ids of eligible candidates, the first one first, of every kind without a cursor."""

    def draw(one: Candidate) -> float:
        return unit(f"seed {seed}", one["id"])

    if kind == "power_of_two_choices":
        drawn = sorted(candidates, key=draw)
        return [c["id"] for c in sorted(drawn[:2], key=load) + drawn[2:]]
    second = load if kind in ("affinity", "region") else lambda one: 0.0
    ranked = sorted(candidates, key=lambda c: (-score(kind, config, c, context, seed), second(c), draw(c)))
    return [c["id"] for c in ranked]
