"""What calls for bids promise (009): whose bid is read, who gets the work, what becomes of the call and of its step."""

import json
from typing import Any

from tests.isolation.promises import Case
from tests.isolation.promises_of_agents import BUDGET, STEP, lease, told
from tests.isolation.promises_of_runner import change

OF = "run_id = '{turning}' and n = 1"
CALL = f"(select %s from contract_calls where tenant_id = '{{a}}' and {OF})"
ITS = f"call_id = (select id from contract_calls where tenant_id = '{{a}}' and {OF})"
BID = f"(select %s from contract_bids where tenant_id = '{{a}}' and {ITS} and plan is distinct from 'other')"
OTHER = f"(select %s from contract_bids where tenant_id = '{{a}}' and {ITS} and plan = 'other')"
BEGIN = f"select vanilla.begin_run({lease()}, 'x', '{{}}') ->> 'state'"
GOES_ON = "= (working)"
WAITS = told("waiting", wait={"kind": "agents"})
STILL_OPEN = STEP % ("status = 'open' and result ->> 'text' = '{word}'", "turning", 1)
NOBODY = STEP % ("status = 'failed' and result ->> 'error' = 'Nobody who bid could do it.'", "turning", 1)
BIDDERS = json.dumps({"contract": {"bidders": [{"agent": "{word}-helper-0"}], "rule": "score", "most_tokens": 70, "accept": {"type": "object"}}})  # fmt: skip


def given(state: str, *more: str, call: str = "open", closed: str = "null") -> str:
    """The step, its call and its only bid, before whoever has the step goes on."""
    made = (
        change("agent_run_steps", "kind = 'contract', status = 'open', finished_at = null", "run_id = '{turning}' and n = 1"),
        change("contract_calls", f"state = '{call}', closed_at = {closed}", OF),
        change("contract_bids", f"state = '{state}'", ITS),
    )  # fmt: skip
    return "; ".join((*made, *more))


def bid_ended(state: str = "completed", **said: Any) -> str:
    output = json.dumps({"json": said})
    ended = f"state = '{state}', stop_reason = '{'done' if state == 'completed' else 'canceled'}', finished_at = now()"
    return change("agent_runs", f"{ended}, output = '{output}'", "id = '{asked}'")


def terms(values: str) -> str:
    return change("contract_calls", values, OF)


def other_bid(state: str, price: int, score: float = 1) -> str:
    return (
        "insert into contract_bids (tenant_id, call_id, user_id, agent_id, version, state, price_tokens, score, plan)"
        f" select tenant_id, call_id, user_id, agent_id, version, '{state}', {price}, {score}, 'other'"
        f" from contract_bids where tenant_id = '{{a}}' and {ITS} limit 1"
    )


def judged(state: str, ago: str = "1 day", agent: str = "{helper}") -> str:
    """Work of an agent that ended before, in a call of another run."""
    decided = f"decided_at = vanilla.clock() - interval '{ago}'"
    done = f"state = '{state}', agent_id = '{agent}', version = 1, {decided}"
    return change("contract_bids", done, "run_id = '{others_asked}'")


WORKS = change("contract_bids", "work_run_id = run_id", ITS)
ACCEPT = """accept = '{"type": "object", "required": ["colour"]}'"""

