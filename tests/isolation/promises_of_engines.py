"""What the functions of 005 promise: whose an engine is, who may run it, what is chosen, what never changes."""

from tests.isolation.promises import Case

ENGINE, B = "'{engine}'", "'{b_engine}'"
OF_A = "tenant_id = '{a}' and engine_id = '{engine}'"
FLOW = "'{others_part}'"
DEPLOY = f"select deploy_engine('%s', {FLOW}%s) ->> '%s'"
ROW = "(select %s from ai_engines where tenant_id = '{a}' and id = '{engine}')"
VERSION = f"(select %s from engine_versions where {OF_A} and version = %s)"
ALIAS = f"(select %s from engine_aliases where {OF_A} and alias = '%s')"
ASSIGNED = f"(select count(*) from engine_assignments where {OF_A} and %s) = %d"
LEVEL = "(select access from level_engines where tenant_id = '{a}' and level_id = '{level}' and engine_id = '{engine}')"
COPIES = "(select count(*) from user_engines where tenant_id = '{a}' and %s) = %d"
MINE = "user_id = '{user}' and slug = 'new' and version = 1 and overlay = '{}'"
RESOLVE = "select resolve_engine(%s) ->> '%s'"
EXPLAIN = "select string_agg(c ->> 'source', ' ') from jsonb_array_elements(explain_engine(%s)) c"
RUN = "select execute_engine(%s) ->> '%s'"
RAN = f"exists (select from engine_executions x where {OF_A} and engine_tenant_id = '{{a}}' and version = %d and source = '%s' and user_id = '{{%s}}' and created_at = vanilla.clock())"
DENY = "update level_engines set access = '%s' where tenant_id = '{a}' and engine_id = '{engine}'"
CANARY = f"update engine_aliases set weight = 100 where {OF_A} and alias = 'canary'"
RETIRED = "update ai_engines set status = 'retired' where tenant_id = '{a}' and id = '{engine}'"
KEY = "select create_engine_key('{word}', 'n', 'p', sha256('new')%s)"
ENGINE_KEY = """update api_keys set scopes = array['engine'], engine_tenant_id = '{a}', engine_id = '{engine}', engine_ref = '{word}'
    where tenant_id = '{a}' and id = '{key_id}'"""
BY_KEY = "select vanilla.execute_by_key({user_key}, %s, '{}') ->> '%s'"
ANOTHER = """update ai_engines set slug = 'gone' where tenant_id = '{a}' and id = '{engine}';
    select set_engine((deploy_engine('{word}', '{others_part}', p_tenant_id => '{a}') ->> 'engine_id')::uuid, p_default_access => 'execute', p_tenant_id => '{a}')"""
BEGIN = "select vanilla.begin_engine({user_key}, null, %s, '{}', null, '%s', %s, 10) "
BEGIN_BY_SESSION = "select vanilla.begin_engine(null, {user_session}, '{word}', '{}', null, '{\"engine_id\": \"{engine}\", \"version\": 1}', '{hands}', 10) "
MEANT = '{"engine_id": "{engine}", "version": 1, "source_id": null}'
REPORT = f"select runs from engine_report({ENGINE}, '2000-01-01', '2199-01-01'%s)"
REPORTED = "update engine_executions set engine_tenant_id = '{a}', engine_id = '{engine}' where tenant_id in ('{a}', '{twin}') and created_at < '2100-01-01'"
OF_RUN = f"{REPORTED}; update engine_executions set id = '{{%s}}' where tenant_id = '{{a}}' and created_at = (select min(created_at) from engine_executions where tenant_id = '{{a}}')"
TIER = "insert into engine_assignments (tenant_id, engine_tenant_id, engine_id, target, tier, priority, assigned_at) values ('{a}', '{a}', '{engine}', 'tier', (select tier from levels where tenant_id = '{a}' and id = '{level}'), 9, now())"
PREVIEW = "select preview_engine(%s) ->> '%s'"
PREVIEW_BY_KEY = BY_KEY.replace("execute_by_key", "preview_by_key")
REBASE = "select rebase_engine_copy('{%s}', '2'%s)"
MOVED = COPIES % ("""user_id = '{%s}' and version = 2 and overlay = '{"tone": "{word}"}'""", 1)
UNFIT = """update user_engines set overlay = '{"tone": 1}' where tenant_id = '{a}' and id = '{copy}'"""
NO_SECOND = f"delete from engine_aliases where {OF_A} and alias = 'canary'; update engine_versions set state = 'retired', retired_at = now() where {OF_A} and version = 2"
OFFER = f"""set local session_replication_role = replica;
    insert into ai_engines (tenant_id, id, slug, name, offered) values ('{{platform}}', '{{same_id}}', 'shown', 'Shown', true);
    insert into engine_versions select (jsonb_populate_record(v, '{{"tenant_id": "{{platform}}", "engine_id": "{{same_id}}"}}')).* from engine_versions v where {OF_A};
    insert into engine_aliases (tenant_id, engine_id, alias, version, updated_at) values ('{{platform}}', '{{same_id}}', 'stable', 2, now()), ('{{platform}}', '{{same_id}}', 'canary', 1, now());
    insert into level_engines (tenant_id, level_id, engine_tenant_id, engine_id, access) values ('{{a}}', '{{level}}', '{{platform}}', '{{same_id}}', 'read'), ('{{a}}', '{{level}}', '{{a}}', '{{same_id}}', 'execute'),
        ('{{twin}}', '{{level}}', '{{platform}}', '{{same_id}}', 'none');
    insert into engine_versions select (jsonb_populate_record(v, '{{"engine_id": "{{same_id}}"}}')).* from engine_versions v where {OF_A};
    insert into engine_aliases (tenant_id, engine_id, alias, version, updated_at) values ('{{a}}', '{{same_id}}', 'stable', 1, now());
    set local session_replication_role = origin"""
