"""The node llm, against a real sandbox: what is asked, what comes back, and how its calls are told."""

import pytest

from tests.providers.provider_support import answering, raw_provider
from tests.workflows.execution.conftest import Compute
from tests.workflows.execution.support import EXECUTION, TENANT, WORKER, Admissions, script
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.providers.sandbox import SandboxServer

SAY = {"kind": "llm", "model": "sandbox-small", "prompt": "{{ input.say }}"}
SHAPE = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 3}},
    "required": ["n"],
    "additionalProperties": False,
}


async def test_an_llm_gives_text_and_usage_and_its_settlement(compute: Compute, admissions: Admissions) -> None:
    outcome = await compute(SAY, input={"say": "hello"})
    assert outcome.fields["output"] == {
        "text": 'You said: "hello"',
        "json": None,
        "model": "sandbox-small",
        "usage": {"input_tokens": 9, "output_tokens": 5, "cached_tokens": 0, "reasoning_tokens": 0},
    }
    (call,) = outcome.json()["calls"]
    assert set(call) == {"hold_id", "status", "input", "output", "cached", "reasoning", "estimated", "error_code",
                         "latency_ms", "first_token_ms"}  # fmt: skip
    assert (call["status"], call["input"], call["output"], call["error_code"]) == ("succeeded", 9, 5, None)
    assert not call["estimated"]
    assert call["latency_ms"] >= 0


async def test_a_call_is_admitted_for_the_lease_of_the_step(compute: Compute, admissions: Admissions) -> None:
    await compute(SAY | {"max_output_tokens": 30}, input={"say": "hello"})
    (asked,) = admissions.asked
    assert len(asked) == 14
    of_step = {"tenant_id": TENANT, "execution_id": EXECUTION, "n": 0, "item": None}
    assert asked[-1] == {"worker": WORKER, "lease": 7, "run_id": None, "wrap_up": False} | of_step
    assert asked[:4] == (None, None, None, "sandbox-small"), "neither a key nor a session"
    assert asked[6] == 30
    assert asked[4] >= asked[5] == 9


async def test_messages_and_options_reach_the_model(compute: Compute, sandbox: SandboxServer) -> None:
    sandbox.counters.reset()
    node = {
        "kind": "llm",
        "model": "sandbox-large",
        "system": "Be {{ input.how }}",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                     {"role": "user", "content": "{{ input.last }}"}],
        "temperature": 0.5,
        "max_output_tokens": 40,
    }  # fmt: skip
    outcome = await compute(node, input={"how": "kind", "last": "the end"})
    assert 'You said: "the end"' in outcome.fields["output"]["text"]
    assert "I read 4 messages" in outcome.fields["output"]["text"]
    last = sandbox.counters.last
    assert last is not None
    assert (last["temperature"], last["max_tokens"], last["model"]) == (0.5, 40, "sandbox-large")


async def test_an_item_of_a_map_calls_its_model(compute: Compute) -> None:
    node = {"kind": "map", "over": "input.l", "item": {"kind": "llm", "model": "sandbox-small", "prompt": "{{ item }}"}}
    outcome = await compute(node, item=0, value="one")
    assert outcome.fields["output"]["text"] == 'You said: "one"'
    assert len(outcome.calls) == 1


