"""Embeddings over real HTTP, with the official SDK as a customer has it: metered as chat is."""

import asyncio
import io
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import asyncpg
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import People, Person
from tests.providers.test_gateway import eventually, sdk
from vanilla_saas.providers import sandbox_rules
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.settings import Settings

MODEL = "sandbox-embed"


def scripted(**script: Any) -> str:
    """An input that tells the sandbox what to do."""
    return f"sandbox: {json.dumps(script)}"


async def execution(people: People, person: Person) -> asyncpg.Record:
    return await people.operator.fetchrow("select * from ai_executions where user_id = $1", person.identity.user_id)


async def untouched(people: People, person: Person, balance: int) -> bool:
    """Nothing is reserved or charged, and what stands in the ledger is what is in the wallet."""
    wallet = await people.wallet(person)
    left = await people.operator.fetchval(
        "select sum(amount)::bigint from user_token_ledger where user_id = $1", person.identity.user_id
    )
    return (wallet["available_tokens"], wallet["reserved_tokens"], wallet["borrowed_tokens"], left) == (
        *(balance, 0, 0),
        balance,
    )


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("The quick brown fox", 5),
        (["The quick brown fox", "a sheet of figures"], 10),
        ([7, 8, 9], 3),
        ([[7, 8, 9], [10]], 4),
        (["héé"], 2),
    ],
)
async def test_the_sdk_gets_vectors_and_the_wallet_is_charged_what_usage_says(
    api: str, people: People, given: Any, tokens: int
) -> None:
    person = await people.user(balance=1000)
    async with sdk(api, person) as client:
        answer = await client.embeddings.create(model=MODEL, input=given)
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == (MODEL, tokens, tokens)
    expected = sandbox_rules.embed({"model": MODEL, "input": given})["data"]
    assert [item.index for item in answer.data] == [item["index"] for item in expected]
    for item, wanted in zip(answer.data, expected, strict=True):
        assert item.embedding == pytest.approx(wanted["embedding"], abs=1e-6)
    assert await untouched(people, person, 1000 - tokens)
    row = await execution(people, person)
    assert (row["status"], row["model"], row["provider"], row["streamed"]) == ("succeeded", MODEL, "sandbox", False)
    assert (row["input_tokens"], row["output_tokens"], row["charged_tokens"]) == (tokens, 0, tokens)
    assert (row["cost_micros"], row["usage_estimated"]) == (1, False)  # 0.02 USD a million, rounded up


async def test_both_formats_hold_the_same_vector_of_the_dimensions_asked_for(api: str, people: People) -> None:
    person = await people.user(balance=1000)
    async with sdk(api, person) as client:
        floats = await client.embeddings.create(model=MODEL, input="a b c", dimensions=8, encoding_format="float")
        # asked for by name, the SDK leaves base64 as it is
        raw = await client.embeddings.create(model=MODEL, input="a b c", dimensions=8, encoding_format="base64")
        decoded = await client.embeddings.create(model=MODEL, input="a b c", dimensions=8)
    assert isinstance(raw.data[0].embedding, str)
    assert len(floats.data[0].embedding) == 8
    assert decoded.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)


async def test_the_headers_say_what_was_reserved_and_charged(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=1000)
    body = {"model": MODEL, "input": "one two three four"}
    async with http.post("/v1/embeddings", json=body, headers=person.headers) as answer:
        assert answer.status == 200
        figures = [answer.headers[f"x-vanilla-{name}-tokens"] for name in ("reserved", "charged", "available")]
        assert answer.headers["x-vanilla-execution"] == str((await execution(people, person))["id"])
    assert figures == ["5", "5", "995"]  # the sandbox's own rule, so the bound is exact


async def test_two_hundred_calls_at_once_on_a_wallet_that_affords_ten(api: str, people: People) -> None:
    person = await people.user()
    text = scripted(latency_ms=300)
    cost = sandbox_rules.count_tokens(text)
    await people.set_balance(person, 10 * cost)
    async with sdk(api, person) as client:

        async def call() -> str:
            try:
                await client.embeddings.create(model=MODEL, input=text)
            except openai.APIStatusError as error:
                return f"{error.status_code} {error.body['code']}"
            return "answered"

        outcomes = await asyncio.gather(*(call() for _ in range(200)))
    assert (outcomes.count("answered"), outcomes.count("402 insufficient_tokens")) == (10, 190)
    assert await untouched(people, person, 0)


