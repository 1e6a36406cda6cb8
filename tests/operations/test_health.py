"""What a load balancer asks."""

import aiohttp
import pytest


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_is_answered_without_a_key(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})
        assert answer.headers["x-request-id"]


async def test_an_unknown_path_is_a_problem_with_a_request_id(http: aiohttp.ClientSession) -> None:
    async with http.get("/api/v1/nothing", headers={"x-request-id": "mine-1"}) as answer:
        body = await answer.json()
    assert (answer.status, answer.content_type) == (404, "application/problem+json")
    assert (body["code"], body["request_id"]) == ("not_found", "mine-1")
