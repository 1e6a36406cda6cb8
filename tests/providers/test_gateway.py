"""The metered call over real HTTP, with the official SDK as a customer has it."""

import asyncio
import io
import json
from typing import Any

import aiohttp
import openai
import pytest

from tests.conftest import People, Person


def sdk(api: str, person: Person, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{api}/v1", api_key=person.key, max_retries=0, **more)


def scripted(**script: Any) -> list[dict[str, str]]:
    """Messages that tell the sandbox what to do."""
    return [{"role": "user", "content": f"sandbox: {json.dumps(script)}"}]


async def test_a_plain_call_is_answered_and_charged_what_usage_says(api: str, people: People) -> None:
    person = await people.user(balance=1000)
    async with sdk(api, person) as client:
        answer = await client.chat.completions.create(
            model="sandbox-small", messages=[{"role": "user", "content": "Say hello"}], max_tokens=50
        )
    assert answer.choices[0].message.content
    wallet = await people.wallet(person)
    assert wallet["available_tokens"] == 1000 - answer.usage.total_tokens
    assert (wallet["reserved_tokens"], wallet["borrowed_tokens"]) == (0, 0)
    row = await people.operator.fetchrow("select * from ai_executions where user_id = $1", person.identity.user_id)
    assert (row["status"], row["charged_tokens"]) == ("succeeded", answer.usage.total_tokens)


async def test_a_streamed_call_has_usage_in_the_stream_and_the_wallet_is_charged_when_done_is_read(
    api: str, people: People
) -> None:
    person = await people.user(balance=1000)
    async with sdk(api, person) as client:
        stream = await client.chat.completions.create(
            model="sandbox-small",
            messages=[{"role": "user", "content": "Tell me a story"}],
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    usage = chunks[-1].usage
    assert (await people.wallet(person))["available_tokens"] == 1000 - usage.total_tokens


async def test_two_hundred_calls_at_once_on_a_wallet_that_affords_ten(api: str, people: People) -> None:
    person = await people.user()
    async with sdk(api, person) as client:
        messages = scripted(completion_tokens=40, latency_ms=300)
        probe = await client.chat.completions.create(model="sandbox-small", messages=messages, max_tokens=40)
        cost = probe.usage.total_tokens
        await people.set_balance(person, 10 * cost)

        async def call() -> str:
            try:
                await client.chat.completions.create(model="sandbox-small", messages=messages, max_tokens=40)
            except openai.APIStatusError as error:
                return f"{error.status_code} {error.body['code']}"
            return "answered"

        outcomes = await asyncio.gather(*(call() for _ in range(200)))
    assert (outcomes.count("answered"), outcomes.count("402 insufficient_tokens")) == (10, 190)
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"], wallet["borrowed_tokens"]) == (0, 0, 0)


async def test_an_answer_above_the_reservation_is_debt_and_admits_nothing_further(api: str, people: People) -> None:
    person = await people.user()
    async with sdk(api, person) as client:
        await people.set_balance(person, 100)
        over = scripted(completion_tokens=500, ignore_max_tokens=True)
        answer = await client.chat.completions.create(model="sandbox-small", messages=over, max_tokens=10)
        wallet = await people.wallet(person)
        assert wallet["available_tokens"] == 0
        assert wallet["borrowed_tokens"] == answer.usage.total_tokens - 100
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="sandbox-small", messages=over, max_tokens=1)
        assert refused.value.status_code == 402
    kinds = await people.operator.fetch(
        "select direction from user_token_ledger where user_id = $1 order by seq desc limit 2", person.identity.user_id
    )
    assert [k["direction"] for k in kinds] == ["debt", "settle"]


@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        ({"status": 500}, 502, openai.InternalServerError),  # the provider failed
        ({"status": 401}, 502, openai.InternalServerError),  # the operator's key is wrong, not the customer's
        ({"status": 429, "retry_after": 7}, 429, openai.RateLimitError),
        ({"status": 400}, 400, openai.BadRequestError),  # the provider's own words pass
        ({"malformed": True}, 502, openai.InternalServerError),
    ],
)
async def test_a_call_that_brought_no_answer_costs_nothing(
    api: str, people: People, script: dict[str, Any], status: int, error: type[openai.APIStatusError]
) -> None:
    person = await people.user(balance=5000)
    async with sdk(api, person) as client:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(model="sandbox-small", messages=scripted(**script), max_tokens=10)
    assert raised.value.status_code == status
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (5000, 0)
    row = await people.operator.fetchrow("select * from ai_executions where user_id = $1", person.identity.user_id)
    assert (row["status"], row["charged_tokens"]) == ("failed", 0)


async def test_a_stream_that_dies_is_charged_what_was_delivered(api: str, people: People) -> None:
    person = await people.user(balance=5000)
    async with sdk(api, person) as client:
        stream = await client.chat.completions.create(
            model="sandbox-small",
            messages=scripted(reply="one two three four five six seven eight nine ten", error_after_chunks=4),
            max_tokens=100,
            stream=True,
        )
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
    row = await people.operator.fetchrow("select * from ai_executions where user_id = $1", person.identity.user_id)
    assert (row["status"], row["usage_estimated"]) == ("failed", True)
    assert 0 < row["output_tokens"] <= 10
    wallet = await people.wallet(person)
    assert wallet["available_tokens"] == 5000 - row["charged_tokens"]
    assert wallet["reserved_tokens"] == 0