@pytest.mark.parametrize(
    ("script", "status", "error", "code"),
    [
        ({"status": 500}, 502, openai.InternalServerError, "upstream_server"),
        ({"status": 401}, 502, openai.InternalServerError, "upstream_authentication"),
        ({"status": 429, "retry_after": 7}, 429, openai.RateLimitError, "upstream_rate_limited"),
        ({"status": 400}, 400, openai.BadRequestError, "upstream_invalid_request"),
        ({"malformed": True}, 502, openai.InternalServerError, "upstream_malformed"),
        ({"error_after_chunks": 0}, 502, openai.InternalServerError, "upstream_connection"),
    ],
)
async def test_a_call_that_brought_no_answer_costs_nothing(
    api: str, people: People, script: dict[str, Any], status: int, error: type[openai.APIStatusError], code: str
) -> None:
    person = await people.user(balance=5000)
    async with sdk(api, person) as client:
        with pytest.raises(error) as raised:
            await client.embeddings.create(model=MODEL, input=["first", scripted(**script)])
    assert raised.value.status_code == status
    row = await execution(people, person)
    assert (row["status"], row["error_code"], row["charged_tokens"]) == ("failed", code, 0)
    assert await untouched(people, person, 5000)


async def test_an_answer_without_usage_is_charged_by_an_estimate(api: str, people: People) -> None:
    person = await people.user(balance=5000)
    text = scripted(usage="missing")
    async with sdk(api, person) as client:
        await client.embeddings.create(model=MODEL, input=text)
    row = await execution(people, person)
    assert (row["usage_estimated"], row["charged_tokens"]) == (True, sandbox_rules.count_tokens(text))
    assert await untouched(people, person, 5000 - row["charged_tokens"])


async def test_a_client_that_leaves_pays_for_the_answer_it_did_not_wait_for(api: str, people: People) -> None:
    person = await people.user(balance=5000)
    body = {"model": MODEL, "input": scripted(latency_ms=300)}
    async with aiohttp.ClientSession() as session:
        call = asyncio.create_task(session.post(f"{api}/v1/embeddings", json=body, headers=person.headers))
        held = "select count(*) from user_token_holds where user_id = $1 and state = 'open'"
        await eventually(lambda: people.operator.fetchval(held, person.identity.user_id))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    row = await eventually(lambda: execution(people, person))
    assert (row["status"], row["charged_tokens"]) == ("succeeded", sandbox_rules.count_tokens(body["input"]))
    assert await untouched(people, person, 5000 - row["charged_tokens"])


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"input": []}, 400, "invalid_request", "input"),
        ({"input": ""}, 400, "invalid_request", "input"),
        ({"input": None}, 400, "invalid_request", "input"),
        ({"input": 7}, 400, "invalid_request", "input"),
        ({"input": {"text": "x"}}, 400, "invalid_request", "input"),
        ({"input": ["x"] * 2049}, 400, "invalid_request", "input"),
        ({"input": ["x", ""]}, 400, "invalid_request", "input[1]"),
        ({"input": ["x", 7]}, 400, "invalid_request", "input[1]"),
        ({"input": ["x", None]}, 400, "invalid_request", "input[1]"),
        ({"input": [[1, 2], "x"]}, 400, "invalid_request", "input[1]"),
        ({"input": [[1], []]}, 400, "invalid_request", "input[1]"),
        ({"input": [1, -1]}, 400, "invalid_request", "input[0]"),
        ({"input": [1, True]}, 400, "invalid_request", "input[0]"),
        ({"input": [1.5]}, 400, "invalid_request", "input[0]"),
        ({"input": [[[1]]]}, 400, "invalid_request", "input[0]"),
        ({"input": "a\0b"}, 400, "invalid_request", None),
        ({"encoding_format": "hex"}, 400, "invalid_request", "encoding_format"),
        ({"encoding_format": ["float"]}, 400, "invalid_request", "encoding_format"),
        ({"dimensions": -1}, 400, "invalid_request", "dimensions"),
        ({"dimensions": 0}, 400, "invalid_request", "dimensions"),
        ({"dimensions": 1.5}, 400, "invalid_request", "dimensions"),
        ({"dimensions": True}, 400, "invalid_request", "dimensions"),
        ({"stream": True}, 400, "unsupported_parameter", "stream"),
        ({"messages": []}, 400, "unsupported_parameter", "messages"),
        ({"messages": None}, 400, "unsupported_parameter", "messages"),
        ({"service_tier": "priority"}, 400, "unsupported_parameter", "service_tier"),
        ({"model": None}, 400, "invalid_request", "model"),
        ({"model": "no-such-model"}, 404, "model_not_found", None),
        ({"model": "text-embedding-3-small"}, 424, "provider_not_ready", None),  # no key yet
        ({"model": "sandbox-small"}, 400, "unsupported_model", "model"),
        ({"user": "somebody"}, 403, "forbidden", None),  # the key has no act_as
        ({"user": 7}, 400, "invalid_request", "user"),
    ],
)
async def test_bad_requests_are_refused_in_openais_words_and_nothing_is_written(
    http: aiohttp.ClientSession, people: People, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    person = await people.user(balance=5000)
    body = {"model": MODEL, "input": "hi"} | change
    async with http.post("/v1/embeddings", json=body, headers=person.headers) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param), error
    assert set(error) >= {"message", "type", "param", "code"}
    assert await nothing_written(people, person)
    assert await untouched(people, person, 5000)