COPIED = f"""{OFFER};
    insert into user_engines (tenant_id, user_id, slug, engine_tenant_id, engine_id, version, created_at, updated_at) values
        ('{{a}}', '{{user}}', 'shown', '{{platform}}', '{{same_id}}', 1, now(), now()), ('{{a}}', '{{user}}', 'own', '{{a}}', '{{same_id}}', 1, now(), now()),
        ('{{b}}', '{{b_user}}', 'shown', '{{platform}}', '{{same_id}}', 1, now(), now())"""
OFFERED = "select %s from offered_engines(%s)"
ASKING = """select publish_workflow((save_workflow('asks', '{"name": "Asks", "nodes": [{"id": "a", "kind": "llm", "model": "sandbox-small", "prompt": "Hi"}]}',
    p_user_id => '{user}', p_tenant_id => '{a}') ->> 'id')::uuid)"""
ASKS = "select deploy_engine('new', w.id) ->> 'version' from ai_workflows w where w.slug = 'asks'"
ADMINS = [
    (f"select set_engine({ENGINE}, 'New')", "engine.set", f"{ROW % 'name'} = 'New'"),
    (f"select promote_engine({ENGINE}, 2)", "engine.promoted", f"{ALIAS % ('version', 'stable')} = 2 and {ALIAS % ('true', 'canary')} is null"),
    (f"select promote_engine({ENGINE}, 1, 'canary', 7)", "engine.promoted", ALIAS % ("version = 1 and weight = 7 and earlier = '{2}'", "canary")),
    (f"select rollback_engine({ENGINE}, 'canary')", "engine.rolled_back", f"{ALIAS % ('true', 'canary')} is null"),
    (f"select retire_engine({ENGINE})", "engine.retired", f"{ROW % 'status'} = 'retired'"),
    (f"select set_level_engine('{{level}}', {ENGINE}, 'read')", "level.engine", f"{LEVEL} = 'read'"),
    (f"select set_level_engine('{{level}}', {ENGINE}, null)", "level.engine", f"{LEVEL} is null"),
    (f"select assign_engine({ENGINE}, 'tenant')", "engine.assigned", ASSIGNED % ("target = 'tenant'", 1)),
    (f"select assign_engine({ENGINE}, 'user', '{{user}}', p_pin => '2')", "engine.assigned", ASSIGNED % ("pin_version = 2 and user_id = '{user}'", 1)),
    (f"select assign_engine({ENGINE}, 'level', '{{level}}', p_pin => 'canary')", "engine.assigned", ASSIGNED % ("pin_alias = 'canary'", 1)),
    ("select unassign_engine('{assignment}')", "engine.unassigned", ASSIGNED % ("user_id = '{user}'", 0)),
    (f"select rebase_engine_copies({ENGINE}, '2')", "engine.copies_rebased", f"{MOVED % 'user'} and {MOVED % 'other'}"),
]  # fmt: skip

