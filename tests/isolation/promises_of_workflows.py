"""What the functions of 006 promise: whose a workflow is, what is shared, what never changes."""

from tests.isolation.promises import Case

FLOW, SHARED = "'{flow}'", "'{flow_shared}'"
MADE = """'{"name": "Made", "nodes": [{"id": "a", "kind": "llm"}]}'"""
CIRCLE = (
    """'{"name": "x", "nodes": [{"id": "a", "kind": "llm"}, {"id": "b", "kind": "llm"}],"""
    """ "connections": [{"from": "a", "to": "b"}, {"from": "b", "to": "a"}]}'"""
)
OF_A = "(select count(*) from ai_workflows where tenant_id = '{a}' and %s)"
SLUG = "'{word}-0-0'"
DRAFT = f"(select draft ->> 'name' from ai_workflows where tenant_id = '{{a}}' and id = {FLOW})"
VERSIONS = "(select count(*) from workflow_versions where tenant_id = '{a}' and workflow_id = %s and %s)"
NODES = "(select count(*) from workflow_nodes where tenant_id = '{a}' and workflow_id = %s)"
RULE = "update levels set restrictions = '{\"workflows\": %s}' where tenant_id = '{a}' and id = '{level}'"
REDRAWN = f"update ai_workflows set draft = {MADE} where tenant_id = '{{a}}' and id = {FLOW}"
RETIRED = f"update ai_workflows set status = 'retired' where tenant_id = '{{a}}' and id = {FLOW}"
PUBLISH, RETIRE, DELETE = (f"select {verb}_workflow(%s)" for verb in ("publish", "retire", "delete"))
SAVE = f"select save_workflow('made', {MADE})"
IS_RETIRED, KEPT = "state = 'retired'", "user_id = '{user}' and shared"
MINE = "user_id = '{user}' and slug = 'made' and revision = 1 and latest_version is null"

TWINS_SECOND = (
    "set local session_replication_role = replica; insert into workflow_versions select (jsonb_populate_record(v,"
    " jsonb_build_object('version', 2, 'state', 'published', 'retired_at', null))).* from workflow_versions v"
    f" where tenant_id = '{{twin}}' and workflow_id = {FLOW}; set local session_replication_role = origin"
)