async def nothing_written(people: People, person: Person) -> bool:
    query = "select (select count(*) from {0} where user_id = $1)"
    counts = [
        await people.operator.fetchval(query.format(table), person.identity.user_id)
        for table in ("user_token_holds", "ai_executions")
    ]
    return counts == [0, 0]


async def test_as_many_inputs_as_allowed_are_answered(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=5000)
    body = {"model": MODEL, "input": ["x"] * 2048, "dimensions": 1, "encoding_format": None, "user": None}
    async with http.post("/v1/embeddings", json=body, headers=person.headers) as answer:
        assert len((await answer.json())["data"]) == 2048
    assert await untouched(people, person, 5000 - 2048)


async def test_an_oversize_body_is_refused_before_it_is_read(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=5000)
    async with http.post("/v1/embeddings", data=io.BytesIO(b" " * (5 * 2**20)), headers=person.headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")
    assert await nothing_written(people, person)


async def test_a_chat_of_an_embedding_model_is_refused_before_anything_is_reserved(api: str, people: People) -> None:
    person = await people.user(balance=5000)
    async with sdk(api, person) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        assert (refused.value.code, refused.value.param) == ("unsupported_model", "model")
        assert "makes embeddings, it does not chat" in refused.value.message
        with pytest.raises(openai.BadRequestError, match="chats, it makes no embeddings"):
            await client.embeddings.create(model="sandbox-small", input="hi")
    assert await nothing_written(people, person)


async def test_models_says_of_what_kind_a_model_is(api: str, people: People) -> None:
    person = await people.user()
    async with sdk(api, person) as client:
        kinds = {model.id: model.kind async for model in client.models.list()}
        assert (kinds["sandbox-small"], kinds[MODEL]) == ("chat", "embedding")
        assert (await client.models.retrieve(MODEL)).kind == "embedding"


async def test_a_key_with_act_as_names_who_pays(api: str, people: People) -> None:
    admin = await people.user("admin", scopes=["chat", "act_as:create"], balance=5000)
    payer = f"customer-{admin.identity.user_id}"
    async with sdk(api, admin) as client:
        answer = await client.embeddings.create(model=MODEL, input="hello", user=payer)
    spent = await people.operator.fetchval(
        "select spent_tokens from user_token_wallets w join users u on u.id = w.user_id where u.external_id = $1", payer
    )
    assert spent == answer.usage.total_tokens > 0
    assert await untouched(people, admin, 5000)


async def test_a_key_without_the_scope_chat_is_refused(api: str, people: People) -> None:
    person = await people.user(scopes=["read"])
    async with sdk(api, person) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.embeddings.create(model=MODEL, input="hello")
    async with sdk(api, replace(person, key="vsk_wrong")) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.embeddings.create(model=MODEL, input="hello")


async def test_the_levels_rates_models_and_sizes_hold(http: aiohttp.ClientSession, people: People) -> None:
    tenant = await people.tenant()
    person = await people.user(tenant_id=tenant, balance=5000)
    restrict = "select set_level_restriction(id, $2, $3, $4, tenant_id) from levels where tenant_id = $1 and is_default"
    await people.operator.execute(restrict, tenant, "requests_per_day", 2, None)
    await people.operator.execute(restrict, tenant, "max_prompt_tokens", 100, None)
    await people.operator.execute(restrict, tenant, "denied_models", None, ["sandbox-large"])

    async def ask(text: str) -> tuple[int, dict[str, Any], str]:
        body = {"model": MODEL, "input": text}
        async with http.post("/v1/embeddings", json=body, headers=person.headers) as answer:
            return answer.status, (await answer.json()).get("error", {}), answer.headers.get("ratelimit", "")

    status, error, _ = await ask("x" * 401)
    assert (status, error["restriction"], error["param"]) == (400, "max_prompt_tokens", "input")
    for left in (1, 0):
        status, _, rate = await ask("x" * 400)
        assert status == 200
        assert rate.startswith(f'"requests_per_day";r={left};t=')
    status, error, rate = await ask("x")
    assert (status, error["code"], error["restriction"]) == (429, "limit_reached", "requests_per_day")
    assert rate.startswith('"requests_per_day";r=0;t=')
    await people.operator.execute(restrict, tenant, "denied_models", None, [MODEL])
    status, error, _ = await ask("x")
    assert (status, error["restriction"]) == (403, "denied_models")
    assert await untouched(people, person, 5000 - 200)


async def test_the_same_idempotency_key_calls_the_model_once(http: aiohttp.ClientSession, people: People) -> None:
    person = await people.user(balance=5000)
    headers = person.headers | {"idempotency-key": "once"}
    found = []
    for _ in range(2):
        async with http.post("/v1/embeddings", json={"model": MODEL, "input": "hi"}, headers=headers) as answer:
            found.append((answer.status, (await answer.json()).get("error", {}).get("code")))
    assert found == [(200, None), (409, "idempotency_key_reused")]
    assert await untouched(people, person, 4999)


ANSWER = {
    "object": "list",
    "model": "theirs",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}],
    "usage": {"prompt_tokens": 60, "total_tokens": 60},
}


