"""Copies taken to another version: those that fit move, those that do not are told why and stay, and runs stay anyway."""

import uuid
from typing import Any

import pytest

from tests.conftest import DEFAULT_TENANT, Person
from tests.engines.shop import Made, Shop, plain
from tests.engines.test_engines import offered, refused
from tests.workflows.hands import workflow

SHAPE = {"type": "object", "properties": {name: {} for name in ("tone", "size", "name", "loud")}}
FIRST = {
    "tone": {"type": "string"}, "size": {"type": "integer"}, "name": {"type": "string"}, "loud": {"type": "boolean"},
}  # fmt: skip
MINE = {"tone": "kind", "size": 5, "name": "Ada", "loud": True}


async def two_versions(floor: Shop, second: dict[str, Any], first: dict[str, Any] = FIRST) -> Made:
    """An engine whose second version declares other parameters than its first, which is stable."""
    engine = await floor.deploy(plain(input=SHAPE), p_parameters=first)
    more = {"p_parameters": second, "p_mode": "sequential"}
    again = await floor.ask(floor.admin, "deploy_engine", engine.slug, engine.flow, **more)
    assert again["version"] == 2
    return engine


async def copy_of(floor: Shop, user: Person, engine: Made, overlay: dict[str, Any], slug: str = "mine") -> uuid.UUID:
    return uuid.UUID((await floor.ask(user, "fork_engine", f"{engine.slug}@1", slug, overlay))["id"])


async def kept(floor: Shop, copy: uuid.UUID) -> tuple[int, dict[str, Any]]:
    row = await floor.operator.fetchrow("select version, overlay from user_engines where id = $1", copy)
    return row["version"], row["overlay"]


async def test_a_copy_goes_to_what_the_name_means_or_to_what_is_named_and_a_run_stays(floor: Shop) -> None:
    engine, user = await two_versions(floor, FIRST), await floor.person()
    copy = await copy_of(floor, user, engine, MINE)
    run = await floor.run(user, "my/mine")
    assert (await floor.ask(user, "rebase_engine_copy", copy))["changed"] is False
    told = await floor.ask(user, "rebase_engine_copy", copy, "2")
    assert (told["from"], told["version"], told["changed"], told["overlay"]) == (1, 2, True, MINE)
    assert await kept(floor, copy) == (2, MINE)
    assert (await floor.ask(user, "rebase_engine_copy", copy))["version"] == 1
    await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 0)
    assert (await floor.ask(user, "rebase_engine_copy", copy, "canary"))["version"] == 2
    assert (await floor.ask(user, "rebase_engine_copy", copy, "stable"))["version"] == 1
    await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 100)
    assert (await floor.ask(user, "rebase_engine_copy", copy))["version"] == 2
    assert (await floor.run(user, "my/mine"))["version"] == 2
    pinned = "select version from engine_executions where id = $1"
    assert await floor.operator.fetchval(pinned, uuid.UUID(run["execution_id"])) == 1


@pytest.mark.parametrize(
    ("act", "named", "copied"),
    [
        ("promote", 2, 1),
        ("canary", 2, 1),
        ("rollback", 2, 1),
        ("retire", 2, None),
        ("rebase", 1, 2),
        ("rebase all", 1, 2),
        ("fork", 1, 2),
        ("delete", 1, None),
    ],
)
async def test_what_runs_keeps_its_version_whatever_is_done_to_engine_and_copy(
    floor: Shop, act: str, named: int, copied: int | None
) -> None:
    await floor.operator.execute("select cancel_execution(id) from workflow_executions where finished_at is null")
    engine, user = await floor.deploy(workflow("a b", "a>b")), await floor.person()
    await floor.ask(floor.admin, "deploy_engine", engine.slug, await floor.flow(workflow("c d", "c>d")))
    for version in (2, 1):
        await floor.ask(floor.admin, "promote_engine", engine.id, version)
    copy = await copy_of(floor, user, engine, {})
    runs = [uuid.UUID((await floor.run(user, ref))["execution_id"]) for ref in (engine.slug, "my/mine")]
    async with floor.room.worker() as hands:
        begun = await hands.tick()
        match act:
            case "promote":
                await floor.ask(floor.admin, "promote_engine", engine.id, 2)
            case "canary":
                await floor.ask(floor.admin, "promote_engine", engine.id, 2, "canary", 100)
            case "rollback":
                await floor.ask(floor.admin, "rollback_engine", engine.id)
            case "retire":
                await floor.ask(floor.admin, "promote_engine", engine.id, 2)
                await floor.ask(floor.admin, "retire_engine", engine.id, 1)
            case "rebase":
                await floor.ask(user, "rebase_engine_copy", copy, "2")
            case "rebase all":
                await floor.ask(floor.admin, "rebase_engine_copies", engine.id, "2")
            case "fork":
                await floor.ask(user, "fork_engine", f"{engine.slug}@2", "mine")
            case "delete":
                await floor.ask(user, "delete_engine_copy", copy)
        ran = await hands.run(lambda step: step.done(output=1), *(step.done(output=1) for step in begun))
    assert (sorted(step.node for step in begun), sorted(ran)) == (["a", "a"], ["b", "b"])
    rows = await floor.operator.fetch(
        "select e.status, e.version, r.version from workflow_executions e join engine_executions r using (tenant_id, id)"
        " where id = any ($1)", runs
    )  # fmt: skip
    assert [tuple(row) for row in rows] == [("succeeded", 1, 1)] * 2
    # it was done, and what begins now has it
    assert (await floor.ask(user, "preview_engine", engine.slug))["version"] == named
    if copied is not None:
        assert (await floor.ask(user, "preview_engine", "my/mine"))["version"] == copied
    else:
        error = "not_found" if act == "delete" else "invalid_state"
        await refused(floor, user, error, "preview_engine", "my/mine")