CASES = [
    # what an admin does, and nobody else
    *[Case(who, statement, then=then, audit=audit) for statement, audit, then in ADMINS for who in ("admin", "service")],
    *[Case("user", statement, "VS403") for statement, _, _ in ADMINS],
    *[Case("nobody", statement, "VS401") for statement, _, _ in ADMINS],
    *[Case("super", statement, "VS404") for statement, _, _ in ADMINS],
    *[Case("admin", statement.replace("{engine}", "{b_engine}").replace("{assignment}", "{b_assignment}"), "VS404") for statement, _, _ in ADMINS],
    *[Case("operator", f"{statement[:-1]}, p_tenant_id => '{{a}}')", then=then) for statement, _, then in ADMINS],
    *[Case("operator", f"{statement[:-1]}, p_tenant_id => '{{b}}')", "VS404") for statement, _, _ in ADMINS],
    # deployed
    Case("admin", DEPLOY % ("new", "", "version"), "= (1)", audit="engine.deployed",
         then="(select version = 1 from engine_aliases a join ai_engines e on e.tenant_id = a.tenant_id and e.id = a.engine_id where e.tenant_id = '{a}' and e.slug = 'new')"),
    Case("admin", DEPLOY % ("{word}", "", "version"), "= (3)", then=f"{VERSION % ('state', 3)} = 'published' and {ALIAS % ('version', 'stable')} = 1"),
    Case("admin", f"select deploy_engine('{{word}}', {FLOW}, p_mode => 'sequential', p_parameters => (select config -> 'parameters' from engine_versions where {OF_A} and version = 2)) ->> 'unchanged'",
         "= (true)"),
    Case("admin", f"select deploy_engine('{{word}}', {FLOW}, p_mode => 'sequential', p_parameters => (select config -> 'parameters' from engine_versions where {OF_A} and version = 2)) ->> 'version'",
         "= (3)", f"update engine_versions set state = 'retired', retired_at = now() where {OF_A} and version = 2"),
    Case("admin", DEPLOY % ("{word}", "", "engine_id"), "= ({engine})", RETIRED, then=f"{ROW % 'status'} = 'active'"),
    Case("admin", DEPLOY % ("new", ", p_tenant_id => '{b}'", "version"), "VS404"),
    Case("admin", "select deploy_engine('new', '{b_flow}')", "VS404"),
    Case("admin", DEPLOY % ("new", ", 2", "version"), "VS404"),
    Case("admin", DEPLOY % ("new", "", "version"), "VS409",
         "update workflow_versions set state = 'retired', retired_at = now() where tenant_id = '{a}' and workflow_id = '{others_part}'"),
    Case("admin", DEPLOY % ("new", "", "version"), "VS404", "update ai_workflows set user_id = null, origin_tenant_id = '{platform}' where tenant_id = '{a}' and id = '{others_part}'"),
    Case("user", DEPLOY % ("new", "", "version"), "VS403"),
    Case("nobody", DEPLOY % ("new", "", "version"), "VS401"),
    Case("operator", DEPLOY % ("new", ", p_tenant_id => '{a}'", "version"), "= (1)"),
    Case("admin", ASKS, "= (1)", ASKING),
    Case("admin", ASKS, "VS422 the flow makes no engine", f"{ASKING}; update ai_models set status = 'disabled' where slug = 'sandbox-small'"),
    Case("admin", ASKS, "VS422 the flow makes no engine", f"{ASKING}; update ai_providers set status = 'disabled' where slug = 'sandbox'"),
    # versions and aliases
    Case("admin", f"select promote_engine({ENGINE}, 3)", "VS404"),
    Case("admin", f"select promote_engine({ENGINE}, 1)", "VS409", f"update engine_versions set state = 'retired', retired_at = now() where {OF_A} and version = 1"),
    Case("admin", f"select rollback_engine({ENGINE}) ->> 'version'", "= (2)", f"update engine_aliases set earlier = '{{1,2}}' where {OF_A} and alias = 'stable'",
         then=f"{ALIAS % ('earlier', 'stable')} = '{{1}}'"),
    Case("admin", f"select rollback_engine({ENGINE}) ->> 'version'", "= (1)", f"update engine_aliases set earlier = '{{1,2}}' where {OF_A} and alias = 'stable';"
         f" update engine_versions set state = 'retired', retired_at = now() where {OF_A} and version = 2"),
    Case("admin", f"select rollback_engine({ENGINE})", "VS409"),
    Case("admin", f"select retire_engine({ENGINE}, 2)", "VS409 version 2 is canary"),
    Case("admin", f"select retire_engine({ENGINE}, 2)", given=f"delete from engine_aliases where {OF_A} and alias = 'canary'", then=f"{VERSION % ('state', 2)} = 'retired'"),
    Case("admin", f"select retire_engine({ENGINE}, 2)", "VS409 version 2 is retired already",
         f"delete from engine_aliases where {OF_A} and alias = 'canary'; update engine_versions set state = 'retired', retired_at = now() where {OF_A} and version = 2"),
    Case("admin", f"select retire_engine({ENGINE}, 3)", "VS404"),
    Case("admin", f"select retire_engine({ENGINE})", "VS409", RETIRED),
    Case("admin", f"select assign_engine({ENGINE}, 'tenant')", "VS409", RETIRED),
    Case("admin", f"select assign_engine({ENGINE}, 'user', '{{b_user}}')", "VS404"),
    Case("admin", f"select assign_engine({ENGINE}, 'level', '{{b_level}}')", "VS404"),
    Case("admin", f"select assign_engine({ENGINE}, 'tenant', p_pin => '3')", "VS404"),
    Case("admin", f"select assign_engine({ENGINE}, 'tenant', p_pin => '2')", "VS409", f"update engine_versions set state = 'retired', retired_at = now() where {OF_A} and version = 2"),
    Case("admin", f"select assign_engine({ENGINE}, 'platform')", "VS403"),
    Case("admin", f"select assign_engine({ENGINE}, 'tenant', p_pin => 'odd')", "VS400 a pin is"),
    Case("admin", f"select assign_engine({ENGINE}, 'odd')", "VS400 a target is"),
    Case("admin", f"select assign_engine({ENGINE}, 'tenant', p_valid_from => now(), p_valid_to => now())", "VS400 it ends"),
    Case("admin", "select delete_workflow('{flow}')", "VS409 engines were made", "select deploy_engine('new', '{flow}', p_tenant_id => '{a}')"),
    Case("admin", f"select set_level_engine('{{b_level}}', {ENGINE}, 'read')", "VS404"),
    Case("admin", "select retire_workflow('{others_part}')", "VS409 the engine"),
    Case("admin", "select retire_workflow('{others_part}', 1)", "VS409 the engine"),
    Case("admin", "select retire_workflow('{others_part}')", given=RETIRED),
    # chosen
    Case("user", RESOLVE % ("", "source"), "= (user)"),
    Case("user", RESOLVE % ("", "source_id"), "= ({assignment})"),
    Case("user", RESOLVE % ("p_ref => '{word}'", "version"), "= (1)"),
    Case("user", RESOLVE % ("p_ref => '{word}'", "version"), "= (2)", CANARY),
    Case("user", RESOLVE % ("p_ref => '{word}@canary'", "version"), "= (2)"),
    Case("user", RESOLVE % ("p_ref => '{word}@3'", "denied_reason"), "= (no_version)"),
    Case("user", RESOLVE % ("p_ref => '{word}'", "denied_reason"), "= (engine_retired)", RETIRED),
    Case("user", RESOLVE % ("p_ref => '{word}'", "denied_reason"), "= (read_only)", DENY % "read"),
    Case("user", RESOLVE % ("p_ref => '{word}'", "denied_reason"), "= (unknown)", DENY % "none"),
    Case("admin", RESOLVE % ("'{user}', '{word}'", "denied_reason"), "= (not_entitled)", DENY % "none"),
    Case("user", RESOLVE % ("p_ref => 'twin-engine'", "denied_reason"), "= (unknown)"),
    Case("user", RESOLVE % ("p_ref => 'my/{word}-own'", "source_id"), "= ({copy})"),
    Case("user", RESOLVE % ("", "source"), "= (copy)", "update user_engines set is_default = true where tenant_id = '{a}' and user_id = '{user}'"),
    Case("user", RESOLVE % ("", "source"), "= (level)", f"delete from engine_assignments where {OF_A} and user_id = '{{user}}'"),
    Case("admin", RESOLVE % ("'{user}'", "source_id"), "= ({assignment})"),
    Case("operator", RESOLVE % ("'{user}', p_tenant_id => '{a}'", "source_id"), "= ({assignment})"),
    Case("user", RESOLVE % ("'{other}'", "source"), "VS403"),
    Case("admin", RESOLVE % ("'{b_user}'", "source"), "VS404"),
    Case("user", RESOLVE % ("p_tenant_id => '{b}'", "source"), "VS404"),
    Case("nobody", RESOLVE % ("", "source"), "VS401"),
    Case("user", EXPLAIN % "", "= (\"user level\")"),
    Case("user", EXPLAIN % "", "= (\"user level tier\")", TIER),
    Case("user", EXPLAIN % "", "= ()", DENY % "none"),
    Case("admin", EXPLAIN % "'{user}'", "= (\"user level\")", DENY % "none"),
    Case("user", "select explain_engine() -> 0 ->> 'platform'", "= (false)"),
    Case("user", EXPLAIN % "'{other}'", "VS403"),
    Case("admin", EXPLAIN % "'{b_user}'", "VS404"),
    Case("user", "select count(*) from my_engines()", "= (1)"),
    Case("user", "select count(*) from my_engines()", "= (1)", DENY % "read"),
    Case("user", "select count(*) from my_engines()", "= (0)", DENY % "none"),
    Case("user", "select count(*) from my_engines()", "= (0)", RETIRED),
    Case("user", "select version from my_engines()", "= (1)"),
    Case("user", "select platform from my_engines()", "= (f)"),
    Case("admin", EXPLAIN % "'{user}'", "= (\"user level\")"),
    Case("user", "select count(*) from my_engines('{other}')", "VS403"),
    # copied
    Case("user", "select fork_engine('{word}', 'new') ->> 'version'", "= (1)", then=COPIES % (MINE, 1)),
    Case("user", "select fork_engine('{word}', 'new', p_is_default => true)", given="update user_engines set is_default = true where tenant_id = '{a}'",
         then=COPIES % ("is_default and user_id = '{user}'", 1) + " and " + COPIES % ("is_default and user_id = '{other}'", 1)),
    Case("user", "select fork_engine('{word}@2', '{word}-own') ->> 'id'", "= ({copy})", then=COPIES % ("version = 2", 1)),
    Case("user", """select fork_engine('{word}', 'new', '{"tone": "x"}')"""),
    Case("user", """select fork_engine('{word}', 'new', '{"odd": 1}')""", "VS422"),
    Case("user", """select fork_engine('{word}', 'new', '{"tone": 1}')""", "VS422"),
    Case("user", "select fork_engine('{word}', 'new')", "VS403", DENY % "read"),
    Case("user", "select fork_engine('{word}', 'new')", "VS404", DENY % "none"),
    Case("user", "select fork_engine('{word}', 'new', p_user_id => '{other}')", "VS403"),
    Case("admin", "select fork_engine('{word}', 'new', p_user_id => '{user}')", then=COPIES % (MINE, 1)),
    Case("admin", "select fork_engine('{word}', 'new', p_user_id => '{b_user}')", "VS404"),
    Case("user", "select delete_engine_copy('{copy}')", then=COPIES % ("user_id = '{user}'", 0)),
    Case("user", "select delete_engine_copy('{others_copy}')", "VS404"),
    Case("admin", "select delete_engine_copy('{others_copy}')", then=COPIES % ("user_id = '{other}'", 0)),
    Case("admin", "select delete_engine_copy('{b_copy}')", "VS404"),
    Case("nobody", "select delete_engine_copy('{copy}')", "VS401"),
    # taken to another version
    Case("user", REBASE % ("copy", "") + " ->> 'from'", "= (1)", then=MOVED % "user"),
    Case("user", REBASE % ("copy", ", p_dry_run => true") + " ->> 'changed'", "= (true)", then=COPIES % ("version = 1", 2)),
    Case("user", "select rebase_engine_copy('{copy}') ->> 'changed'", "= (false)"),
    Case("user", "select rebase_engine_copy('{copy}') ->> 'version'", "= (2)", CANARY),
    Case("user", """select rebase_engine_copy('{copy}', null, '{"tone": "x"}') ->> 'changed'""", "= (true)", then=COPIES % ("""overlay = '{"tone": "x"}'""", 1)),
    Case("user", """select rebase_engine_copy('{copy}', '2', '{"tone": null}') ->> 'dropped'""", '= ("[""tone""]")', then=COPIES % ("overlay = '{}'", 1)),
    Case("user", REBASE % ("others_copy", ""), "VS404 no such copy"),
    Case("admin", REBASE % ("others_copy", ""), then=MOVED % "other"),
    Case("service", REBASE % ("others_copy", ""), then=MOVED % "other"),
    Case("operator", REBASE % ("others_copy", ", p_tenant_id => '{a}'"), then=MOVED % "other"),
    Case("operator", REBASE % ("others_copy", ", p_tenant_id => '{b}'"), "VS404"),
    Case("admin", REBASE % ("b_copy", ""), "VS404 no such copy"),
    Case("nobody", REBASE % ("copy", ""), "VS401"),
    Case("user", REBASE % ("copy", ""), "VS422", UNFIT),
    Case("user", REBASE % ("copy", ", p_dry_run => true") + " #>> '{conflicts,0,code}'", "= (parameter_invalid)", UNFIT),
    Case("user", REBASE % ("copy", ", p_drop => true"), given=UNFIT, then=COPIES % ("version = 2 and overlay = '{}'", 1)),
    Case("user", REBASE % ("copy", """, '{"odd": 1}'"""), "VS422"),
    Case("user", REBASE % ("copy", ", '[]'"), "VS400 an overlay is"),
    Case("user", "select rebase_engine_copy('{copy}', 'odd')", "VS400 a copy goes to"),
    Case("user", "select rebase_engine_copy('{copy}', '3')", "VS404 no such version"),
    Case("user", "select rebase_engine_copy('{copy}', 'canary')", "VS404 no such version", f"delete from engine_aliases where {OF_A} and alias = 'canary'"),
    Case("user", REBASE % ("copy", ""), "VS422", NO_SECOND),
    Case("user", REBASE % ("copy", ""), "VS422", RETIRED),
    Case("user", REBASE % ("copy", ""), "VS422", DENY % "read"),
    Case("user", REBASE % ("copy", ""), "VS404 no such engine", DENY % "none"),
    Case("user", REBASE % ("copy", ", p_dry_run => true"), "VS404 no such engine", DENY % "none"),
    Case("admin", REBASE % ("copy", ""), "VS422", DENY % "none"),
    Case("admin", f"select rebase_engine_copies({ENGINE}, '2', p_dry_run => true) #>> '{{1,changed}}'", "= (true)", then=COPIES % ("version = 1", 2)),
    Case("admin", f"select rebase_engine_copies({ENGINE}, '2') -> 2", "= ()", UNFIT, then=COPIES % ("version = 1", 1) + " and " + MOVED % "other"),
    Case("admin", f"select rebase_engine_copies({ENGINE}, '2', true)", given=UNFIT, then=COPIES % ("version = 2 and overlay = '{}'", 1) + " and " + MOVED % "other"),
    Case("admin", f"select rebase_engine_copies({ENGINE}, 'odd')", "VS400 a copy goes to"),
    Case("admin", "select jsonb_array_length(rebase_engine_copies('{same_id}', '2', p_dry_run => true))", "= (1)", COPIED),
    # foreseen
    Case("user", PREVIEW % ("", "source"), "= (user)"),
    Case("user", PREVIEW % ("'{word}@2'", "version"), "= (2)"),
    Case("user", PREVIEW % ("'my/{word}-own'", "input"), '= ("{""tone"": ""{word}""}")'),
    Case("user", PREVIEW % ("""'my/{word}-own', '{"tone": "x"}'""", "input"), '= ("{""tone"": ""x""}")'),
    Case("user", PREVIEW % ("'{word}'", "schema"), '= ("{""type"": ""object""}")'),
    Case("user", PREVIEW % ("'{word}'", "replayed"), "= (false)"),
    Case("user", PREVIEW % ("'{word}', '{}', 'k'", "replayed"), "= (true)", "select execute_engine('{word}', '{}', 'k', p_user_id => '{user}', p_tenant_id => '{a}')"),
    Case("user", PREVIEW % ("'{word}', '{}', '{word}-0'", "version"), "VS410"),
    Case("user", PREVIEW % ("'{word}', '[]'", "version"), "VS400 the input is"),
    Case("user", PREVIEW % ("'{word}'", "version"), "VS403", DENY % "read"),
    Case("user", PREVIEW % ("'{word}'", "version"), "VS404", DENY % "none"),
    Case("user", PREVIEW % ("'{word}'", "version"), "VS409", RETIRED),
    Case("admin", PREVIEW % ("'{word}', p_user_id => '{user}'", "version"), "= (1)"),
    Case("user", PREVIEW % ("'{word}', p_user_id => '{other}'", "version"), "VS403"),
    Case("admin", PREVIEW % ("'{word}', p_user_id => '{b_user}'", "version"), "VS404"),
    Case("nobody", PREVIEW % ("'{word}'", "version"), "VS401"),
    Case("runtime", PREVIEW_BY_KEY % ("null", "version"), "= (1)", ENGINE_KEY),
    Case("runtime", PREVIEW_BY_KEY % ("null", "version"), "VS404 no such engine", f"{ENGINE_KEY}; {ANOTHER}"),
    Case("runtime", PREVIEW_BY_KEY % ("'{word}@2'", "version"), "VS404", ENGINE_KEY),
    Case("runtime", PREVIEW_BY_KEY % ("null", "version"), "VS403"),
    Case("runtime", "select vanilla.preview_by_key(sha256('none'), null, '{}')", "VS411"),
    Case("runtime", PREVIEW_BY_KEY % ("null", "version"), "VS403", f"{ENGINE_KEY}; {DENY % 'read'}"),
    # offered by the platform
    Case("admin", OFFERED % ("slug || version", ""), "= (shown2)", OFFER),
    Case("admin", OFFERED % ("count(*)", ""), "= (1)", OFFER),
    Case("admin", OFFERED % ("count(*)", ""), "= (0)", f"{OFFER}; update ai_engines set offered = false where tenant_id = '{{platform}}'"),
    Case("admin", OFFERED % ("count(*)", ""), "= (0)", f"{OFFER}; update ai_engines set status = 'retired' where tenant_id = '{{platform}}'"),
    Case("admin", OFFERED % ("hidden", ""), "= (f)", OFFER),
    Case("admin", OFFERED % ("hidden", ""), "= (f)", f"{OFFER}; update ai_engines set slug = 'shown' where tenant_id = '{{b}}'"),
    Case("admin", OFFERED % ("hidden", ""), "= (t)", f"{OFFER}; update ai_engines set slug = 'shown' where tenant_id = '{{a}}' and id = '{{engine}}'"),
    Case("admin", OFFERED % ("(select count(*) from jsonb_array_elements(levels)) = (select count(*) from levels)", ""), "= (t)", OFFER),
    Case("admin", OFFERED % ("(select string_agg(l ->> 'access', ' ') from jsonb_array_elements(levels) l)", ""), "= (read)", OFFER),
    Case("operator", OFFERED % ("slug", "'{a}'"), "= (shown)", OFFER),
    Case("user", OFFERED % ("slug", ""), "VS403", OFFER),
    Case("nobody", OFFERED % ("slug", ""), "VS401", OFFER),
    Case("admin", OFFERED % ("slug", "'{b}'"), "VS404", OFFER),
    # run
    Case("user", RUN % ("", "source"), "= (user)", then=RAN % (1, "user", "user")),
    Case("user", RUN % ("'{word}@2'", "version"), "= (2)", then="(select at_once = 1 and input = '{}' from workflow_executions where tenant_id = '{a}' and user_id = '{user}' and started_at = vanilla.clock()"
         " and workflow_id = '{others_part}')"),
    Case("user", RUN % ("'my/{word}-own'", "source"), "= (reference)",
         then="""(select input = '{"tone": "{word}"}' and at_once is null from workflow_executions where tenant_id = '{a}' and user_id = '{user}' and workflow_id = '{others_part}')"""),
    Case("admin", RUN % ("'{word}', p_user_id => '{user}'", "version"), "= (1)", then=RAN % (1, "reference", "user")),
    *[Case("user", "select execute_engine('{word}') #>> '{estimate,runs}'", f"= ({found})", f"{OF_RUN % run}; update engine_executions set version = 1 where tenant_id = '{{a}}' and created_at < '2100-01-01'")
      for run, found in (("ended", 1), ("lost", 0))],
    Case("user", RUN % ("'{word}'", "version"), "VS403", DENY % "read"),
    Case("user", RUN % ("'{word}'", "version"), "VS404", DENY % "none"),
    Case("user", RUN % ("", "version"), "VS404", DENY % "none"),
    Case("user", RUN % ("'{word}'", "version"), "VS409", RETIRED),
    Case("user", RUN % ("'{word}'", "version"), "VS409", f"update engine_versions set state = 'retired', retired_at = now() where {OF_A}"),
    Case("user", RUN % ("'{word}', p_user_id => '{other}'", "version"), "VS403"),
    Case("admin", RUN % ("'{word}', p_user_id => '{b_user}'", "version"), "VS404"),
    Case("nobody", RUN % ("'{word}'", "version"), "VS401"),
    Case("user", "select execute_engine('{word}', '{}', 'k'), execute_engine('{word}', '{}', 'k') ->> 'replayed' = 'true'",
         then="(select count(*) = 1 from engine_executions where tenant_id = '{a}' and user_id = '{user}' and created_at = vanilla.clock())"),
    Case("user", RUN % ("'{word}', '{}', '{word}-0'", "version"), "VS410"),
    # keys
    Case("user", KEY % "", audit="api_key.created", then="(select engine_id = '{engine}' and scopes = array['engine'] and user_id = '{user}' from api_keys where tenant_id = '{a}' and key_hash = sha256('new'))"),
    Case("admin", KEY % ", p_user_id => '{user}'"),
    Case("user", KEY % ", p_user_id => '{other}'", "VS403"),
    Case("admin", KEY % ", p_user_id => '{b_user}'", "VS404"),
    Case("user", KEY % "", "VS403", DENY % "read"),
    Case("user", "select create_engine_key(null, 'n', 'p', sha256('new'))", "VS400 a key is for"),
    Case("user", "select fork_engine(null, 'new')", "VS400 a copy is of"),
    Case("user", "select fork_engine('{word}', 'new', '[]')", "VS400 an overlay is"),
    Case("user", "select fork_engine('{word}', 'A b')", "VS400 the copy is not valid"),
    Case("user", "select fork_engine('{word}', '{word}-own')", "VS409", "update user_engines set engine_id = (select (deploy_engine('new', '{flow}', p_tenant_id => '{a}') ->> 'engine_id')::uuid) where tenant_id = '{a}' and id = '{copy}'"),
    Case("admin", f"select promote_engine({ENGINE}, 1, 'odd')", "VS400 the alias is"),
    Case("admin", f"select promote_engine({ENGINE}, 1, 'canary')", "VS400 a canary has"),
    Case("admin", f"select rollback_engine({ENGINE}, 'canary')", "VS404", f"delete from engine_aliases where {OF_A} and alias = 'canary'"),
    Case("admin", f"select set_engine({ENGINE}, p_offered => true)", "VS400 only the platform"),
    Case("admin", f"select set_engine({ENGINE}, p_default_access => 'odd')", "VS400 the engine is not valid"),
    Case("admin", f"select set_level_engine('{{level}}', {ENGINE}, 'odd')", "VS400 the access is"),
    Case("admin", DEPLOY % ("new", ", p_mode => 'odd'", "version"), "VS400 the mode is"),
    Case("admin", DEPLOY % ("new", ", p_at_once => 1", "version"), "VS400 at once are"),
    Case("admin", DEPLOY % ("A b", "", "version"), "VS400 the engine is not valid"),
    Case("admin", DEPLOY % ("new", ", p_output => '[]'", "version"), "VS400 the output"),
    Case("admin", DEPLOY % ("new", ", p_parameters => '[]'", "version"), "VS422"),
    Case("user", RESOLVE % ("p_ref => 'A b'", "version"), "VS400 this names no engine"),
    Case("user", RUN % ("'{word}', '[]'", "version"), "VS400 the input is"),
    Case("user", RUN % ("'{word}', p_priority => 10", "version"), "VS400 a priority is"),
    Case("user", RUN % ("'{word}@3'", "version"), "VS404 no such version"),
    Case("runtime", BY_KEY % ("null", "source"), "VS404 no such engine", ENGINE_KEY + "; update ai_engines set slug = 'gone' where tenant_id = '{a}' and id = '{engine}'"),
    Case("user", KEY % "", "VS429", "update levels set restrictions = '{\"api_keys\": 1}' where tenant_id = '{a}' and id = '{level}'"),
    Case("user", KEY % ", now() - interval '1 day'", "VS400"),
    Case("runtime", BY_KEY % ("null", "source"), "= (key)", ENGINE_KEY, then=RAN % (1, "key", "user")),
    Case("runtime", BY_KEY % ("'{word}'", "source"), "= (key)", ENGINE_KEY + "; update api_keys set last_used_at = null where id = '{key_id}'"),
    Case("runtime", BY_KEY % ("'{word}@2'", "source"), "VS404", ENGINE_KEY),
    Case("runtime", BY_KEY % ("null", "source"), "VS403"),
    Case("runtime", "select vanilla.execute_by_key(sha256('none'), null, '{}')", "VS411"),
    Case("runtime", BY_KEY % ("null", "source"), "VS411", ENGINE_KEY + "; update api_keys set revoked_at = now() where tenant_id = '{a}' and id = '{key_id}'"),
    Case("runtime", BY_KEY % ("null", "source"), "VS429", ENGINE_KEY + "; update api_keys set budget_tokens = 1, used_tokens = 1 where tenant_id = '{a}' and id = '{key_id}'"),
    Case("runtime", BY_KEY % ("null", "source"), "VS403", f"{ENGINE_KEY}; {DENY % 'read'}"),
    Case("user", "select create_api_key('n', 'p', sha256('new'), array['engine'])", "VS400"),
    # begun for who waits: the usual caller, and what the reference meant the last time; all else is left to execute_engine
    Case("runtime", BEGIN % ("'{word}'", MEANT, "'{hands}'") + "#>> '{run, source}'", "= (reference)", then=RAN % (1, "reference", "user")),
    Case("runtime", BEGIN % ("'{word}'", MEANT, "'{hands}'") + "#>> '{steps, 0, attempt}'", "= (1)",
         then="exists (select from workflow_queue where tenant_id = '{a}' and worker = '{hands}' and user_id = '{user}' and claimed_at = vanilla.clock())"),
    Case("runtime", BEGIN % ("'{word}'", MEANT.replace('"version": 1', '"version": 2'), "'{hands}'"), "= ()"),
    Case("runtime", BEGIN % ("'{word}'", MEANT.replace("{engine}", "{b_engine}"), "'{hands}'"), "= ()"),
    Case("runtime", BEGIN % ("'{word}'", MEANT.replace("null", '"{user}"'), "'{hands}'"), "= ()"),
    Case("runtime", BEGIN % ("'{word}'", MEANT, "'{user}'"), "VS409"),
    *[Case("runtime", BEGIN % ("'{word}'", MEANT, "'{hands}'"), "= ()", given) for given in (
        ENGINE_KEY, "update api_keys set budget_tokens = 10 where tenant_id = '{a}' and id = '{key_id}'",
        "update api_keys set scopes = '{read}' where tenant_id = '{a}' and id = '{key_id}'",
        "update api_keys set revoked_at = now() where tenant_id = '{a}' and id = '{key_id}'",
        "update api_keys set expires_at = '2000-01-02', created_at = '2000-01-01' where tenant_id = '{a}' and id = '{key_id}'",
        "update users set status = 'disabled' where tenant_id = '{a}' and id = '{user}'",
        "update tenants set status = 'suspended' where id = '{a}'")],
    Case("runtime", BEGIN_BY_SESSION + "#>> '{run, source}'", "= (reference)", then=RAN % (1, "reference", "user")),
    *[Case("runtime", BEGIN_BY_SESSION, "= ()", f"update sessions set {given} where token_hash = {{user_session}}") for given in (
        "revoked_at = now()", "rotated_at = now()", "expires_at = '2000-01-02', created_at = '2000-01-01'")],
    *[Case("runtime", BEGIN_BY_SESSION, "= ()", f"update users set {given} where tenant_id = '{{a}}' and id = '{{user}}'") for given in (
        "status = 'disabled'", "must_change_password = true")],
    Case("runtime", BEGIN_BY_SESSION, "= ()", "update tenants set status = 'suspended' where id = '{a}'"),
    Case("runtime", BEGIN % ("'{word}'", MEANT, "'{hands}'"), "VS403", DENY % "read"),
    # told
    Case("admin", REPORT % "", "= (6)", REPORTED),
    Case("operator", REPORT % ", '{a}'", "= (6)", REPORTED),
    Case("admin", REPORT.replace("runs", "succeeded") % "", "= (1)", OF_RUN % "ended"),
    Case("admin", REPORT.replace("runs", "gates") % "", "= (1)", OF_RUN % "running"),
    *[Case("admin", REPORT.replace("runs", "succeeded, failed, cancelled, running") % "", f"= ({told})", OF_RUN % run + more)
      for run, told, more in (("ended", "1,0,0,0", ""), ("lost", "0,1,0,0", ""), ("running", "0,0,0,1", ""),
                              ("lost", "0,0,1,0", "; update workflow_executions set status = 'cancelled' where tenant_id = '{a}' and id = '{lost}'"),
                              ("running", "0,0,0,1", "; update workflow_executions set status = 'paused' where tenant_id = '{a}' and id = '{running}'"))],
    Case("admin", REPORT.replace("runs", "alias") % "", "= (stable)", f"{REPORTED}; update engine_executions set version = 1 where tenant_id = '{{a}}' and created_at < '2100-01-01'"),
    Case("admin", REPORT.replace("runs", "weight") % "", "= (0)", f"{REPORTED}; update engine_executions set version = 2 where tenant_id = '{{a}}' and created_at < '2100-01-01'"),
    Case("admin", REPORT.replace("runs", "gate_pass_rate = gates_passed::numeric / gates") % "", "= (t)", OF_RUN % "running"),
    Case("user", REPORT % "", "VS403"),
    Case("nobody", REPORT % "", "VS401"),
    Case("admin", REPORT % ", '{b}'", "VS404"),
    # seen
    *[Case("user", f"select count(*) from {table}", "= (0)") for table in ("ai_engines", "engine_versions", "engine_aliases", "level_engines", "engine_assignments")],
    Case("user", "select count(*) from user_engines", "= (1)"),
    Case("admin", "select count(*) from user_engines", "= (2)"),
    Case("admin", "select count(*) from engine_versions", "= (2)"),
    # with an erased user, and with a level
    Case("admin", "select erase_user('{user}', 'asked')", then=COPIES % ("true", 1) + " and " + ASSIGNED % ("true", 2)),
    Case("admin", "select delete_level('{paid}')", given="update user_subscriptions set level_id = '{level}' where tenant_id = '{a}'; delete from level_changes where tenant_id = '{a}'; delete from payment_top_ups where tenant_id = '{a}'; delete from payment_subscriptions where tenant_id = '{a}'; delete from payment_prices where tenant_id = '{a}';"
         " insert into level_engines (tenant_id, level_id, engine_tenant_id, engine_id, access) values ('{a}', '{paid}', '{a}', '{engine}', 'read');"
         " insert into engine_assignments (tenant_id, engine_tenant_id, engine_id, target, level_id, assigned_at) values ('{a}', '{a}', '{engine}', 'level', '{paid}', now())",
         then=ASSIGNED % ("true", 3) + " and (select count(*) from level_engines where tenant_id = '{a}') = 1"),
]  # fmt: skip