async def test_a_schema_makes_the_answer_json(compute: Compute, sandbox: SandboxServer) -> None:
    outcome = await compute(SAY | {"json_schema": SHAPE}, input={"say": "a number"})
    assert outcome.fields["output"]["json"] == {"n": 3}
    last = sandbox.counters.last
    assert last is not None
    assert last["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SHAPE}}


async def test_any_json_will_do_for_the_schema_true(compute: Compute) -> None:
    outcome = await compute(SAY | {"json_schema": True}, input={"say": "a"})
    assert outcome.fields["output"]["json"] == {"reply": "a"}


@pytest.mark.parametrize(
    "reply", ['{"n": 3}', '```json\n{"n": 3}\n```', '```\n{"n": 3}\n```\n'], ids=["plain", "fenced", "no language"]
)
async def test_markdown_around_an_answer_is_no_mismatch(compute: Compute, reply: str) -> None:
    outcome = await compute(SAY | {"json_schema": SHAPE}, input={"say": script(reply=reply)})
    assert outcome.fields["output"]["json"] == {"n": 3}


@pytest.mark.parametrize("reply", ["no json", '{"n": 1}', '{"n": 3', '{"n": NaN}', "", '{"n": 3} and more'])
async def test_an_answer_of_another_shape_fails_and_is_paid(compute: Compute, reply: str) -> None:
    node = SAY | {"json_schema": SHAPE, "retry": {"on": ["schema_mismatch"]}}
    outcome = await compute(node, input={"say": script(reply=reply)})
    assert outcome.code == "schema_mismatch"
    assert outcome.fields["error"]["retryable"]
    assert outcome.fields["error"]["details"]["text"] == reply
    assert [call["status"] for call in outcome.calls] == ["succeeded"]


@pytest.mark.parametrize(
    ("sandbox_says", "code", "retryable", "after", "kind"),
    [
        ({"status": 429, "retry_after": 7}, "rate_limited", True, 7, "upstream_rate_limited"),
        ({"status": 500}, "provider_error", True, None, "upstream_server"),
        ({"status": 503, "retry_after": 3}, "provider_error", True, 3, "upstream_server"),
        ({"status": 504}, "timeout", True, None, "upstream_timeout"),
        ({"status": 401}, "provider_not_ready", False, None, "upstream_authentication"),
        ({"status": 400}, "invalid_request", False, None, "upstream_invalid_request"),
        ({"malformed": True}, "provider_error", True, None, "upstream_malformed"),
        ({"error_after_chunks": 0}, "provider_error", True, None, "upstream_connection"),
    ],
)
async def test_a_provider_that_fails_costs_nothing(
    compute: Compute, sandbox_says, code: str, retryable: bool, after: float | None, kind: str
) -> None:
    outcome = await compute(SAY, input={"say": script(**sandbox_says)})
    assert outcome.code == code
    assert outcome.fields["error"]["retryable"] is retryable
    assert outcome.fields.get("retry_after_s") == after
    (call,) = outcome.calls
    assert (call["status"], call["input"], call["output"], call["error_code"]) == ("failed", 0, 0, kind)


@pytest.mark.parametrize(
    ("refusal", "code", "retryable"),
    [
        (VanillaError("insufficient_tokens", "the wallet cannot pay", {"needed": 5}), "insufficient_tokens", False),
        (VanillaError("model_not_found", "no such model"), "model_not_found", False),
        (VanillaError("limit_reached", "used up", {"retry_after_s": 9}), "limit_reached", False),
        (VanillaError("limit_reached", "busy", {"restriction": "concurrent_executions"}), "limit_reached", True),
        (VanillaError("saturated", "busy", {"retry_after_s": 1}), "saturated", True),
        (VanillaError("database_unavailable", "away"), "saturated", True),
    ],
)
async def test_a_call_that_is_not_admitted_fails_with_its_name(
    compute: Compute, admissions: Admissions, refusal: VanillaError, code: str, retryable: bool
) -> None:
    admissions.refusal = refusal
    outcome = await compute(SAY | {"retry": {"on": []}}, input={"say": "hello"})
    assert outcome.code == code
    assert outcome.fields["error"]["retryable"] is retryable
    assert outcome.fields.get("retry_after_s") == refusal.detail.get("retry_after_s")
    assert outcome.calls == (), "nothing was held"


async def test_a_name_of_ours_can_be_retried_when_the_definition_says_so(
    compute: Compute, admissions: Admissions
) -> None:
    admissions.refusal = VanillaError("limit_reached", "used up")
    outcome = await compute(SAY | {"retry": {"on": ["limit_reached"]}}, input={"say": "hello"})
    assert outcome.fields["error"]["retryable"] is True


async def test_what_cannot_be_sent_is_not_admitted(compute: Compute, admissions: Admissions) -> None:
    outcome = await compute(SAY, input={"say": "a\0b"})
    assert outcome.code == "invalid_request"
    assert admissions.asked == []


async def test_usage_that_is_not_reported_is_estimated(compute: Compute) -> None:
    outcome = await compute(SAY, input={"say": script(reply="12345678", usage="missing")})
    (call,) = outcome.calls
    assert call["estimated"]
    assert call["output"] == 2
    assert call["input"] > 0


async def test_a_provider_whose_key_cannot_be_opened_is_settled(compute: Compute, admissions: Admissions) -> None:
    real = admissions.call

    async def sealed(statement: str, *arguments: object) -> dict[str, object]:
        return await real(statement, *arguments) | {"secret": "AAAA"}

    admissions.call = sealed  # type: ignore[method-assign]
    outcome = await compute(SAY, input={"say": "hello"})
    assert outcome.code == "provider_not_ready"
    assert [(call["status"], call["error_code"]) for call in outcome.calls] == [("failed", "provider_not_ready")]


async def test_an_answer_without_text_is_empty(compute: Compute, admissions: Admissions) -> None:
    async with raw_provider(answering(200, b'{"choices": [{"message": {"content": null, "refusal": "no"}}]}')) as url:
        admissions.kind, admissions.base_url = "custom", url  # type: ignore[assignment]
        outcome = await compute(SAY, input={"say": "hello"})
    assert outcome.fields["output"]["text"] == ""
