"""Every strategy gives what its definition says, against an oracle that was written apart from it."""

import asyncio
import math
from collections import Counter
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import LONG
from tests.routing import oracle
from tests.routing.oracle import Candidate

MANY = settings(
    max_examples=400 if LONG else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WITHOUT_CURSOR = [
    "least_loaded", "power_of_two_choices", "health_based", "capacity_aware", "sticky", "affinity", "region", "latency",
    "cost", "headroom", "fallback",
]  # fmt: skip
IDS = [f"{letter}{number}" for letter in "aBz" for number in range(4)] + ["é", "w-10", "w-9"]
LABELS = st.dictionaries(
    st.sampled_from(["gpu", "zone", "size"]), st.sampled_from(["a", "b", 1, 2, 5, True]), max_size=3
)
RULES = st.dictionaries(
    st.sampled_from(["gpu", "zone"]),
    st.one_of(
        st.sampled_from(["a", 1, True]),
        st.lists(st.sampled_from(["a", "b", 2]), max_size=2),
        st.fixed_dictionaries(
            {},
            optional={
                "not": st.sampled_from(["a", ["a", 1]]),
                "exists": st.booleans(),
                "min": st.just(2),
                "max": st.just(4),
            },
        ),
    ),
    max_size=2,
)
SMALL = st.integers(0, 9)
REGIONS = st.sampled_from(["eu", "us", "asia"])
CANDIDATE = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.integers(1, 5), "capacity": st.integers(1, 9), "in_flight": SMALL, "health": st.integers(0, 100),
        "status": st.sampled_from(["active"] * 5 + ["draining", "registered"]), "breaker": st.sampled_from(["closed", "open"]),
        "pools": st.lists(st.sampled_from(["default", "gpu"]), min_size=1, max_size=2, unique=True), "labels": LABELS,
        "region": REGIONS, "latency_ms": st.integers(1, 900), "input_price": SMALL, "output_price": SMALL,
        "quality": SMALL, "rpm_left": SMALL, "rpm_limit": st.integers(1, 9), "tpm_left": SMALL, "tpm_limit": st.integers(1, 9),
        "backlog": st.integers(0, 2), "cost": st.integers(1, 9),
    },
)  # fmt: skip
CANDIDATES = st.lists(st.sampled_from(IDS), unique=True, max_size=8).flatmap(
    lambda ids: st.tuples(*(CANDIDATE.map(lambda c, i=i: {"id": i} | c) for i in ids)).map(list)  # type: ignore[misc]
)
WISHES = st.lists(st.fixed_dictionaries({"match": RULES}, optional={"weight": st.integers(1, 9)}), max_size=3)
CONTEXT = st.fixed_dictionaries(
    {},
    optional={
        "pool": st.sampled_from(["default", "gpu"]), "exclude": st.lists(st.sampled_from(IDS), max_size=2), "require": RULES,
        "prefer": WISHES, "key": st.sampled_from(["", "k", "session-1", "ключ"]), "region": REGIONS, "cost": st.integers(1, 3),
        "input_tokens": SMALL, "output_tokens": SMALL, "tokens": st.integers(0, 5),
    },
)  # fmt: skip
SHARED = {"min_health": st.sampled_from([0, 60, 90]), "panic_percent": st.sampled_from([0, 50, 100]), "require": RULES}
CONFIG: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "capacity_aware": {"fit": st.sampled_from(["worst", "best"])},
    "affinity": {"prefer": WISHES},
    "region": {
        "nearest": st.dictionaries(REGIONS, st.lists(REGIONS, unique=True, max_size=2)),
        "residency": st.booleans(),
    },
    "cost": {"min_quality": SMALL, "max_latency_ms": st.integers(100, 900)},
}


def config_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    if kind == "fallback":
        order = {"order": st.permutations(IDS).map(lambda ids: ids[:9])}
        return st.fixed_dictionaries(order, optional=SHARED)
    return st.fixed_dictionaries({}, optional=SHARED | CONFIG.get(kind, {}))


class Router:
    """vanilla.route in a loop of its own, for Hypothesis calls what is not a coroutine."""

    def __init__(self, connection: asyncpg.Connection, loop: asyncio.AbstractEventLoop):
        self.connection, self.loop = connection, loop

    def __call__(
        self, kind: str, config: dict[str, Any], candidates: list[Candidate], context: dict[str, Any], seed: int = 0
    ) -> dict[str, Any]:
        asked = self.connection.fetchval(
            "select vanilla.route($1, $2, $3, $4)", {"kind": kind, "config": config}, candidates, context, seed
        )
        return asyncio.run_coroutine_threadsafe(asked, self.loop).result(60)