@pytest.mark.parametrize(
    ("second", "field", "code"),
    [
        ({name: one for name, one in FIRST.items() if name != "loud"}, "loud", "parameter_undeclared"),
        (FIRST | {"loud": {"type": "string"}}, "loud", "parameter_invalid"),
        (FIRST | {"tone": {"type": "string", "enum": ["plain"]}}, "tone", "parameter_invalid"),
        (FIRST | {"size": {"type": "integer", "minimum": 6}}, "size", "parameter_invalid"),
        (FIRST | {"size": {"type": "integer", "maximum": 4}}, "size", "parameter_invalid"),
        (FIRST | {"name": {"type": "string", "maxLength": 2}}, "name", "parameter_invalid"),
    ],
    ids=["undeclared", "type", "enum", "minimum", "maximum", "maxLength"],
)
async def test_a_value_that_does_not_fit_is_named_and_nothing_changes_until_it_is_resolved(
    floor: Shop, second: dict[str, Any], field: str, code: str
) -> None:
    engine, user = await two_versions(floor, second), await floor.person()
    copy = await copy_of(floor, user, engine, MINE)
    found = await refused(floor, user, "invalid_definition", "rebase_engine_copy", copy, "2")
    assert [(one["field"], one["code"]) for one in found.detail["problems"]] == [(f"overlay.{field}", code)]
    told = await floor.ask(user, "rebase_engine_copy", copy, "2", p_dry_run=True)
    assert (told["conflicts"], told["changed"]) == (found.detail["problems"], False)
    assert await kept(floor, copy) == (1, MINE)
    rest = {name: value for name, value in MINE.items() if name != field}
    told = await floor.ask(user, "rebase_engine_copy", copy, "2", p_drop=True, p_dry_run=True)
    assert (told["dropped"], told["overlay"], told["changed"]) == ([field], rest, True)
    assert await kept(floor, copy) == (1, MINE)
    await floor.ask(user, "rebase_engine_copy", copy, "2", p_drop=True)
    assert await kept(floor, copy) == (2, rest)


async def test_values_said_in_the_call_replace_those_of_the_copy_and_fit_themselves(floor: Shop) -> None:
    second = {"tone": {"type": "string", "enum": ["plain"]}, "size": {"type": "integer", "minimum": 9}}
    engine, user = await two_versions(floor, second), await floor.person()
    copy = await copy_of(floor, user, engine, MINE)
    resolved = {"tone": "plain", "size": 9, "name": None}
    found = await refused(floor, user, "invalid_definition", "rebase_engine_copy", copy, "2", resolved)
    assert [one["field"] for one in found.detail["problems"]] == ["overlay.loud"]
    # dropped is what the copy had: what the caller says and does not fit is their mistake
    wrong = {"tone": "rude"}
    found = await refused(floor, user, "invalid_definition", "rebase_engine_copy", copy, "2", wrong, p_drop=True)
    assert [one["field"] for one in found.detail["problems"]] == ["overlay.tone"]
    await refused(floor, user, "invalid_request", "rebase_engine_copy", copy, "2", [])
    await refused(floor, user, "invalid_request", "rebase_engine_copy", copy, "newest")
    assert await kept(floor, copy) == (1, MINE)
    told = await floor.ask(user, "rebase_engine_copy", copy, "2", resolved | {"loud": None})
    assert (told["dropped"], told["changed"]) == (["loud", "name"], True)
    assert await kept(floor, copy) == (2, {"tone": "plain", "size": 9})


