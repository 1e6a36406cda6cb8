"""Templates write text from JSON, and can do nothing else."""

import time
from typing import Any

import pytest

from vanilla_saas.workflows import evaluator
from vanilla_saas.workflows.prompts import MAX_BYTES, TemplateError, filled, names, render

VARIABLES: dict[str, Any] = {
    "input": {"s": "a<b>", "l": [1, {"x": None}], "d": {"a": True, "items": 5}, "long": "a" * 1000},
    "steps": {"a": {"output": {"text": "hi"}}},
    "feedback": None,
}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("{{ input.s }}\n", "a<b>\n"),
        ("{{ input.l }} {{ input.d }}", '[1,{"x":null}] {"a":true,"items":5}'),
        ("{{ none }} {{ true }} {{ 1.5 }}", "null true 1.5"),
        ("{% for k, v in input.d.items() %}{{ k }}={{ v }};{% endfor %}", "a=true;items=5;"),
        ("{{ input.d.items }} {{ input.d.get('zz', 'no') }}", "5 no"),
        ("{% if feedback %}again{% else %}first{% endif %}", "first"),
        ("{{ steps.a.output.text|upper }} {{ input.l|length }}", "HI 2"),
        ("{% raw %}{{ x|nofilter }}{% include 'a' %}{% endraw %}", "{{ x|nofilter }}{% include 'a' %}"),
        ("{# {{ x|nofilter }} #}{{ '| nofilter' }}", "| nofilter"),
    ],
)
def test_values_are_written_as_text_or_json(text: str, result: str) -> None:
    assert render(text, VARIABLES) == result


@pytest.mark.parametrize(
    "reach",
    [
        "{{ input.s.__class__ }}", "{{ input.s['__class__'] }}", "{{ ''.__class__.__mro__ }}",
        "{{ input.d.__class__ }}",
        "{{ input.l.__init__ }}", "{{ input.s|attr('__class__') }}", "{{ '{0.__class__}'.format(input) }}",
        "{{ input.d.copy() }}", "{{ input.d.update({'z': 1}) }}", "{{ input.d.setdefault('z', 1) }}",
        "{{ input.d.items().mapping.copy() }}", "{{ input.d.fromkeys([1]) }}", "{{ input.l.append(3) }}",
        "{{ input.l.extend(input.l) }}", "{{ input.l.copy() }}", "{{ input.l.sort() }}", "{{ self }}",
        "{{ cycler.__init__ }}",
        "{{ debug() }}", "{{ lipsum() }}", "{{ config }}", "{{ input.d.items.__self__ }}", "{{ range.__globals__ }}",
    ],
)  # fmt: skip
def test_a_template_that_reaches_for_attributes_is_refused(reach: str) -> None:
    with pytest.raises(TemplateError) as refused:
        render(reach, VARIABLES)
    assert refused.value.code in ("template_undefined", "template_failed", "template_syntax"), refused.value.message


