"""The prompt bound never under-estimates; what is refused is refused with a code and a parameter."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.provider_support import chat
from vanilla_saas.providers import estimate, sandbox_rules
from vanilla_saas.providers.estimate import (
    InvalidRequest,
    estimate_prompt_tokens,
    prompt_upper_bound,
    refuse_unpriced,
    requested_output_limit,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PARTS = st.lists(
    st.builds(lambda t: {"type": "text", "text": t}, TEXT)
    | st.just({"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}})
    | st.just({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
    max_size=3,
)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: {
            "id": "1",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        },
        TEXT,
        TEXT,
    ),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": TEXT | PARTS | st.none(),
        },
        optional={"name": TEXT, "tool_calls": CALLS},
    ),
    min_size=1,
    max_size=4,
)
TOOLS = st.lists(
    st.builds(
        lambda name, text: {
            "type": "function",
            "function": {"name": name, "description": text, "parameters": {}},
        },
        TEXT,
        TEXT,
    ),
    max_size=3,
)


def byte_tokens(body: dict[str, Any]) -> int:
    """The worst byte-level BPE: it knows no merge, and writes OpenAI's markers around each message."""
    total = 3
    for message in body["messages"]:
        content = message["content"]
        texts = [message["role"], message.get("name", ""), *sandbox_rules.texts_of(content)]
        for call in message.get("tool_calls", ()):
            texts += call["function"].values()
        total += 5 + sum(len(text.encode()) for text in texts)
        total += 1445 * sum(isinstance(p, dict) and "text" not in p for p in content or () if isinstance(content, list))
    for tool in body["tools"]:
        total += 40 + sum(len(str(value).encode()) for value in tool["function"].values())
    return total


@given(MESSAGES, TOOLS)
def test_the_bound_holds_for_the_sandbox_and_for_single_byte_tokens(messages, tools):
    body = {"model": "m", "messages": messages, "tools": tools}
    bound = prompt_upper_bound(body)
    assert bound >= sandbox_rules.prompt_tokens(body)
    assert bound >= byte_tokens(body)
    for provider in ("sandbox", "openai"):
        assert estimate_prompt_tokens(provider, body) <= bound
    assert estimate_prompt_tokens("sandbox", body) == sandbox_rules.prompt_tokens(body)


def test_the_bound_holds_for_messages_shorter_than_their_markers():
    body = {"model": "m", "messages": [{}] * 1000}
    assert prompt_upper_bound(body) >= sandbox_rules.prompt_tokens(body) + 1000


@given(st.lists(st.integers(0, 200_000), min_size=1))
def test_the_bound_holds_for_token_ids(ids):
    for given_ids in (ids, [ids, ids]):
        body = {"model": "m", "input": given_ids}
        count = len(ids) * (1 if given_ids is ids else 2)
        assert prompt_upper_bound(body) >= estimate_prompt_tokens("openai", body) >= count


@given(TEXT)
def test_the_bound_holds_for_embeddings(text):
    body = {"model": "m", "input": [text, text]}
    assert prompt_upper_bound(body) >= 2 * len(text.encode())


def image(detail: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "https://x", **({"detail": detail} if detail else {})}}


@pytest.mark.parametrize(
    ("part", "model", "tokens"),
    [
        (image(), "m", estimate.TOKENS_PER_IMAGE),
        (image("high"), "m", estimate.TOKENS_PER_IMAGE),
        (image("low"), "m", estimate.TOKENS_PER_IMAGE_LOW),
        # 2833 + 8 x 5667
        (image(), "gpt-4o-mini-2024-07-18", 48_169),
        # 60 s at 32 tokens a second, 600 bytes a second in base64
        ({"type": "input_audio", "input_audio": {"data": "A" * 48_000, "format": "amr"}}, "m", 60 * 32),
    ],
)
def test_media_count_at_least_what_providers_count(part, model, tokens):
    plain = prompt_upper_bound(chat() | {"messages": [{"role": "user", "content": []}]}, model=model)
    body = chat() | {"messages": [{"role": "user", "content": [part]}]}
    assert prompt_upper_bound(body, model=model) - plain >= tokens