async def test_a_copy_does_not_go_where_it_could_not_be_run(floor: Shop) -> None:
    engine, user = await two_versions(floor, FIRST), await floor.person()
    copy = await copy_of(floor, user, engine, MINE)

    async def conflict(who: Any, to: str = "2") -> str:
        found = await refused(floor, who, "invalid_definition", "rebase_engine_copy", copy, to)
        assert (await floor.ask(who, "rebase_engine_copy", copy, to, p_dry_run=True))["conflicts"] == found.detail[
            "problems"
        ]
        [problem] = found.detail["problems"]
        assert problem["field"] == "version"
        return str(problem["code"])

    for to in ("3", "canary"):
        await refused(floor, user, "not_found", "rebase_engine_copy", copy, to)
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="read")
    assert await conflict(user) == "read_only"
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="none")
    assert await conflict(floor.admin) == "not_entitled"
    # what its user may not see is not there for them, in a dry run either
    for dry_run in (False, True):
        await refused(floor, user, "not_found", "rebase_engine_copy", copy, "2", p_dry_run=dry_run)
    await floor.ask(floor.admin, "set_engine", engine.id, p_default_access="execute")
    await floor.ask(floor.admin, "retire_engine", engine.id, 2)
    assert await conflict(user) == "version_retired"
    await floor.ask(floor.admin, "retire_engine", engine.id)
    assert await conflict(user, "1") == "engine_retired"
    assert await kept(floor, copy) == (1, MINE)


async def test_a_copy_of_the_platforms_engine_moves_while_it_is_offered(floor: Shop) -> None:
    engine, user = await offered(floor), await floor.person()
    stranger = await floor.person(tenant=await floor.room.people.tenant())
    copy, theirs = await copy_of(floor, user, engine, {}), await copy_of(floor, stranger, engine, {})
    assert (await floor.ask(floor.boss, "deploy_engine", engine.slug, engine.flow, p_mode="sequential"))["version"] == 2
    # an engine of the tenant that hides the name is another one
    await floor.deploy(slug=engine.slug, access="none")
    assert (await floor.ask(user, "rebase_engine_copy", copy, "2"))["version"] == 2
    [told] = await floor.ask(floor.admin, "rebase_engine_copies", engine.id, "1")
    assert (told["from"], told["version"], told["changed"]) == (2, 1, True)
    # of an admin are the copies of the tenant's own people
    assert told["id"] == str(copy)
    every = await floor.ask(None, "rebase_engine_copies", engine.id, "1", p_dry_run=True)
    assert {one["id"] for one in every} == {str(copy), str(theirs)}
    await floor.ask(floor.boss, "set_engine", engine.id, p_offered=False)
    await refused(floor, user, "not_found", "rebase_engine_copy", copy, "2")
    await refused(floor, floor.admin, "not_found", "rebase_engine_copies", engine.id, "2")
    every = await floor.ask(None, "rebase_engine_copies", engine.id, "2")
    assert [[one["code"] for one in told["conflicts"]] for told in every] == [["not_offered"]] * 2


async def test_an_admin_takes_all_copies_of_an_engine_there_but_those_that_do_not_fit(floor: Shop) -> None:
    second = FIRST | {"tone": {"type": "string", "enum": ["plain"]}}
    engine, other = await two_versions(floor, second), await floor.deploy()
    people = [await floor.person() for _ in range(3)]
    fits, unfit = (
        await copy_of(floor, people[0], engine, {"tone": "plain"}),
        await copy_of(floor, people[1], engine, MINE),
    )
    second_one, another = await copy_of(floor, people[0], engine, {}, "two"), await copy_of(floor, people[2], other, {})
    looked = await floor.ask(floor.admin, "rebase_engine_copies", engine.id, "2", p_dry_run=True)
    assert {uuid.UUID(one["id"]): (one["changed"], len(one["conflicts"])) for one in looked} == {
        fits: (True, 0), unfit: (False, 1), second_one: (True, 0),
    }  # fmt: skip
    assert {(await kept(floor, copy))[0] for copy in (fits, unfit, second_one)} == {1}
    assert await floor.ask(floor.admin, "rebase_engine_copies", engine.id, "2") == looked
    assert [(await kept(floor, copy))[0] for copy in (fits, unfit, second_one, another)] == [2, 1, 2, 1]
    logged = await floor.operator.fetchval(
        "select details from audit_logs where action = 'engine.copies_rebased' and target_id = $1", engine.id
    )
    assert (logged["changed"], logged["conflicts"]) == (2, 1)
    await floor.ask(floor.admin, "rebase_engine_copies", engine.id, "2", p_drop=True)
    assert await kept(floor, unfit) == (2, {name: value for name, value in MINE.items() if name != "tone"})


async def test_others_move_no_copy(floor: Shop) -> None:
    engine, user, other = await two_versions(floor, FIRST), await floor.person(), await floor.person()
    copy = await copy_of(floor, user, engine, {})
    stranger = await floor.room.people.user("admin", tenant_id=await floor.room.people.tenant())
    for who in (other, stranger):
        await refused(floor, who, "not_found", "rebase_engine_copy", copy, "2")
    await refused(floor, user, "forbidden", "rebase_engine_copies", engine.id, "2")
    await refused(floor, stranger, "not_found", "rebase_engine_copies", engine.id, "2")
    assert await kept(floor, copy) == (1, {})
    told = await floor.ask(floor.admin, "rebase_engine_copy", copy, "2", p_tenant_id=DEFAULT_TENANT)
    assert (told["user_id"], told["version"]) == (str(user.identity.user_id), 2)
