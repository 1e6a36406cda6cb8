"""`python -m tests.workflows.seed`: writes the templates that ship into 006, so that psql alone installs them too."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from vanilla_saas.workflows.library import WorkflowTemplate, library

FILE = Path(__file__).parents[2] / "migrations" / "006_workflow_system.sql"
BEGIN, END = "-- templates: python -m tests.workflows.seed\n", "-- end of templates\n"


def seeded(text: str) -> str:
    """The migration with the templates of the library in it."""
    rows = ",\n".join(_rows())
    insert = (
        "insert into public.workflow_templates (tenant_id, id, slug, name, description, parameters, definition)\n"
        f"values\n{rows}\non conflict do nothing;\n"
    )
    block = re.compile(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", re.DOTALL)
    assert block.search(text), "006 has no place for the templates"
    return block.sub(lambda _: insert, text)


def _rows() -> Iterator[str]:
    for number, template in enumerate(library().values(), start=1):
        made = f"00000000-0000-7000-8000-0000000006{number:02d}"
        name, description = (text.replace("'", "''") for text in (template.name, template.description))
        yield (
            f"    (vanilla.platform(), '{made}', '{template.slug}', '{name}', '{description}',\n"
            f"     $t${json.dumps(template.parameters, ensure_ascii=False)}$t$,\n"
            f"     $t${_definition(template)}$t$)"
        )


def _definition(template: WorkflowTemplate) -> str:
    """One line for each node and connection, so that a person reads a change."""
    definition = dict(template.definition)
    lists = {name: definition.pop(name, []) for name in ("nodes", "connections")}
    parts = [json.dumps(definition, ensure_ascii=False)[1:-1]]
    for name, items in lists.items():
        lines = ",\n        ".join(json.dumps(item, ensure_ascii=False) for item in items)  # type: ignore[union-attr]
        parts.append(f'"{name}": [\n        {lines}]')
    return "{" + ", ".join(parts) + "}"


if __name__ == "__main__":
    FILE.write_text(seeded(FILE.read_text()))