def test_the_data_of_an_image_is_not_counted_as_text():
    huge = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    assert prompt_upper_bound({"messages": [{"role": "user", "content": [huge]}]}) < 20_000


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]},
        {"role": "user", "content": [{"text": "no type"}]},
        {"role": "user", "content": [7]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"url": "x"}}]},
        {"role": "assistant", "audio": {"id": "x"}},
    ],
)
def test_parts_of_unknown_size_are_refused(message):
    with pytest.raises(InvalidRequest) as caught:
        prompt_upper_bound({"messages": [{"role": "user", "content": "x"}, message]})
    assert caught.value.code == "unsupported_content"
    assert caught.value.param.startswith("messages[1]")


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5),
        ({"max_tokens": None, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": 10_000_000}, 10_000_000),
        ({"stream": True, "user": "u" * 128, "n": 16}, None),
        # honest text about the escape
        ({"metadata": {"a": "the escape \\u0000 in JSON"}}, None),
    ],
)
def test_the_output_limit_of_a_sound_request(options, limit):
    assert requested_output_limit(chat(**options)) == limit


@pytest.mark.parametrize(
    ("options", "param"),
    [
        *(({name: bad}, name) for name in ("max_tokens", "max_completion_tokens")
          for bad in (0, -1, 10_000_001, 1.5, "5", True, False, [], 10**30)),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        *(({"n": bad}, "n") for bad in (0, 17, -1, True, "2", 1.0)),
        *(({"messages": bad}, "messages") for bad in ([], None, "x", {})),
        ({"messages": [{"role": "user"}, "x"]}, "messages[1]"),
        *(({"stream": bad}, "stream") for bad in (1, "true", [])),
        ({"stream_options": True}, "stream_options"),
        *(({"user": bad}, "user") for bad in ("u" * 129, "é" * 65, 7, "\ud800" * 99)),
        *(({"model": bad}, "model") for bad in (None, "", 3)),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\0"}]}]}, None),
        ({"metadata": {"\0": 1}}, None),
        ({"user": "a\0"}, None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
    ],
)  # fmt: skip
def test_a_request_that_is_not_sound_is_refused(options, param):
    with pytest.raises(InvalidRequest) as caught:
        requested_output_limit(chat() | options)
    error = caught.value
    assert (error.code, error.param, error.status) == ("invalid_request", param, 400)
    told = orjson.loads(error.body())["error"]
    assert told == {
        "message": error.message,
        "type": "invalid_request_error",
        "param": param,
        "code": "invalid_request",
    }


def test_deep_nesting_is_refused_before_it_exhausts_the_stack():
    for depth in (200, 5_000):
        deep: Any = "\0"
        for _ in range(depth):
            deep = [deep]
        with pytest.raises(InvalidRequest):
            requested_output_limit(chat(metadata=deep))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"service_tier": "priority"}, "service_tier"),
        ({"service_tier": "auto"}, "service_tier"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content"),
    ],
)
def test_what_the_catalogue_does_not_price_is_refused(options, param):
    with pytest.raises(InvalidRequest) as caught:
        refuse_unpriced(chat() | options)
    assert caught.value.param == param


def test_what_the_catalogue_prices_is_admitted():
    refuse_unpriced(chat(service_tier="default", modalities=["text"]))


NAMES = ["role", "content", "tool_calls", "function", "name", "arguments", "type", "text", "image_url", "audio"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | TEXT | st.sampled_from(["text", "image_url", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
OPTIONS = ["messages", "tools", "functions", "input", "n", "max_tokens", "user", "stream", "modalities"]


@given(st.dictionaries(st.sampled_from(OPTIONS), JSON), st.lists(JSON, max_size=3))
def test_any_json_is_counted_or_refused(options, messages):
    for body in ({**options, "model": "m"}, {**options, "model": "m", "messages": messages}):
        sandbox_rules.prompt_tokens(body)
        for count in (requested_output_limit, refuse_unpriced, prompt_upper_bound):
            with contextlib.suppress(InvalidRequest):
                count(body)
                estimate_prompt_tokens("openai", body)