CASES = [
    # bids
    Case("runtime", BEGIN, GOES_ON, given("asked"), then=f"{BID % 'state'} = 'asked' and {CALL % 'state'} = 'open' and {STILL_OPEN}"),
    Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9, eta_s=3, plan="p")),
         then=" and ".join((BID % "state = 'accepted' and price_tokens = 9 and eta_s = 3 and plan = 'p' and score = 18 and decided_at is not null and work_run_id is null",
              CALL % "state = 'awarded' and closed_at is null", STILL_OPEN))),
    *[Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(**said), terms("most_tokens = 9")), then=f"{BID % 'state'} = 'refused' and {CALL % 'state'} = 'failed' and {CALL % 'closed_at is not null'} and {NOBODY}")
      for said in ({"price_tokens": 10}, {"price_tokens": 0}, {"price_tokens": "x"}, {}, {"state": "failed", "price_tokens": 5})],
    Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9), terms("most_tokens = 9")), then=f"{BID % 'state'} = 'accepted'"),
    Case("runtime", BEGIN, GOES_ON, given("late", bid_ended("canceled")), then=f"{BID % 'state'} = 'late' and {NOBODY}"),
    Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended("canceled")), then=f"{BID % 'state'} = 'refused' and {NOBODY}"),
    Case("runtime", BEGIN, GOES_ON, given("late", bid_ended(price_tokens=9)), then=f"{BID % 'state'} = 'accepted'"),
    # of those that stand
    Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9), other_bid("rejected", 5)), then=f"{BID % 'state'} = 'rejected' and {OTHER % 'state'} = 'accepted'"),
    Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9), other_bid("rejected", 5, 99), terms("rule = 'score'")), then=f"{BID % 'state'} = 'accepted' and {OTHER % 'state'} = 'rejected'"),
    *[Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9), other_bid(state, 5)), then=f"{BID % 'state'} = 'accepted' and {OTHER % 'state'} = '{state}'") for state in ("failed", "refused")],
    Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9), other_bid("failed", 5), change("resource_allocations", "budget_tokens = held_tokens + spent_tokens + carved_tokens + wrap_up_tokens + 8", "id = '{turn_budget}'")),
         then=f"{BID % 'state'} = 'rejected' and {NOBODY}"),
    # by what became of the bidder's work before
    *[Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9), judged(*before)), then=BID % f"score = {score}")
      for before, score in ((("done",), 13.5), (("failed",), 27), (("rejected",), 18), (("failed", "31 days"), 18), (("failed", "1 day", "{agent}"), 18))],
    # work
    *[Case("runtime", BEGIN, GOES_ON, given("accepted", WORKS, bid_ended(colour="x"), terms(accept), call="awarded"),
           then=" and ".join((BID % "state = 'done' and price_tokens = 7", CALL % "state = 'done' and closed_at is not null",
                STEP % ("status = 'done' and child_run_id = '{asked}' and result #>> '{output,json,colour}' = 'x' and result ->> 'price_tokens' = '7' and finished_at is not null", "turning", 1))))
      for accept in ("accept = null", ACCEPT)],
    *[Case("runtime", BEGIN, GOES_ON, given("accepted", WORKS, bid_ended(**said), terms(ACCEPT), call="awarded"), then=f"{BID % 'state'} = 'failed' and {CALL % 'state'} = 'failed' and {NOBODY}")
      for said in ({"size": 1}, {"state": "failed", "colour": "x"})],
    Case("runtime", BEGIN, GOES_ON, given("accepted", WORKS, bid_ended(size=1), terms(ACCEPT), other_bid("rejected", 9), call="awarded"),
         then=f"{BID % 'state'} = 'failed' and {OTHER % 'state'} = 'accepted' and {CALL % 'state'} = 'awarded' and {STILL_OPEN}"),
    *[Case("runtime", BEGIN, GOES_ON, given("accepted", *more, call="awarded"), then=f"{BID % 'state'} = 'accepted' and {STILL_OPEN}") for more in ((), (WORKS,))],
    Case("runtime", BEGIN, GOES_ON, given("asked", bid_ended(price_tokens=9), change("agent_run_steps", "status = 'done', finished_at = now()", "run_id = '{turning}' and n = 1")), then=f"{BID % 'state'} = 'asked'"),
    # puts out and starts
    Case("runtime", WAITS, "= (0)", given("accepted", call="awarded"), then=" and ".join((
        BID % "state = 'accepted' and work_run_id is not null", CALL % "state = 'awarded'",
        f"(select r.parent_run_id = '{{turning}}' and r.agent_id = '{{helper}}' and a.budget_tokens = 7 and r.input ->> 'message' = '{{word}}' from agent_runs r join resource_allocations a on a.tenant_id = r.tenant_id and a.id = r.allocation_id where r.tenant_id = '{{a}}' and r.id = {BID % 'work_run_id'})",
        BUDGET % ("carved_tokens = 7", "turn_budget")))),
    Case("runtime", WAITS, given=given("accepted", WORKS, call="awarded"), then=f"{BID % 'work_run_id'} = '{{asked}}' and {BUDGET % ('carved_tokens', 'turn_budget')} = 0"),
]  # fmt: skip