async def hypothesize(operator: asyncpg.Connection, body: Any) -> None:
    """Runs a test of Hypothesis in a thread, with a router on this loop's connection."""
    await asyncio.to_thread(body, Router(operator, asyncio.get_running_loop()))


def same_order(kind: str, config: dict, candidates: list[Candidate], context: dict, seed: int, found: dict) -> None:
    eligible, refused, panic = oracle.judge(kind, config, candidates, context)
    assert {r["id"]: r["reason"] for r in found["refused"]} == refused
    assert found["panic"] == panic
    expected = oracle.order(kind, config, eligible, context, seed)
    assert [r["id"] for r in found["ranking"]] == expected
    assert found["chosen"] == (expected[0] if expected else None)
    if kind != "power_of_two_choices":
        by_id = {c["id"]: c for c in eligible}
        for row in found["ranking"]:
            right = oracle.score(kind, config, by_id[row["id"]], context, seed)
            assert math.isclose(row["score"], right, rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize("kind", WITHOUT_CURSOR)
async def test_a_strategy_orders_as_it_is_defined(operator: asyncpg.Connection, kind: str) -> None:
    def run(route: Router) -> None:
        @MANY
        @given(config_of(kind), CANDIDATES, CONTEXT, st.integers(0, 2**48))
        def agrees(config: dict, candidates: list[Candidate], context: dict, seed: int) -> None:
            found = route(kind, config, candidates, context, seed)
            same_order(kind, config, candidates, context, seed, found)
            assert route(kind, config, candidates, context, seed) == found

        agrees()

    await hypothesize(operator, run)


async def test_random_weights_draw_each_as_often_as_its_weight_says(operator: asyncpg.Connection) -> None:
    def run(route: Router) -> None:
        @MANY
        @given(config_of("weighted"), CANDIDATES, CONTEXT, st.integers(0, 2**48))
        def agrees(config: dict, candidates: list[Candidate], context: dict, seed: int) -> None:
            config = config | {"mode": "random"}
            same_order(
                "weighted", config, candidates, context, seed, route("weighted", config, candidates, context, seed)
            )

        agrees()

    await hypothesize(operator, run)
    candidates = [{"id": "a", "weight": 1}, {"id": "b", "weight": 3}]
    rows = await operator.fetch(
        'select vanilla.route(\'{"kind": "weighted", "config": {"mode": "random"}}\', $1, \'{}\', n) ->> \'chosen\' as id'
        " from generate_series(1, 4000) n",
        candidates,
    )
    share = Counter(row["id"] for row in rows)["b"] / 4000
    assert 0.72 < share < 0.78  # 0.75, and four standard deviations


@pytest.mark.parametrize("kind", ["round_robin", "weighted", "fair_share"])
async def test_a_cursor_carries_the_turn_from_one_choice_to_the_next(operator: asyncpg.Connection, kind: str) -> None:
    def run(route: Router) -> None:
        @MANY
        @given(
            st.lists(CANDIDATES, min_size=1, max_size=3),
            st.fixed_dictionaries({}, optional={"quantum": st.integers(1, 7)} if kind == "fair_share" else {}),
        )
        def agrees(rounds: list[list[Candidate]], config: dict) -> None:
            cursor: Any = None
            # candidates come and go between the choices
            for candidates in [each for each in rounds for _ in range(4)]:
                context = {} if cursor is None else {"cursor": cursor}
                found = route(kind, config, candidates, context)
                eligible, _, _ = oracle.judge(kind, config, candidates, context)
                if not eligible:
                    assert (found["chosen"], found["cursor"]) == (None, cursor)
                    continue
                if kind == "round_robin":
                    expected = oracle.ring([c["id"] for c in eligible], cursor, behind=True)
                    assert [r["id"] for r in found["ranking"]] == expected
                    chosen, cursor = expected[0], expected[0]
                elif kind == "weighted":
                    chosen, cursor = oracle.smooth(eligible, cursor or {})
                else:
                    chosen, cursor = oracle.deficit_round_robin(eligible, config.get("quantum", 1), cursor or {})
                assert (found["chosen"], found["cursor"]) == (chosen, cursor)

        agrees()

    await hypothesize(operator, run)


async def test_a_hard_key_waits_for_its_worker_and_moves_on_when_that_one_takes_no_more(
    operator: asyncpg.Connection,
) -> None:
    def run(route: Router) -> None:
        @MANY
        @given(CANDIDATES, st.sampled_from(["k", "session-1"]))
        def agrees(candidates: list[Candidate], key: str) -> None:
            config, context = {"mode": "hard"}, {"key": key}
            eligible, refused, _ = oracle.judge("sticky", config, candidates, context)
            there = [c for c in candidates if refused.get(c["id"]) in (None, "health", "circuit")]
            first = max(there, key=lambda c: oracle.score("sticky", {}, c, context, 0), default=None)
            found = route("sticky", config, candidates, context)
            if first is None or first in eligible:
                assert (found["chosen"], found["waits_for"]) == (first and first["id"], None)
            else:
                assert (found["chosen"], found["waits_for"]) == (None, first["id"])

        agrees()

    await hypothesize(operator, run)


async def test_few_keys_move_when_a_worker_leaves(operator: asyncpg.Connection) -> None:
    chosen = (
        "select array_agg(vanilla.route('{\"kind\": \"sticky\"}', $1, jsonb_build_object('key', 'key ' || n)) ->> 'chosen' order by n)"
        " from generate_series(1, 500) n"
    )
    workers = [{"id": f"w{n}"} for n in range(5)]
    before, after = await operator.fetchval(chosen, workers), await operator.fetchval(chosen, workers[1:])
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "w0")
    assert set(before) == {f"w{n}" for n in range(5)}


