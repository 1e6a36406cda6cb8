"""The splitter and the meter do not depend on how the network cut the bytes."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.provider_support import DONE, FINISH, USAGE, delta, sse
from vanilla_saas.providers.sse import (
    MAX_EVENT_BYTES,
    EventSplitter,
    MalformedStream,
    StreamMeter,
    Usage,
    data_of,
    output_bytes,
    usage_from,
)

LINE_END = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def event_streams(draw) -> list[bytes]:
    """Events of several lines with any text, comments, pings and either line end."""
    events = []
    for _ in range(draw(st.integers(0, 6))):
        end = draw(LINE_END)
        value = draw(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12))
        lines = draw(st.lists(st.sampled_from([b"data: ", b"data:", b": ", b"event: ", b"id"]), min_size=1, max_size=3))
        events.append(b"".join(line + value.encode() + end for line in lines) + end)
    return events


@st.composite
def splits(draw, whole: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(st.data())
def test_any_split_gives_the_same_events(data):
    events = data.draw(event_streams())
    splitter = EventSplitter()
    found = [e for part in data.draw(splits(b"".join(events))) for e in splitter.feed(part)]
    assert found == events
    assert splitter.rest() == b""


@given(st.data())
def test_any_split_gives_the_same_bytes_usage_and_sizes(data):
    texts = data.draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=8))
    events = sse(*(delta(text, index % 2) for index, text in enumerate(texts)), FINISH, USAGE, DONE)
    if data.draw(st.booleans()):
        events = [event.replace(b"\n\n", b"\r\n\r\n") for event in events]
    wants = data.draw(st.booleans())
    meter = StreamMeter(client_wants_usage=wants)
    forwarded = b""
    for part in data.draw(splits(b"".join(events))):
        chunk, error = meter.feed(part)
        assert error is None
        forwarded += chunk
    assert meter.close() == (b"", None)
    assert forwarded == b"".join(events if wants else [*events[:-2], events[-1]])
    assert meter.usage == Usage(5, 7)
    assert meter.finished
    assert sum(meter.sizes.values()) == len("".join(texts).encode())


@given(st.data())
def test_what_is_forwarded_before_a_broken_event_does_not_depend_on_the_split(data):
    whole = b"".join(sse(delta("a"), delta("b"), b'{"broken', delta("c"), DONE))
    meter, forwarded, error = StreamMeter(client_wants_usage=False), b"", None
    for part in data.draw(splits(whole)):
        chunk, error = meter.feed(part)
        forwarded += chunk
        if error is not None:
            break
    assert isinstance(error, MalformedStream)
    assert forwarded == b"".join(sse(delta("a"), delta("b")))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_malformed_stream(junk):
    meter = StreamMeter(client_wants_usage=False)
    _, error = meter.feed(junk)
    if error is None:
        meter.close()


NAMES = ["choices", "delta", "index", "content", "tool_calls", "function", "usage", "error", "prompt_tokens"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_an_answer_or_a_malformed_stream(value):
    try:
        events = sse(value)
    except TypeError:
        return  # an integer that JSON libraries do not write
    StreamMeter(client_wants_usage=True).feed(events[0])


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\r\n\r\n", b"x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
        (b": comment\n\n", b""),
        (b"event: ping\n\n", b""),
        (b"data\n\n", b""),
        (b"data:  x\n\n", b" x"),
    ],
)
def test_the_data_of_an_event(event, data):
    assert data_of(event) == data


@pytest.mark.parametrize("index", [None, [], {}, "0", 1.5, True])
def test_a_choice_of_any_index_is_metered(index):
    meter = StreamMeter(client_wants_usage=False)
    assert meter.feed(sse(delta("abcd", index))[0])[1] is None
    assert sum(meter.sizes.values()) == 4


def test_an_endless_event_is_refused():
    meter = StreamMeter(client_wants_usage=False)
    errors = [meter.feed(b"x" * (1024 * 1024))[1] for _ in range(MAX_EVENT_BYTES // 2**20 + 1)]
    assert [error is None for error in errors] == [True] * (len(errors) - 1) + [False]


def test_a_last_event_without_its_blank_line_is_forwarded_with_one():
    meter = StreamMeter(client_wants_usage=False)
    whole = b"".join(sse(delta("a"), FINISH, DONE))
    chunk, _ = meter.feed(whole[:-1])
    rest, error = meter.close()
    assert (chunk + rest, error, meter.finished) == (whole, None, True)


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7}, Usage(5, 7)),
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0)),
        # reasoning left out of the completion but not out of the total
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 40}, Usage(5, 35)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 6},
            },
            Usage(5, 7, 4, 6),
        ),
        # more cached than there was: never a discount on tokens that do not exist
        (
            {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 9}},
            Usage(5, 7, 5),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": None}, Usage(5, 7)),
        ({"prompt_tokens": -1, "completion_tokens": 7}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 7}, None),
        ({"prompt_tokens": True, "completion_tokens": 7}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)  # fmt: skip
def test_usage_as_providers_report_it(reported, usage):
    assert usage_from(reported) == usage


@pytest.mark.parametrize(
    ("delta", "size"),
    [
        ({"content": "é"}, 2),
        ({"reasoning_content": "abc", "content": None}, 3),
        ({"refusal": "no"}, 2),
        ({"tool_calls": [{"function": {"name": "ab", "arguments": "{}"}}, {"function": None}, None]}, 4),
        ({"function_call": {"name": "ab", "arguments": "é"}}, 4),
        ({}, 0),
        (None, 0),
    ],
)
def test_bytes_of_output(delta, size):
    assert output_bytes(delta) == size
    assert output_bytes(orjson.loads(orjson.dumps(delta))) == size
