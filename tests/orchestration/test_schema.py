"""JSON Schema in SQL: as an independent implementation judges, and what is not looked at is refused beforehand."""

import time
from typing import Any

import jsonschema_rs
import pytest

from tests.conftest import LONG
from tests.orchestration.hall import Hall
from tests.orchestration.schemas import KEYWORDS, PATTERNS, TEXTS, Maker

SCHEMAS = 20_000 if LONG else 2_000
VALUES = 8
JUDGE = """
    select p.problem, array(select m.problem is null from jsonb_array_elements($2::jsonb) v
        cross join vanilla.schema_misfit($1::jsonb, v.value, $1::jsonb -> '$defs', '', 0, 100000) m where p.problem is null)
    from vanilla.schema_problem($1::jsonb, $1::jsonb -> '$defs') p (problem)"""


async def test_sql_and_another_implementation_agree_on_what_fits(talk: Hall) -> None:
    used: set[str] = set()
    judged = {True: 0, False: 0}
    for seed in range(SCHEMAS):
        maker = Maker(seed)
        schema = maker.schema()
        values = [maker.value() for _ in range(VALUES)]
        validator = jsonschema_rs.Draft202012Validator(schema)
        expected = [validator.is_valid(value) for value in values]
        row = await talk.connection.fetchrow(JUDGE, schema, values)
        assert row[0] is None, (seed, schema, row[0])
        assert row[1] == expected, (seed, schema, values)
        used |= set(schema if isinstance(schema, dict) else ())
        for fits in expected:
            judged[fits] += 1
    assert set(KEYWORDS) <= used
    assert min(judged.values()) > SCHEMAS


@pytest.mark.parametrize(
    "schema",
    [
        None, 1, "x", [], {"format": "date"}, {"patternProperties": {}}, {"prefixItems": []}, {"if": {}},
        {"$id": "x"}, {"$anchor": "x"}, {"$dynamicRef": "#x"}, {"contains": {}}, {"propertyNames": {}},
        {"unevaluatedProperties": False}, {"dependentRequired": {}}, {"definitions": {}}, {"contentEncoding": "base64"},
        {"$schema": "http://json-schema.org/draft-07/schema#"}, {"type": "odd"}, {"type": []}, {"type": ["null", "null"]},
        {"enum": []}, {"enum": {}}, {"required": ["a", "a"]}, {"required": [1]}, {"required": "a"}, {"minimum": "1"},
        {"multipleOf": 0}, {"multipleOf": -1}, {"minLength": -1}, {"minLength": 1.5}, {"maxItems": "1"}, {"uniqueItems": 1},
        {"pattern": 1}, {"items": [{}]}, {"items": 1}, {"properties": []}, {"properties": {"a": 1}}, {"not": 1}, {"allOf": []},
        {"anyOf": {}}, {"oneOf": [1]}, {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "https://x.test"}, {"$ref": 1},
        {"properties": {"a": {"$defs": {}}}}, {"$defs": {"a b": {}}}, {"title": 1},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}}, {"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        {"properties": {"a": {"items": {"format": "date"}}}}, {"$defs": {"a": {"allOf": [{"format": "date"}]}}},
    ],
)  # fmt: skip
async def test_a_schema_that_is_not_enforced_whole_is_refused(talk: Hall, schema: Any) -> None:
    problem = "select vanilla.schema_problem($1::jsonb, coalesce($1::jsonb -> '$defs', '{}'))"
    assert await talk.connection.fetchval(problem, schema) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        ".", "a.b", "\\d", "\\w+", "\\s", "\\bx", "\\1", "(a)\\1", "(?=a)", "(?!a)", "(?<=a)b", "(?i)a", "(?<n>a)", "***:a", "*a",
        "+", "a**", "a*?", "a++", "a{1}{2}", "(a){2}", "a{256}", "a{2,1}", "a{,2}", "a{x}", "{", "}", "]", "[", "[]", "[^]",
        "[]a]", "[[:alpha:]]", "[z-a]", "[a-Z]", "[\\d]", "[\\w]", "[a-\\d]", "(", ")", "()", "(a", "a)", "a||b", "|a", "a|", "(|a)", "(a|)",
        "", "^", "$", "^$", "a^b", "a$b", "^^a", "a$$", "\\", "a\\", "\\u0041", "\\x41", "\\p{L}", "\\cA", "\\0", "\\-", "\t", "a{200}a{255}a{255}a{255}a{255}",
        "x" * 201,
    ],
)  # fmt: skip
async def test_a_pattern_that_may_mean_two_things_is_refused(talk: Hall, pattern: str) -> None:
    assert await talk.connection.fetchval("select vanilla.pattern_problem($1)", pattern) is not None


@pytest.mark.parametrize(
    "pattern",
    [*PATTERNS, "a\\$", "\\^a", "\\\\$", "^a?b*c+$", "(a|b)+c", "(?:a|(b|c))*", "[a-z0-9_-]", "[^\\n\\r]*", "[.$*]", "a\\{2}"[:-1] + "\\}", "^\\(\\)$"],
)  # fmt: skip
async def test_a_pattern_that_is_taken_means_what_it_means_elsewhere(talk: Hall, pattern: str) -> None:
    assert await talk.connection.fetchval("select vanilla.pattern_problem($1)", pattern) is None
    texts = [*TEXTS, "a$", "^a", "a\\", "ab\nc", "()", "a{2}", "\r", "A", "é", "a\u2028"]
    validator = jsonschema_rs.Draft202012Validator({"pattern": pattern})
    for text in texts:
        found = await talk.connection.fetchval('select $1 ~ $2 collate "C"', text, pattern)
        assert found == validator.is_valid(text), text


@pytest.mark.parametrize(
    "pattern", ["^((a+)+)+b$", "^(a|a)*b$", "(a*)*c", "(?:a?a?a?a?a?)*b", "[a-c]*[b-d]*[c-e]*[d-f]*x"]
)
async def test_no_pattern_takes_long(talk: Hall, pattern: str) -> None:
    assert await talk.connection.fetchval("select vanilla.pattern_problem($1)", pattern) is None
    await talk.connection.execute("set statement_timeout = '2s'")
    await talk.connection.fetchval('select $1 ~ $2 collate "C"', "a" * 60_000, pattern)
    await talk.connection.execute("reset statement_timeout")


async def test_what_is_too_much_or_too_deep_fits_nothing_and_ends_soon(talk: Hall) -> None:
    twice = {"properties": {"a": {"$ref": "#/$defs/t"}}}
    schema = {"$defs": {"t": {"minProperties": 1, "anyOf": [twice, twice]}}, "$ref": "#/$defs/t"}
    deep: Any = {}
    for _ in range(30):
        deep = {"a": deep}
    check = "select m.problem from vanilla.schema_misfit($1::jsonb, $2::jsonb, $1::jsonb -> '$defs', '', 0, 10000) m"
    for form in (schema, {"not": schema} | {"$defs": schema["$defs"]}):
        started = time.monotonic()
        problem = await talk.connection.fetchval(check, form, deep)
        assert problem["message"] == "it is too much to check"
        assert time.monotonic() - started < 5
    for _ in range(10):
        deep = {"a": deep}
    loop = {"$defs": {"t": {"properties": {"a": {"$ref": "#/$defs/t"}}}}, "not": {"not": {"$ref": "#/$defs/t"}}}
    assert (await talk.connection.fetchval(check, loop, deep))["message"] == "it is nested too deep"