async def test_shares_of_a_fair_strategy_are_as_the_weights_and_nobody_is_idle(operator: asyncpg.Connection) -> None:
    queues = [
        {"id": "big", "weight": 3, "cost": 7},
        {"id": "small", "weight": 1, "cost": 2},
        {"id": "gone", "backlog": 0},
    ]
    cursor, served = None, Counter[str]()
    for _ in range(200):
        found = await operator.fetchval(
            'select vanilla.route(\'{"kind": "fair_share", "config": {"quantum": 5}}\', $1, $2)',
            queues,
            {"cursor": cursor} if cursor else {},
        )
        cursor = found["cursor"]
        served[found["chosen"]] += next(q["cost"] for q in queues if q["id"] == found["chosen"])
    assert abs(served["big"] / served["small"] - 3) < 0.2
    assert served["gone"] == 0


@pytest.mark.parametrize(
    ("strategy", "candidates", "context"),
    [
        ({"kind": "odd"}, [], {}),
        ({}, [], {}),
        ({"kind": "sticky", "config": []}, [], {}),
        ({"kind": "sticky"}, {}, {}),
        ({"kind": "sticky"}, [], []),
        ({"kind": "sticky"}, ["a"], {}),
        ({"kind": "sticky"}, [{"id": 1}], {}),
        ({"kind": "sticky"}, [{"id": "a"}, {"id": "a"}], {}),
        ({"kind": "sticky"}, [{"id": str(n)} for n in range(1001)], {}),
    ],
)
async def test_what_is_no_question_is_refused(
    operator: asyncpg.Connection, strategy: Any, candidates: Any, context: Any
) -> None:
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await operator.fetchval("select vanilla.route($1, $2, $3)", strategy, candidates, context)
    assert refusal.value.sqlstate == "VS400"


@pytest.mark.parametrize("kind", [*WITHOUT_CURSOR, "round_robin", "weighted", "fair_share"])
async def test_figures_that_are_none_are_passed_over(operator: asyncpg.Connection, kind: str) -> None:
    odd: list[Any] = ["x", None, [], {}, True, -1, 1e300]
    names = ["weight", "capacity", "in_flight", "health", "latency_ms", "input_price", "output_price", "labels", "region",
             "rpm_left", "rpm_limit", "tpm_left", "cost", "backlog", "pools", "quality", "breaker", "status"]  # fmt: skip
    context = {"cursor": "x", "exclude": 5, "prefer": "x", "require": {}, "key": None, "region": 5, "input_tokens": "x"}
    for value in odd:
        candidates = [{"id": "plain"}, {"id": "odd"} | dict.fromkeys(names, value)]
        found = await operator.fetchval(
            "select vanilla.route($1, $2, $3)",
            {"kind": kind, "config": {"order": ["plain", "odd"]}},
            candidates,
            context,
        )
        assert len(found["ranking"]) + len(found["refused"]) == 2
