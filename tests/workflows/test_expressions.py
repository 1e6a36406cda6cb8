"""CEL over JSON: what it means, what it is refused, and that nothing a person writes takes long or takes the worker."""

import sys
import threading
import time
from typing import Any

import pytest

from vanilla_saas.workflows import evaluator
from vanilla_saas.workflows.expressions import MAX_BYTES, ExpressionError, Limits, compile, evaluate, names

VARIABLES: dict[str, Any] = {
    "input": {"n": 3, "f": 1.5, "s": "héllo", "l": [1, 2, 3], "m": {"a": 1, "b": None}, "t": "2024-01-02T03:04:05Z"},
    "steps": {"a": {"output": {"c": [1, 2]}}, "b": {"output": None}},
    "item": "x",
    "index": 0,
}

MEANT: list[tuple[str, Any]] = [
    ("input.n + 1", 4),
    ("7 / 2", 3),
    ("-7 % 3", -1),
    ("input.f * 2.0", 3.0),
    ("1u + 2u", 3),
    ("input.n == 3.0", True),
    ("2.0 in input.l", True),
    ("size(input.s)", 5),
    ("size(bytes(input.s))", 6),
    ("has(input.m.zz)", False),
    ("has(input.m.b) && input.m.b == null", True),
    ("input.zz == 1 || true", True),
    ("(1 / 0 == 1) && false", False),
    ("[0, 1, 2].all(x, 1 / x > 0)", False),
    ("input.l.map(x, x > 1, x * 10)", [20, 30]),
    ("input.m.map(k, k).size()", 2),  # in no order
    ("steps['a'].output['c'].map(i, i + 1)", [2, 3]),  # cel-cpp's checker refuses it, the specification does not
    ("steps.b.output != null ? steps.b.output.x : 'none'", "none"),
    ("timestamp(input.t) + duration('1h30m')", "2024-01-02T04:34:05Z"),
    ("timestamp('2024-01-02T03:04:05.5+01:00')", "2024-01-02T02:04:05.500000Z"),
    ("timestamp(input.t).getHours('America/New_York')", 22),
    ("duration('90s')", "90s"),
    ("duration('-1500ms')", "-1.5s"),
    ("b'ab'", "YWI="),
    ("{2: 'a', true: 'b', 'c': [null]}", {"2": "a", "true": "b", "c": [None]}),
    ("'a,b'.split(',').join('-').upperAscii()", "A-B"),
    ("'%s is %d'.format(['a', 1])", "a is 1"),
    ("math.greatest(1, 2, 3)", 3),
    ("'abc'.matches('^a.c$')", True),
    ("item + string(index)", "x0"),
    ("9223372036854775807", 9223372036854775807),
]


@pytest.mark.parametrize(("text", "value"), MEANT)
def test_an_expression_means_what_the_specification_says(text: str, value: Any) -> None:
    found = evaluate(text, VARIABLES)
    assert (found, type(found)) == (value, type(value))


REFUSED: list[tuple[str, str]] = [
    ("1 +", "expression_syntax"),
    ("input.l.map(x)", "expression_failed"),
    ("'x' + " * 1500 + "'x'", "expression_too_large"),  # 9,003 bytes
    ("(" * 100 + "1" + ")" * 100, "expression_too_large"),
    ("[" * 4000, "expression_too_large"),
    ("1" + " + 1" * 100, "expression_too_large"),
    ("input" + ".a" * 3000, "expression_too_large"),
    ("input.n + 1.0", "expression_type"),
    ("!input.n", "expression_type"),
    ("1.0 / 0.0", "expression_type"),
    ("double('NaN')", "expression_type"),
    ("type(1)", "expression_type"),
    ("nowhere(1)", "expression_type"),
    ("1 / 0", "expression_failed"),
    ("input.zz", "expression_failed"),
    ("input.l[5]", "expression_failed"),
    ("9223372036854775807 + input.n", "expression_failed"),
    ("int('x')", "expression_failed"),
    ("'a'.matches('(')", "expression_failed"),
    ("nowhere", "expression_failed"),
]


