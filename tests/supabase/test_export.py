"""`vanilla-saas export supabase`: a tree that the Supabase CLI runs in order, and tests in it that can fail."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import Cluster
from tests.migrations.tools import FILES
from tests.supabase.project import ADMIN, HERE, Project, make_project
from vanilla_saas.cli import app
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.schema import migrations_directory


def export(folder: Path, *options: str) -> dict[str, str]:
    """The files of an export: path below supabase/ and text."""
    done = CliRunner().invoke(app, ["export", "supabase", str(folder), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    root = folder / "supabase"
    found = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    assert sorted(done.output.splitlines()) == sorted(str(root / name) for name in found)
    return found


def test_every_migration_is_there_in_order_and_unchanged(tmp_path: Path) -> None:
    files = export(tmp_path / "new")
    names = sorted(name for name in files if name.startswith("migrations/"))
    assert [re.sub(r"^migrations/\d{14}_", "", name) for name in names] == FILES
    for name in names:
        assert files[name] == (migrations_directory() / name[len("migrations/") + 15 :]).read_text()
    assert {"seed.sql", "config.toml", "README.md"} < set(files)
    assert tomllib.loads(files["config.toml"])["api"]["schemas"] == ["public"]


def test_two_exports_are_the_same(tmp_path: Path) -> None:
    assert export(tmp_path / "one") == export(tmp_path / "two") == export(tmp_path / "one", "--force")


def test_a_folder_that_holds_something_is_left_alone_without_force(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(VanillaError, match="not empty"):
        CliRunner().invoke(app, ["export", "supabase", str(tmp_path)], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    export(tmp_path, "--force")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def exported(supabase: Cluster, major: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """A project to which the tree was applied in the order of the CLI, seed last, all of it twice."""
    folder = tmp_path_factory.mktemp("export") / "tree"
    export(folder)
    project = make_project(supabase, major)
    for _ in range(2):
        for path in [*sorted((folder / "supabase" / "migrations").iterdir()), folder / "supabase" / "seed.sql"]:
            done = project.shell().file(path)
            assert (done.returncode, done.stderr) == (0, ""), f"{path.name}: {done.stderr}"
    done = project.shell(ADMIN).file(HERE / "tap.sql")
    assert done.returncode == 0, done.stderr
    return project, folder / "supabase" / "tests"


def test_the_tree_makes_the_database_that_the_files_make(
    exported: tuple[Project, Path], supabase: Cluster, major: int
) -> None:
    project, _ = exported
    assert (
        project.shell().statement("select string_agg(slug, ',' order by slug) from tenants") == "acme,default,platform"
    )
    by_hand = make_project(supabase, major)
    by_hand.shell().sequence()
    objects = (
        "select md5(string_agg(x, ',' order by x)) from (select oid::regprocedure || prosrc from pg_proc"
        " where pronamespace = 'vanilla'::regnamespace"
        " union all select polname || polrelid::regclass::text from pg_policy) s (x)"
    )
    assert project.shell().statement(objects) == by_hand.shell().statement(objects)


def tap(project: Project, path: Path) -> list[str]:
    """The TAP lines of a test of the tree, run as the CLI runs it: by postgres."""
    done = project.shell().file(path)
    assert done.stderr == "", done.stderr
    lines = re.findall(r"^ *((?:not )?ok \d+ - .*|1\.\.\d+) *$", done.stdout, re.MULTILINE)
    plan = int(lines[0].removeprefix("1.."))
    assert len(lines) == plan + 1, done.stdout
    return lines[1:]


def failed(project: Project, folder: Path) -> list[str]:
    found = [line for path in sorted(folder.iterdir()) for line in tap(project, path)]
    assert len(found) == 23
    return [line for line in found if not line.startswith("ok ")]


def test_the_trees_own_tests_pass(exported: tuple[Project, Path]) -> None:
    assert failed(*exported) == []
    assert failed(*exported) == [], "a second time: nothing stayed"


@pytest.mark.parametrize(
    ("broken", "mended", "expected"),
    [
        (
            "alter table users disable row level security",
            "alter table users enable row level security",
            ["every table has row-level security, forced", "and users of their own tenant"],
        ),
        (
            "create policy extra on user_token_wallets for select to authenticated using (true)",
            "drop policy extra on user_token_wallets",
            ["a user sees their own wallet alone", "claims are nothing outside PostgREST's session"],
        ),
        (
            "grant select on user_token_wallets to anon",
            "revoke select on user_token_wallets from anon",
            ["anon reads and writes no table", "anon reads no wallet"],
        ),
        (
            "grant execute on function reset_monthly_tokens(integer) to public",
            "revoke execute on function reset_monthly_tokens(integer) from public",
            ["anon executes no function", "anon runs no job"],
        ),
        (
            "grant select (password_hash) on users to vanilla_app",
            "revoke select (password_hash) on users from vanilla_app",
            ["no secret column is readable with either key", "a password hash is not read"],
        ),
        (
            "grant update, delete on user_token_wallets, user_token_ledger to vanilla_app",
            "revoke update, delete on user_token_wallets, user_token_ledger from vanilla_app",
            [
                "wallet and ledger are written by functions only",
                "a wallet is not updated",
                "ledger entry is not deleted",
            ],
        ),
        (
            "alter table auth.users disable trigger vanilla_follow_auth_user",
            "alter table auth.users enable trigger vanilla_follow_auth_user",
            ["sign-ups become users"],
        ),
    ],
)
def test_the_trees_own_tests_find_what_is_broken(
    exported: tuple[Project, Path], broken: str, mended: str, expected: list[str]
) -> None:
    project, folder = exported
    project.shell(ADMIN).statement(broken)
    try:
        paths = sorted(folder.iterdir())
        # without sign-ups the second file has no users to look at
        found = tap(project, paths[0]) + (tap(project, paths[1]) if "trigger" not in broken else [])
    finally:
        project.shell(ADMIN).statement(mended)
    wrong = "\n".join(line for line in found if not line.startswith("ok "))
    for description in expected:
        assert description in wrong