@asynccontextmanager
async def own_provider(
    people: People, settings: Settings, kind: str, tenant: uuid.UUID
) -> AsyncIterator[list[tuple[str, dict[str, Any]]]]:
    """A provider of the tenant's own with a key and a model `own-embed` of a small window; what it is asked."""
    seen: list[tuple[str, dict[str, Any]]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.headers["Authorization"], await request.json()))
        return web.json_response(ANSWER)

    application = web.Application()
    application.router.add_post("/v1/embeddings", answer)
    async with TestServer(application) as server:
        await add_provider(people, settings, kind, str(server.make_url("/v1")), tenant)
        yield seen


async def add_provider(people: People, settings: Settings, kind: str, base_url: str, tenant: uuid.UUID) -> None:
    provider = await people.operator.fetchval(
        "insert into ai_providers (tenant_id, slug, name, kind, base_url)"
        " values ($1, 'own', 'Own', $2, $3) returning id",
        *(tenant, kind, base_url),
    )
    sealed = SecretBox.from_settings(settings).encrypt(tenant, provider, "sk-of-the-tenant")
    await people.operator.execute("select set_provider_secret($1, $2, 'nant', $3)", provider, sealed, tenant)
    await people.operator.execute(
        "insert into ai_models (tenant_id, provider_tenant_id, provider_id, slug, upstream_model, name, kind,"
        " context_window, input_price, output_price)"
        " values ($1, $1, $2, 'own-embed', 'theirs', 'Own', 'embedding', 10, 1000000, 0)",
        *(tenant, provider),
    )


@pytest.mark.parametrize("kind", ["openai", "google", "custom"])
async def test_a_compatible_provider_is_asked_under_its_own_name_and_key(
    api: str, people: People, test_settings: Settings, kind: str
) -> None:
    tenant = await people.tenant()
    person = await people.user(tenant_id=tenant, balance=5000)
    async with own_provider(people, test_settings, kind, tenant) as seen, sdk(api, person) as client:
        # above the window of one input, which a list of many may be
        answered = await client.embeddings.create(model="own-embed", input=["word " * 9] * 20, dimensions=2)
    assert answered.data[0].embedding == [0.5, -0.5]
    ((authorization, body),) = seen
    assert authorization == "Bearer sk-of-the-tenant"
    assert body == {"model": "theirs", "input": ["word " * 9] * 20, "dimensions": 2, "encoding_format": "base64"}
    row = await execution(people, person)
    assert (row["provider"], row["charged_tokens"], row["cost_micros"]) == ("own", 60, 60)
    assert await untouched(people, person, 5000 - 60)


async def test_a_provider_without_embeddings_is_not_asked_and_costs_nothing(
    api: str, people: People, test_settings: Settings
) -> None:
    tenant = await people.tenant()
    person = await people.user(tenant_id=tenant, balance=5000)
    async with own_provider(people, test_settings, "anthropic", tenant) as seen, sdk(api, person) as client:
        with pytest.raises(openai.BadRequestError, match="anthropic has no embeddings") as refused:
            await client.embeddings.create(model="own-embed", input="hi")
    assert not seen
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "model")
    row = await execution(people, person)
    assert (row["status"], row["error_code"], row["charged_tokens"]) == ("failed", "unsupported_parameter", 0)
    assert await untouched(people, person, 5000)