async def test_a_client_that_leaves_pays_for_what_was_generated(api: str, people: People) -> None:
    person = await people.user(balance=5000)
    body = {
        "model": "sandbox-small",
        "stream": True,
        "max_tokens": 1000,
        "messages": scripted(reply=" ".join(["word"] * 500), chunk_latency_ms=20),
    }
    async with aiohttp.ClientSession() as session:
        response = await session.post(f"{api}/v1/chat/completions", json=body, headers=person.headers)
        for _ in range(5):
            await response.content.readline()
        response.close()
    row = await eventually(
        lambda: people.operator.fetchrow("select * from ai_executions where user_id = $1", person.identity.user_id)
    )
    assert (row["status"], row["error_code"]) == ("cancelled", "client_disconnected")
    assert 0 < row["output_tokens"] < 400
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (5000 - row["charged_tokens"], 0)


async def eventually(ask: Any, seconds: float = 10) -> Any:
    """The first answer that is not empty, within a deadline."""
    end = asyncio.get_running_loop().time() + seconds
    while not (found := await ask()):
        assert asyncio.get_running_loop().time() < end, "it did not happen in time"
        await asyncio.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"max_tokens": -1}, 400, "invalid_request"),
        ({"max_tokens": 10**12}, 400, "invalid_request"),
        ({"max_tokens": 9000}, 400, "invalid_request"),  # above the model's own limit
        ({"max_tokens": "ten"}, 400, "invalid_request"),
        ({"model": "no-such-model"}, 404, "model_not_found"),
        ({"model": "gpt-4o-mini"}, 424, "provider_not_ready"),  # no key yet
        ({"messages": []}, 400, "invalid_request"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, 400, "invalid_request"),
        ({"n": 0}, 400, "invalid_request"),
        ({"user": "somebody"}, 403, "forbidden"),  # the key has no act_as
        ({"service_tier": "priority"}, 400, "unsupported_parameter"),
    ],
)
async def test_bad_requests_are_refused_in_openais_words_and_cost_nothing(
    http: aiohttp.ClientSession, people: People, change: dict[str, Any], status: int, code: str
) -> None:
    person = await people.user(balance=5000)
    body = {"model": "sandbox-small", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]} | change
    async with http.post("/v1/chat/completions", json=body, headers=person.headers) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (status, code), error
    assert set(error) >= {"message", "type", "param", "code"}
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"]) == (5000, 0)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": 1e999}'])
async def test_a_body_that_is_not_a_json_object_is_refused(
    http: aiohttp.ClientSession, people: People, raw: bytes
) -> None:
    person = await people.user()
    async with http.post("/v1/chat/completions", data=raw, headers=person.headers) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] in ("invalid_json", "invalid_request")


async def test_an_oversize_body_is_refused_before_it_is_read(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user()
    async with http.post("/v1/chat/completions", data=io.BytesIO(b" " * (5 * 2**20)), headers=person.headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer vsk_wrong", "Basic abc", "Bearer " + "x" * 5000])
async def test_a_wrong_key_is_an_authentication_error(http: aiohttp.ClientSession, header: str) -> None:
    headers = {"authorization": header} if header else {}
    async with http.post("/v1/chat/completions", json={"model": "m", "messages": [{}]}, headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (401, "authentication_failed")


async def test_a_revoked_key_is_refused_at_the_next_call(api: str, people: People) -> None:
    person = await people.user()
    async with sdk(api, person) as client:
        await client.models.list()
        await people.operator.execute("select revoke_api_key($1)", person.key_id)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_key_with_act_as_names_who_pays_and_makes_them_once(api: str, people: People) -> None:
    admin = await people.user("admin", scopes=["chat", "act_as:create"])
    payer = f"customer-{admin.identity.user_id}"
    async with sdk(api, admin) as client:
        for _ in range(2):
            await client.chat.completions.create(
                model="sandbox-small", messages=[{"role": "user", "content": "hi"}], max_tokens=5, user=payer
            )
    row = await people.operator.fetchrow(
        "select u.id, w.spent_tokens, w.available_tokens from users u join user_token_wallets w on w.user_id = u.id"
        " where u.external_id = $1",
        payer,
    )
    assert row["spent_tokens"] > 0
    assert row["available_tokens"] + row["spent_tokens"] == 15000
    assert (await people.wallet(admin))["spent_tokens"] == 0


async def test_without_max_tokens_the_output_is_clamped_to_what_the_wallet_affords(
    http: aiohttp.ClientSession, people: People
) -> None:
    person = await people.user(balance=100)
    body = {"model": "sandbox-small", "messages": scripted(completion_tokens=5000)}
    async with http.post("/v1/chat/completions", json=body, headers=person.headers) as answer:
        assert answer.status == 200, await answer.text()
        parsed = await answer.json()
    assert parsed["choices"][0]["finish_reason"] == "length"
    assert (await people.wallet(person))["available_tokens"] == 100 - parsed["usage"]["total_tokens"] == 0


async def test_the_same_idempotency_key_calls_the_model_once(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=5000)
    body = {"model": "sandbox-small", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    headers = person.headers | {"idempotency-key": "once"}
    statuses = []
    for _ in range(2):
        async with http.post("/v1/chat/completions", json=body, headers=headers) as answer:
            statuses.append((answer.status, (await answer.json()).get("error", {}).get("code")))
    assert statuses == [(200, None), (409, "idempotency_key_reused")]
    count = await people.operator.fetchval(
        "select count(*) from ai_executions where user_id = $1", person.identity.user_id
    )
    assert count == 1


async def test_models_lists_what_is_ready_and_answers_one_by_name(api: str, people: People) -> None:
    person = await people.user()
    async with sdk(api, person) as client:
        names = [m.id async for m in client.models.list()]
        assert {"sandbox-small", "sandbox-large"} <= set(names)
        assert "gpt-4o-mini" not in names  # no provider key
        assert (await client.models.retrieve("sandbox-small")).owned_by == "sandbox"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4o-mini")