@pytest.mark.parametrize(("text", "code"), REFUSED)
def test_an_expression_that_has_no_value_says_why(text: str, code: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        evaluate(text, VARIABLES)
    assert refused.value.code == code, refused.value.message
    assert refused.value.message


LONG = {"input": {"l": list(range(1000)), "s": "a" * 1000, "deep": [[list(range(100))] * 100] * 100}}

EXPLOSIVE: list[tuple[str, set[str]]] = [
    ("input.l.map(x, input.l.map(y, input.l.map(z, x + y + z)))", {"expression_timeout"}),
    ("input.l.all(x, input.l.all(y, input.l.all(z, true)))", {"expression_timeout"}),
    ("['x']" + ".map(a, a + a)" * 29, {"expression_too_large", "expression_timeout"}),
    ("[[1]]" + ".map(a, [a, a])" * 28, {"expression_too_large"}),
    ("[[1]]" + ".map(a, a + a)" * 28, {"expression_too_large", "expression_timeout"}),
    ("input.s.replace('a', input.s).replace('a', input.s)", {"expression_too_large", "expression_timeout"}),
    ("input.s.replace('a', input.s).replace('a', input.s).replace('a', input.s)", {"expression_too_large", "expression_timeout"}),
    ("input.s.replace('a', input.s)", {"expression_too_large"}),
    ("input.deep", {"expression_too_large"}),
    ("'%.1000000000f'.format([1.0])", {"expression_failed", "expression_too_large", "expression_timeout"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "codes"), EXPLOSIVE)
def test_an_expression_that_explodes_is_stopped(text: str, codes: set[str]) -> None:
    began, threads = time.monotonic(), threading.active_count()
    with pytest.raises(ExpressionError) as refused:
        evaluate(text, LONG)
    assert refused.value.code in codes, refused.value.message
    assert time.monotonic() - began < evaluator.SECONDS + 4  # a new process starts within the rest
    assert threading.active_count() == threads
    assert evaluate("1 + 1", {}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the address space of a process")
def test_memory_is_bounded_also_where_time_is_not() -> None:
    gigabyte = "input.s.replace('a', input.s).replace('a', input.s).size()"
    own = evaluator.Evaluator(1)
    try:
        with pytest.raises(evaluator.EvaluatorError) as refused:
            own.ask("evaluate", seconds=60, text=gigabyte, variables=LONG, result_bytes=100)
        assert refused.value.code == "too_large"
        assert own.ask("compile", text="1")["roots"] == []
    finally:
        own.close()


def test_a_regular_expression_ends_whatever_it_is() -> None:
    assert evaluate("input.l.map(x, input.s.matches('(a|aa)+$' + string(x)))[0]", LONG) is False


def test_the_time_of_an_expression_is_the_callers() -> None:
    heavy = "input.l.map(x, input.s.replace('a', input.s).size())[0]"
    began = time.monotonic()
    with pytest.raises(ExpressionError) as refused:
        evaluate(heavy, LONG, Limits(seconds=0.05))
    assert refused.value.code == "expression_timeout"
    assert time.monotonic() - began < 3


def test_a_result_has_the_size_that_is_allowed_and_not_a_byte_more() -> None:
    text = {"input": {"s": "a" * 1000}}
    assert evaluate("input.s", text, Limits(result_bytes=1004)) == "a" * 1000
    with pytest.raises(ExpressionError) as refused:
        evaluate("input.s", text, Limits(result_bytes=1003))
    assert refused.value.code == "expression_too_large"


def test_a_text_is_limited_in_bytes() -> None:
    assert evaluate("'" + "é" * ((MAX_BYTES - 2) // 2) + "'", {}) == "é" * ((MAX_BYTES - 2) // 2)
    with pytest.raises(ExpressionError) as refused:
        compile("'" + "é" * (MAX_BYTES // 2) + "'")
    assert refused.value.code == "expression_too_large"


def test_variables_that_are_no_json_are_refused_and_those_not_named_never_looked_at() -> None:
    with pytest.raises(ExpressionError) as refused:
        evaluate("input.x == 1", {"input": {"x": object()}})
    assert refused.value.code == "expression_type"
    assert evaluate("steps.a.output", {"input": object(), "steps": {"a": {"output": 1}, "b": object()}}) == 1


def test_names_are_those_from_outside() -> None:
    found = names("input.l.map(i, i + q)[0] + steps.a.output.x + steps['b'].status + [item].map(steps, steps.z)[0]")
    assert found.roots == {"input", "q", "steps", "item"}
    assert found.steps == {"a", "b"}
    assert found.step_fields == {("a", "output"), ("b", "status")}
    assert not found.all_steps
    assert names("input.l.map(x, x.all(y, x.exists(z, x + y + z + w)))").roots == {"input", "w"}
    assert names("input.l.map(x, x).map(y, x)").roots == {"input", "x"}


@pytest.mark.parametrize("text", ["steps[input.which].output", "steps.map(s, s)", "'a' in steps", "size(steps)"])
def test_steps_alone_may_mean_any_of_them(text: str) -> None:
    assert names(text).all_steps
    sent = {"input": {"which": "b"}, "steps": {"a": {"output": 1}, "b": {"output": 2}}}
    assert evaluate(text, sent) in (2, ["a", "b"], ["b", "a"], True)


def test_has_and_strings_name_nothing_that_is_not_there() -> None:
    assert names("has(steps.a.output) ? 'steps.b' : {'steps': 1}.steps").steps == {"a"}


def test_the_checker_finds_types_that_cannot_go_together() -> None:
    assert "no matching overload" in str(compile("'a' + 1").type_error)
    assert "undeclared reference to 'nowhere'" in str(compile("nowhere(1)").type_error)
    assert compile("input.a + 1").type_error is None
    assert compile("input['c'].map(x, x)").type_error is None


def test_a_process_that_ends_is_replaced() -> None:
    own = evaluator.Evaluator(1)
    try:
        assert own.ask("compile", text="1")["roots"] == []
        (process,) = own._free
        process._child.kill()
        process._child.wait()
        with pytest.raises(evaluator.EvaluatorError):
            own.ask("compile", text="1")
        assert own.ask("compile", text="1")["roots"] == []
    finally:
        own.close()


def test_no_secret_of_the_worker_is_in_the_environment_of_what_people_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VANILLA_SAAS_CONTEXT_KEY", "secret")
    own = evaluator.Evaluator(1)
    try:
        own.ask("compile", text="1")
        (process,) = own._free
        with open(f"/proc/{process._child.pid}/environ", "rb") as environment:
            assert b"VANILLA_SAAS" not in environment.read()
    except FileNotFoundError:
        pytest.skip("without /proc the environment of a process is not to be seen")
    finally:
        own.close()
