"""What a run may: the model that reads a definition and the functions that save and start it say the same."""

import pytest
from pydantic import ValidationError

from tests.orchestration.hall import Hall
from vanilla_saas.orchestration.definition import Limits


async def test_limits_that_are_left_out_are_the_same(talk: Hall) -> None:
    assert await talk.connection.fetchval("select vanilla.agent_limits('{}')") == Limits(tokens=50_000).model_dump()


@pytest.mark.parametrize("name", Limits.model_fields)
async def test_limits_go_as_far(talk: Hall, name: str) -> None:
    schema = Limits.model_json_schema()["properties"][name]
    schema = schema.get("anyOf", [schema])[0]
    least, most = schema["minimum"], schema["maximum"]
    for value in (least - 1, least, most, most + 1, 1.5, "1"):
        definition = {"instructions": "x", "model": "m", "limits": {name: value}}
        problem = await talk.connection.fetchval("select vanilla.agent_problem($1)", definition)
        try:
            Limits.model_validate({name: value})
        except ValidationError:
            assert problem is not None, value
        else:
            assert problem is None, value
    assert (
        await talk.connection.fetchval("select vanilla.agent_problem($1)", {"instructions": "x", "model": "m"}) is None
    )


async def test_no_other_limit_is_known(talk: Hall) -> None:
    definition = {"instructions": "x", "model": "m", "limits": {"odd": 1}}
    assert await talk.connection.fetchval("select vanilla.agent_problem($1)", definition) == "There is no limit odd."