def test_what_a_template_was_given_is_as_it_was() -> None:
    given = {"input": {"l": [1], "d": {"a": 1}}}
    with pytest.raises(TemplateError):
        render("{{ input.l.clear() }}", given)
    assert given == {"input": {"l": [1], "d": {"a": 1}}}


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a\nb\n{{ x y }}", "template_syntax", 3),
        ("{{ 1", "template_syntax", 1),
        ("a\n{% include 'x' %}", "template_syntax", 2),
        ("{%- import 'x' as y %}", "template_syntax", 1),
        ("{% extends 'x' %}", "template_syntax", 1),
        ("\n\n{{ 1|nofilter }}", "template_syntax", 3),
        ("{% if 1 is notest %}{% endif %}", "template_syntax", 1),
        ("{{ nowhere }}", "template_undefined", 1),
        ("\n{{ input.zz }}", "template_undefined", 2),
        ("{{ nowhere() }}", "template_failed", 1),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "template_syntax", 1),
        ("x" * (MAX_BYTES + 1), "template_too_large", None),
    ],
)
def test_a_template_that_is_wrong_says_where(text: str, code: str, line: int | None) -> None:
    with pytest.raises(TemplateError) as refused:
        render(text, VARIABLES)
    assert (refused.value.code, refused.value.line) == (code, line), refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(a='x' * 1000) %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "{% set a = 'x' * 1000 %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
        "{% set a %}xxxxxxxx{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
        "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{{ 'x' * 100000000000 }}",
        "{{ 'x'|indent(1000000000) }}",
        "{{ '%01000000000d'|format(1) }}",
        "{{ input.long|replace('a', input.long)|replace('a', input.long) }}",
        "{% for i in range(2000) %}{{ input.long }}{% endfor %}",
        "{{ input.l|batch(1000000000, 'x')|list }}",
        "{% for i in range(9999) %}{{ input.long|list|sort|join|length }}{% endfor %}",
        "{{ 10 ** 1000000 }}",
    ],
)
def test_a_template_that_explodes_is_stopped(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateError) as refused:
        render(text, VARIABLES)
    assert refused.value.code in ("template_timeout", "template_too_large", "template_failed"), refused.value.message
    assert time.monotonic() - began < evaluator.SECONDS + 4
    assert render("ok", {}) == "ok"


def test_fuel_ends_a_template_before_its_process_has_to_end() -> None:
    own = evaluator.Evaluator(1)
    try:
        loop = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
        with pytest.raises(evaluator.EvaluatorError) as refused:
            own.ask("render", seconds=30, text=loop, variables={}, result_bytes=100)
        assert refused.value.message == "It takes too many steps or makes too much text."
        assert len(own._free) == 1
    finally:
        own.close()


def test_names_are_those_from_outside() -> None:
    found = names(
        "{{ input.a }}{% for x in steps.a.output %}{{ x.y }}{{ loop.index }}{{ range(3) }}{% endfor %}"
        "{% set q = 1 %}{{ q }}{% macro m(p) %}{{ p }}{{ z }}{% endmacro %}"
    )
    assert found.roots == {"input", "steps", "z"}
    assert (found.steps, found.step_fields, found.all_steps) == ({"a"}, {("a", "output")}, False)
    assert names("{{ steps[input.which] }}").all_steps


@pytest.mark.parametrize(
    ("template", "roots", "text"),
    [
        ("{{ input.text[:2] }}", {"input"}, "ab"),
        ("{{ input.text[input.n:] }}", {"input"}, "bc"),
        ("{{ steps.a.output[value[0]:value[-1]] }}", {"steps", "value"}, "yz"),
        ("{{ {'a': input.text[1:2]}['a'] }} [x:y]", {"input"}, "b [x:y]"),
        ("{% raw %}{{ a[b:c] }}{% endraw %}{{ input['text'][::2] }}", {"input"}, "{{ a[b:c] }}ac"),
    ],
)
def test_names_in_slices_are_found(template: str, roots: set[str], text: str) -> None:
    variables = {"input": {"text": "abc", "n": 1}, "value": [1, 3], "steps": {"a": {"output": "xyz"}}}
    assert names(template).roots == roots
    assert render(template, variables) == text


@pytest.mark.parametrize(
    ("text", "at_once"),
    [
        ("Say {{ input.s }} and {{input.s}}\n", "Say a<b> and a<b>\n"),
        ("{{ steps.a.output.text }}", "hi"),
        ("no names", "no names"),
        *((text, None) for text in (
            "{{ input.l }}", "{{ input.d.items }}", "{{ input.nothing }}", "{{ input.s | upper }}", "{{- input.s }}",
            "{% if input %}{% endif %}{{ input.s }}", "{# {{ input.s }} #}", "{{ 'a' }}", "{{ input['s'] }}",
            "{{ other }}",
            "}} {{ input.s }}", "{{ input.s.strip }}",
        )),
    ],
)  # fmt: skip
def test_text_with_names_is_filled_at_once_and_as_it_would_be_rendered(text: str, at_once: str | None) -> None:
    assert filled(text, VARIABLES) == at_once
    if at_once is not None:
        assert render(text, VARIABLES) == at_once
