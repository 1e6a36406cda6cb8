"""Words that only tenant B has: planted in every column that can hold one, and looked for in everything told to A."""

import base64
import re

import asyncpg

from tests.isolation.catalog import Column, Table, enumeration

CANARY = "canary5e1f7c"
"""In every free text of tenant B; letters and digits only, so that it fits slugs, keys and addresses."""
NOT_CANARY = {
    ("tenants", "time_zone"): "must name a time zone, or the wallet functions stop",
    (
        "level_restrictions",
        "patterns",
    ): "null where the restriction is a number; the ids of such rows are watched",
    ("payment_prices", "currency"): "three letters",
    ("api_keys", "engine_ref"): "keys of engines have one",
    ("workflow_versions", "hash"): "is that of the definition, which has one",
    ("engine_versions", "hash"): "is that of the config, which has one",
    ("engine_versions", "price_hash"): "is that of the prices in it",
    ("agreement_versions", "hash"): "is that of the terms, which have one",
    ("protocol_agreements", "suspended_by"): "of a suspended one",
    ("agent_versions", "hash"): "is that of the definition, which has one",
    ("webhook_endpoints", "config_id"): "of a task's",
    ("webhook_endpoints", "context_id"): "of a task's",
    ("workflow_nodes", "branches"): "one for each successor",
    ("workflow_nodes", "next_pools"): "the same",
}
TEXT_TYPES = ("text", "text[]", "jsonb", "bytea")

# twelve bytes at the start of a bytea: as text, in hexadecimal, and exactly sixteen characters of Base64
_FORMS = (CANARY, CANARY.encode().hex(), base64.b64encode(CANARY.encode()).decode())
_WORD = re.compile("|".join(rf"{form}\w*" for form in _FORMS))
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:[\d:.+]+")
_SECONDS = re.compile(r"\b((?:reset|retry_after)_s\W+)\d+")


def words(text: str, ids: set[str]) -> set[str]:
    """The canaries in a text, and those of the ids."""
    return set(_WORD.findall(text)) | (ids & set(_UUID.findall(text)))


def alike(text: str) -> str:
    """A text without what differs from call to call: ids, times and the seconds until one.

    Two answers that are alike tell nothing apart.
    """
    return re.sub(r"\s+", " ", _SECONDS.sub(r"\1<seconds>", _TIME.sub("<time>", _UUID.sub("<id>", text))))


def free_text(table: Table) -> list[Column]:
    """The columns that can hold a canary."""
    return [
        c
        for c in table.columns
        if c.type in TEXT_TYPES and not enumeration(table, c.name) and (table.name, c.name) not in NOT_CANARY
    ]


def holds(column: Column) -> str:
    """SQL: whether the column holds a canary."""
    if column.type == "bytea":
        return f"position(convert_to('{CANARY}', 'UTF8') in {column.name}) = 1"
    return f"{column.name}::text like '%{CANARY}%'"


async def plant(connection: asyncpg.Connection, table: Table, tenant: str) -> None:
    await connection.execute("set session_replication_role = replica")  # references and guards stay out of it
    try:
        for column in free_text(table):
            for expression in _expressions(column):
                try:
                    async with connection.transaction():
                        await connection.execute(
                            f"update public.{table.name} set {column.name} = {expression}"
                            f" where tenant_id = '{tenant}' and {holds(column)} is not true"
                        )
                    break
                except asyncpg.CheckViolationError:
                    continue
    finally:
        await connection.execute("reset session_replication_role")


def _expressions(column: Column) -> list[str]:
    if column.type == "jsonb":
        return [f"""'{{"word": "{CANARY}"}}'"""]
    if column.type == "text[]":
        return [f"'{{{CANARY}}}'"]
    random = "md5(random()::text)"
    if column.type == "bytea":
        return [f"substr(convert_to('{CANARY}', 'UTF8') || decode({random} || {random}, 'hex'), 1, 32)"]
    unique = f"'{CANARY}' || substr({random}, 1, 8)"
    return [
        unique,
        f"{unique} || '@{CANARY}.test'",
        f"'https://' || {unique} || '.test'",
        f"'$argon2id$' || {unique}",
        f"{unique} || ' * * * *'",
        f"'text/' || {unique}",
    ]
