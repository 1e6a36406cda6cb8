"""The model of the runner has no bad life; with a rule left out it has, and the search finds the shortest."""

import pytest

from tests.conftest import LONG
from tests.workflows.proof.model import RULES, Limits, Rules, explore

SMALL = {
    "a worker dies": Limits(deaths=1, repeats=0, leases=3),
    "an answer is lost": Limits(deaths=0, repeats=1, leases=3),
    "one worker, many leases": Limits(workers=1, deaths=0, repeats=1, pauses=1, leases=4),
    "a join gives up": Limits(deaths=1, repeats=0, leases=3, joined=True),
    "a join gives up, and an answer is lost": Limits(deaths=0, repeats=1, leases=3, joined=True),
}
LARGE = {"all of it": Limits(deaths=1, repeats=1, leases=3), "more leases": Limits(deaths=1, repeats=0, leases=4)}


@pytest.mark.parametrize("limits", SMALL | LARGE if LONG else SMALL)
def test_no_life_breaks_anything(limits: str) -> None:
    found = explore(limits=(SMALL | LARGE)[limits])
    assert found.broken == (), found.life
    assert found.ends >= {"running", "paused", "succeeded", "cancelled"}
    print(f"{limits}: {found.states} states")


BROKEN = {
    "fence": "a step of an execution that is cancelled was committed",
    "cancel_empties_queue": "something is queued of an execution that has ended",
    "cancel_stops_timers": "a timer is left of an execution that has ended",
    "cancel_releases": "a hold is open of an execution that has ended",
    "finish_locks": "a step of an execution that is cancelled was committed",
    "reclaim_frees": "a lease that was taken away is still there",
    "reclaim_releases": "a hold is open for a lease that nobody has",
    "reclaim_waits_for_admission": "a hold is open for a lease that nobody has",
    "reclaim_minds_pause": "a step of a paused execution can be claimed",
    "resume_queues_ready": "a running execution in which nothing can happen",
    "pause_empties_queue": "a step of a paused execution can be claimed",
    "advance_minds_pause": "a step of a paused execution can be claimed",
    "stale_releases": "a hold is open for a lease that nobody has",
    "join_empties_queue": "a step that was given up is queued",
    "join_stops_timers": "a timer is left of a step that was given up",
    "join_releases": "a hold is open of a step that was given up",
}


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_the_search_finds_what_breaks(rule: str) -> None:
    found = explore(Rules(**{rule: False}), Limits(leases=3, repeats=0, joined=rule.startswith("join_")))
    assert BROKEN[rule] in found.broken, found.life
    assert len(found.life) <= 6


@pytest.mark.parametrize("rule", ["fence", "finish_locks"])
def test_without_what_keeps_outcomes_apart_a_step_is_committed_twice(rule: str) -> None:
    twice = "a committed step was committed again"
    found = explore(Rules(**{rule: False}), Limits(leases=3, repeats=0, pauses=0, cancels=0), wanted=twice)
    assert twice in found.broken
