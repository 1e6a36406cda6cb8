"""`vanilla-saas doctor`: what is wrong with this installation, and how each finding is mended."""

from dataclasses import asdict, dataclass

import asyncpg

from vanilla_saas.checks import run_checks
from vanilla_saas.database.connection import Addresses
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.migrator import migrations
from vanilla_saas.database.pool import Database, translated_errors

STILL_FIRST = """
select email from users
where role = 'superadmin' and status = 'active' and must_change_password and password_hash is not null
"""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding: `check` names it, `found` is what was seen, `mend` what to do."""

    check: str
    found: str
    mend: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


async def diagnose(where: Addresses, signer: ContextSigner) -> list[Diagnosis]:
    """Schema, run-time logins, first password, and every file of `checks/`; empty when all is well.

    Raises VanillaError `database_unavailable`.
    """
    async with translated_errors():
        connection = await asyncpg.connect(where.admin, timeout=10)
        try:
            found = await _schema(connection)
            if found and found[0].check == "schema_missing":
                return found
            found += [
                Diagnosis(
                    "super_admin_password",
                    f"{row['email']} still has the password of the first start",
                    "Sign in and change it, or vanilla-saas users set-password",
                )
                for row in await connection.fetch(STILL_FIRST)
            ]
            found += [Diagnosis(f.check.name, str(f), f.check.mend) for f in await run_checks(connection)]
        finally:
            await connection.close()
    return found + await _logins(where, signer)


async def _schema(connection: asyncpg.Connection) -> list[Diagnosis]:
    if await connection.fetchval("select to_regclass('vanilla.schema_migrations') is null"):
        return [Diagnosis("schema_missing", "the database is not migrated", "vanilla-saas migrate")]
    async with connection.transaction():
        await connection.execute("set local role vanilla_owner")
        applied = dict(await connection.fetch("select name, checksum from vanilla.schema_migrations"))
    return [
        Diagnosis(
            "schema_version",
            f"{file.name} {'was applied in another version' if file.name in applied else 'is not recorded as applied'}",
            "vanilla-saas migrate",
        )
        for file in migrations()
        if applied.get(file.name) != file.checksum
    ]


async def _logins(where: Addresses, signer: ContextSigner) -> list[Diagnosis]:
    """The run-time logins connect, and no policy is bypassed by them."""
    try:
        database = await Database.open(where.app, where.runtime, signer, size=1)
    except VanillaError as error:
        return [Diagnosis("runtime_login", error.message, error.hint or "vanilla-saas migrate")]
    await database.close()
    return []