CASES = [
    Case("nobody", f"select validate_workflow({CIRCLE}) -> 0 ->> 'code'", "= (circle)"),
    # new ones
    Case("user", SAVE, audit="workflow.created", then=f"{OF_A % MINE} = 1"),
    Case("admin", SAVE, then=f"{OF_A % MINE.replace('{user}', '{admin}')} = 1"),
    Case("admin", f"select save_workflow('made', {MADE}, p_user_id => '{{user}}')", then=f"{OF_A % MINE} = 1"),
    Case("operator", f"select save_workflow('made', {MADE}, p_user_id => '{{user}}', p_tenant_id => '{{a}}')",
         then=f"{OF_A % MINE} = 1"),
    Case("operator", SAVE, "VS404"),
    Case("nobody", SAVE, "VS401"),
    Case("user", f"select save_workflow('made', {MADE}, p_user_id => '{{other}}')", "VS403"),
    Case("user", f"select save_workflow('made', {MADE}, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", f"select save_workflow('made', {MADE}, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", f"select save_workflow('made', {MADE}, p_user_id => '{{b_user}}')", "VS404"),
    Case("user", SAVE, "VS404", "update users set status = 'deleted' where tenant_id = '{a}' and id = '{user}'"),
    Case("user", f"select save_workflow('made', {MADE}, p_expected_revision => 1)", "VS404"),
    Case("user", "select save_workflow('A b', '{\"name\": \"x\"}')", "VS400"),
    Case("user", "select save_workflow('made', '{}')", "VS400"),
    Case("user", SAVE, "VS429", RULE % 4),
    Case("user", SAVE, given=RULE % 5),
    Case("user", SAVE, given=f"{RULE % 4}; {RETIRED}"),
    # the level of who saves, and of nobody else
    Case("user", SAVE, given=f"{RULE % 0}; update user_token_wallets set level_id = '{{paid}}' where tenant_id = '{{a}}' and user_id = '{{user}}'"),
    # saved again
    Case("user", f"select save_workflow({SLUG}, {MADE})",
         then=f"{DRAFT} = 'Made' and (select revision from ai_workflows where tenant_id = '{{a}}' and id = {FLOW}) = 2"),
    Case("user", f"select save_workflow({SLUG}, {MADE}, p_expected_revision => 1)", then=f"{DRAFT} = 'Made'"),
    Case("user", f"select save_workflow({SLUG}, {MADE}, p_expected_revision => 2)", "VS409"),
    Case("user", f"select save_workflow({SLUG}, {MADE}, p_expected_revision => 0)", "VS409"),
    Case("user", f"select save_workflow('made', {MADE}, p_expected_revision => 0)"),
    Case("admin", f"select save_workflow({SLUG}, {MADE})", then=f"{DRAFT} = 'Made'"),
    Case("admin", f"select save_workflow({SLUG}, {MADE}, p_user_id => '{{other}}')", "VS409"),
    Case("other", f"select save_workflow('{{word}}-0-0', {MADE})", "VS409"),
    Case("other", f"select save_workflow('{{word}}-0-1', {MADE})", "VS409"),
    Case("user", f"select save_workflow({SLUG}, {MADE}, true)", audit="workflow.shared",
         then=f"{VERSIONS % (FLOW, 'shared')} = 1"),
    # published
    Case("user", f"{PUBLISH % FLOW} ->> 'unchanged'", "= (true)", then=VERSIONS % (FLOW, "true") + " = 1"),
    Case("user", PUBLISH % FLOW, given=REDRAWN, audit="workflow.published", then=VERSIONS % (FLOW, "version = 2") + " = 1"),
    Case("user", PUBLISH % FLOW, given=RETIRED, then=f"{VERSIONS % (FLOW, 'version = 2')} = 1"
         f" and (select status = 'active' and latest_version = 2 from ai_workflows where tenant_id = '{{a}}' and id = {FLOW})"),
    # it takes a place of its owner's again
    *[Case(who, PUBLISH % FLOW, "VS429", f"{RULE % 3}; {RETIRED}") for who in ("user", "admin")],
    *[Case(who, PUBLISH % FLOW, given=f"{RULE % 4}; {RETIRED}") for who in ("user", "admin")],
    Case("user", PUBLISH % FLOW, given=f"{RULE % 3}; {REDRAWN}"),
    Case("user", f"select publish_workflow({FLOW}, 1)"),
    Case("user", f"select publish_workflow({FLOW}, 2)", "VS409"),
    Case("user", f"select publish_workflow({FLOW}, p_definition => {CIRCLE})", "VS422"),
    Case("user", PUBLISH % FLOW, "VS422", REDRAWN.replace('"kind": "llm"', '"kind": "odd"')),
    # retired
    Case("user", RETIRE % FLOW, audit="workflow.retired",
         then=f"(select status = 'retired' and latest_version = 1 from ai_workflows where tenant_id = '{{a}}' and id = {FLOW})"),
    Case("user", RETIRE % f"{FLOW}, 1", then=f"{VERSIONS % (FLOW, IS_RETIRED)} = 1"
         f" and (select status = 'active' and latest_version is null from ai_workflows where tenant_id = '{{a}}' and id = {FLOW})"),
    Case("user", RETIRE % f"{FLOW}, 2", "VS404"),
    Case("user", RETIRE % f"{FLOW}, 1", "VS409",
         f"update workflow_versions set state = 'retired', retired_at = now() where tenant_id = '{{a}}' and workflow_id = {FLOW}"),
    Case("user", RETIRE % FLOW, "VS409", RETIRED),
    # the twin's versions count for nothing
    Case("user", RETIRE % f"{FLOW}, 2", "VS404", TWINS_SECOND),
    Case("user", RETIRE % f"{FLOW}, 1", given=TWINS_SECOND,
         then=f"(select latest_version is null from ai_workflows where tenant_id = '{{a}}' and id = {FLOW})"),
    Case("user", PUBLISH % FLOW, given=f"{REDRAWN}; {TWINS_SECOND}", then=VERSIONS % (FLOW, "version = 2") + " = 1"),
    # deleted
    Case("user", DELETE % FLOW, audit="workflow.deleted",
         then=f"{OF_A % 'true'} = 11 and {VERSIONS % ('workflow_id', 'true')} = 11 and {NODES % FLOW} = 0"),
    # whose: their owner's and the admins', shared or not
    *[Case("admin", verb % FLOW) for verb in (PUBLISH, RETIRE, DELETE)],
    *[Case("user", verb % SHARED) for verb in (PUBLISH, RETIRE, DELETE)],
    *[Case("user", verb % id_, "VS404") for verb in (PUBLISH, RETIRE, DELETE) for id_ in ("'{others_flow}'", "'{others_shared}'")],
    *[Case(who, verb % "'{b_flow}'", "VS404") for verb in (PUBLISH, RETIRE, DELETE) for who in ("user", "admin")],
    *[Case("nobody", verb % "'{b_flow}'", "VS401") for verb in (PUBLISH, RETIRE, DELETE)],
    *[Case("operator", verb % "'{b_flow}', p_tenant_id => '{a}'", "VS404") for verb in (PUBLISH, RETIRE, DELETE)],
    Case("operator", f"select publish_workflow({FLOW}, p_tenant_id => '{{a}}')"),
    # what a person may see
    Case("user", "select count(*) from ai_workflows", "= (5)"),
    Case("user", "select count(*) from workflow_versions", "= (5)"),
    Case("admin", "select count(*) from ai_workflows", "= (12)"),
    # with an erased user
    Case("admin", "select erase_user('{user}', 'asked')",
         then=f"{OF_A % 'true'} = 8 and {VERSIONS % ('workflow_id', 'true')} = 8 and {NODES % FLOW} = 0"
         f" and {NODES % SHARED} = 2 and {OF_A % KEPT} = 1"),
]  # fmt: skip
