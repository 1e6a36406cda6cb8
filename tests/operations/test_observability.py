"""What an operator sees of a server: metrics, log, traces. Never what people asked or what lets them in."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from tests.conftest import Cluster, People, Person, serve, settings_for
from tests.processes import Running, eventually, over
from vanilla_saas import tracing
from vanilla_saas.app import create_app

CANARY = "kanarienvogel"
TOKEN = "kanarienvogel-of-the-metrics"


@pytest.fixture(scope="module")
async def server(
    cluster: Cluster, database_name: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """Two processes, whose counts are one, and a line of the log for every request; no work left over is theirs."""
    more = {"VANILLA_SAAS_LOG_REQUESTS": "true", "VANILLA_SAAS_LOG_LEVEL": "debug", "VANILLA_SAAS_RUN_WORKER": "false"}
    home = over(cluster, database_name, tmp_path_factory.mktemp("home"), VANILLA_SAAS_METRICS_TOKEN=TOKEN, **more)
    async with home.serving("serve", "--processes", "2") as running:
        yield running


async def scrape(url: str) -> dict[str, float]:
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {TOKEN}"}) as http,
        http.get(f"{url}/metrics") as answer,
    ):
        text = await answer.text()
        assert answer.status == 200, text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def ask(url: str, person: Person, status: int = 200, **more: Any) -> None:
    """A call over a connection of its own, so that either process may get it."""
    body = {"model": "sandbox-small", "messages": [{"role": "user", "content": f"Hello {CANARY}"}], "max_tokens": 5}
    async with (
        aiohttp.ClientSession(headers=person.headers) as http,
        http.post(f"{url}/v1/chat/completions", json=body | more) as answer,
    ):
        text = await answer.text()
        assert answer.status == status, text


async def test_the_counts_of_all_processes_are_one(server: Running, people: People) -> None:
    person, poor = await people.user(balance=100_000), await people.user(balance=0)
    before = await scrape(server.url)
    # at once, so that both processes take some
    await asyncio.gather(*(ask(server.url, person) for _ in range(20)))
    await ask(server.url, person, stream=True)
    await ask(server.url, poor, 402)
    after = await scrape(server.url)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    route = 'method="POST",route="/v1/chat/completions"'
    assert grown(f'vanilla_saas_http_request_seconds_count{{{route},status="200"}}') == 21
    assert grown(f'vanilla_saas_http_request_seconds_count{{{route},status="402"}}') == 1
    assert grown('vanilla_saas_model_calls_total{provider="sandbox",status="succeeded"}') == 21
    assert grown('vanilla_saas_model_call_seconds_count{provider="sandbox"}') == 21
    assert grown('vanilla_saas_model_tokens_total{kind="output",provider="sandbox"}') > 0
    assert grown('vanilla_saas_model_calls_refused_total{code="insufficient_tokens"}') == 1
    assert grown("vanilla_saas_charged_tokens_total") == (await people.wallet(person))["spent_tokens"] > 0
    assert grown("vanilla_saas_batch_calls_sum") >= 21 * 2
    assert grown('vanilla_saas_pool_wait_seconds_count{pool="runtime"}') >= grown("vanilla_saas_batch_calls_count") > 0
    assert after["vanilla_saas_model_calls_running"] == after["vanilla_saas_settlements_waiting"] == 0


async def test_series_are_of_templates_and_never_of_addresses_or_tenants(server: Running, people: People) -> None:
    person = await people.user()
    async with aiohttp.ClientSession(server.url, headers=person.headers) as http:
        for path in (f"/api/v1/keys/{person.key_id}", f"/{CANARY}", f"/v1/{CANARY}", f"/v1/models/{CANARY}", "/livez"):
            await (await http.get(path)).read()
            await (await http.request("PROPFIND", path)).read()
        await (await http.get(f"/api/v1/wallets/{person.identity.user_id}")).read()

    async def counted() -> str | None:  # a request is counted when its answer has been sent
        text = "\n".join(await scrape(server.url))
        return text if 'route="/api/v1/wallets/{user_id}"' in text else None

    names = await eventually(counted)
    assert CANARY not in names
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", names)
    assert {'route="/livez"', 'route="unknown"', 'method="other"', 'route="/v1/models/{id}"'} <= set(
        re.findall(r'(?:route|method)="[^"]*"', names)
    )


async def test_the_metrics_are_for_who_has_the_token(server: Running) -> None:
    async with aiohttp.ClientSession(server.url) as http:
        for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": "Bearer é"}):
            async with http.get("/metrics", headers=headers) as answer:
                assert (answer.status, (await answer.json())["code"]) == (403, "forbidden")


async def test_without_a_token_a_proxy_on_this_machine_shows_nobody_the_metrics(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics") as answer:
        assert "vanilla_saas_http_request_seconds" in await answer.text()
    for name in ("X-Forwarded-For", "Forwarded"):
        async with http.get("/metrics", headers={name: "192.0.2.1"}) as answer:
            assert answer.status == 403


async def test_lines_of_the_log_have_ids_and_neither_content_nor_secrets(server: Running, people: People) -> None:
    person = await people.user(balance=100_000, scopes=["chat", "read"])
    headers = person.headers | {"x-request-id": "the-request", "cookie": f"vs_session={CANARY}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as http:
        question = {"model": "sandbox-small", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 5}
        await (await http.post("/v1/chat/completions", json=question)).read()
        await (await http.post("/v1/chat/completions", json=question | {"model": CANARY})).read()
        await (await http.get("/api/v1/wallet", params={"secret": CANARY})).read()
        door = {"tenant": "default", "email": person.email, "password": CANARY}
        await (await http.post("/api/v1/auth/sign-in", json=door)).read()
        await (await http.post("/v1/chat/completions", data=CANARY)).read()
        await (await http.get("/api/v1/wallet", headers={"authorization": f"Bearer vsk_{CANARY}"})).read()
    said = server.err
    for secret in (CANARY, person.key, person.email, TOKEN):
        assert secret not in said
    lines = [json.loads(line) for line in said.splitlines()]
    ours = [line for line in lines if line.get("request_id") == "the-request"]
    assert [line["route"] for line in ours if line["event"] == "request"].count("/v1/chat/completions") == 3
    who = {"tenant_id": str(person.identity.tenant_id), "user_id": str(person.identity.user_id)}
    assert who.items() <= next(line for line in ours if line.get("route") == "/api/v1/wallet").items()
    assert who.items() <= next(line for line in ours if line.get("status") == 200).items()
    refused = [line for line in ours if line["event"] == "request_refused"]
    assert refused
    assert all("user_id" not in line for line in refused)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter


async def test_a_call_is_one_trace_from_the_caller_to_the_provider(
    cluster: Cluster, database_name: str, tmp_path: Path, people: People, spans: InMemorySpanExporter
) -> None:
    person = await people.user(balance=100_000)
    given = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = person.headers | {"traceparent": f"00-{given}-00f067aa0ba902b7-01"}
    seen: list[str] = []

    async def upstream(request: aiohttp.web.Request) -> aiohttp.web.Response:
        seen.append(request.headers["traceparent"])
        answer = {"choices": [{"message": {"role": "assistant", "content": CANARY}}]}
        return aiohttp.web.json_response(answer | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}})

    provider = aiohttp.web.Application()
    provider.router.add_post("/v1/chat/completions", upstream)
    runner = aiohttp.web.AppRunner(provider)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        settings = settings_for(cluster, database_name, tmp_path, sandbox_url=f"http://127.0.0.1:{port}/v1")
        async with serve(create_app(settings)) as url, aiohttp.ClientSession(url, headers=headers) as http:
            body = {"model": "sandbox-small", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 5}
            async with http.post("/v1/chat/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
            async with http.get("/api/v1/wallet") as answer:
                assert answer.status == 200
            async with http.post("/v1/chat/completions", json=body | {"model": CANARY * 2}) as answer:
                assert answer.status == 404
    finally:
        await runner.cleanup()
    ours = [span for span in spans.get_finished_spans() if format(span.context.trace_id, "032x") == given]
    by_name = {span.name: span for span in ours}
    server = next(span for span in ours if span.name == "POST /v1/chat/completions")
    call = by_name["chat sandbox-small"]
    assert format(server.parent.span_id, "016x") == "00f067aa0ba902b7"
    assert call.parent.span_id == server.context.span_id
    assert seen == [f"00-{given}-{call.context.span_id:016x}-01"]
    assert call.attributes["gen_ai.usage.output_tokens"] == 4
    assert {"admit", "settle", "transaction", "vanilla.key_identity", "GET /api/v1/wallet"} <= set(by_name)
    assert {span.attributes.get("http.response.status_code") for span in ours} >= {200, 404}
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    for secret in (CANARY, person.key, person.email):
        assert secret not in told


def test_tracing_without_the_extra_is_refused_in_plain_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from vanilla_saas.settings import Settings

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    settings = Settings(_env_file=None, home=tmp_path, otel=True, context_key=SecretStr("5a" * 32))
    with pytest.raises(ValueError, match=r"vanilla-saas\[otel\]"):
        tracing.configure_tracing(settings)
