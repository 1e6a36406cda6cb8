"""The migrations run in the SQL editor, any number of times, and give Supabase's API roles nothing by accident."""

import pytest

from tests.conftest import Cluster
from tests.migrations.tools import FILES
from tests.supabase.project import ADMIN, Project, make_project

OWNERS = ("vanilla_owner", "vanilla_definer", "vanilla_system", "vanilla_keyring")
API_ROLES = "('anon', 'authenticated', 'service_role')"
GIVEN_AWAY = f"""
select s.name, coalesce(r.rolname, 'PUBLIC') as grantee, a.privilege_type as privilege
from (select oid::regprocedure::text, proacl, pronamespace, proowner from pg_proc
      union all select oid::regclass::text, relacl, relnamespace, relowner from pg_class
      union all select attrelid::regclass || '.' || attname, attacl, relnamespace, relowner
                from pg_attribute join pg_class c on c.oid = attrelid) s (name, acl, namespace, owner)
cross join lateral aclexplode(s.acl) a
left join pg_roles r on r.oid = a.grantee
where s.namespace in ('public'::regnamespace, 'vanilla'::regnamespace) and s.owner::regrole::text like 'vanilla\\_%'
  and (a.grantee = 0 or r.rolname in {API_ROLES})"""
"""What the API roles and PUBLIC hold of ours, themselves and not as members."""


def given_away(project: Project) -> set[str]:
    text = project.shell(ADMIN).statement(f"select concat_ws(' ', name, grantee, privilege) from ({GIVEN_AWAY}) x")
    return set(text.splitlines())


def test_three_runs_as_postgres_give_the_same_dump(supabase: Cluster, major: int) -> None:
    project = make_project(supabase, major)
    dumps = []
    for _ in range(3):
        project.shell().sequence()
        dumps.append(project.shell().dump())
    assert dumps[0] == dumps[1] == dumps[2]
    assert "CREATE TRIGGER vanilla_follow_auth_user" in dumps[0]
    assert project.shell(ADMIN).statement("select rolsuper from pg_roles where rolname = 'postgres'") == "f"


def test_the_files_run_where_the_database_belongs_to_supabase(supabase: Cluster, major: int) -> None:
    """What only the database's owner may revoke is left to them, without an error or a warning."""
    project = make_project(supabase, major, owner=ADMIN)
    project.shell(ADMIN).statement("alter schema public owner to postgres")
    project.shell(ADMIN).statement(f"grant all on database {project.database} to postgres")
    for _ in range(2):
        project.shell().sequence()
    temporary = f"select has_database_privilege('anon', '{project.database}', 'temp')"
    assert project.shell(ADMIN).statement(temporary) == "t"


def test_each_file_runs_again_while_later_ones_are_absent(supabase: Cluster, major: int) -> None:
    project = make_project(supabase, major)
    for last in range(1, len(FILES) + 1):
        project.shell().sequence(FILES[:last])
        made = project.shell().dump()
        project.shell().sequence(FILES[:last])
        assert project.shell().dump() == made


def test_the_api_roles_hold_nothing_but_the_execution_of_the_operators_functions(project: Project) -> None:
    held = given_away(project)
    assert {line.split(" ")[-2:][0] for line in held} == {"service_role"}
    assert {line.split(" ")[-1] for line in held} == {"EXECUTE"}
    operators = project.shell(ADMIN).statement(
        "select p.oid::regprocedure || ' service_role EXECUTE' from pg_proc p"
        " where pronamespace = 'public'::regnamespace and has_function_privilege('vanilla_operator', p.oid, 'execute')"
    )
    assert held == set(operators.splitlines())
    assert any(line.startswith("reset_monthly_tokens") for line in held)


@pytest.mark.parametrize("setter", [ADMIN, "postgres"])
def test_default_privileges_set_for_our_roles_grant_nothing(supabase: Cluster, major: int, setter: str) -> None:
    project = make_project(supabase, major)
    project.shell().sequence()
    clean = given_away(project)
    _open_default_privileges(project, setter)
    made = project.shell().statement("select vanilla.ensure_partitions(6)")
    assert int(made) >= 6
    assert given_away(project) == clean, "a partition was given away"
    project.shell().sequence()
    assert given_away(project) == clean
    left = project.shell(ADMIN).statement(
        "select count(*) from pg_default_acl d, aclexplode(d.defaclacl) a where a.grantee <> d.defaclrole"
        " and d.defaclrole::regrole::text like 'vanilla\\_%'"
    )
    assert left == "0"


def _open_default_privileges(project: Project, setter: str) -> None:
    """What a page about Supabase tells one to run, for our roles; postgres becomes each of them to do so."""
    for role in OWNERS:
        for kind in ("tables", "functions", "sequences"):
            for place in ("", "in schema public"):
                grant = f"alter default privileges {place} grant all on {kind} to anon, authenticated, service_role"
                project.shell(setter).statement(f"begin; set local role {role}; {grant}; commit")
