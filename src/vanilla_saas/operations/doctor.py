"""`vanilla-saas doctor`: what is wrong with this installation, and how each finding is mended.

What the database can tell of itself is a file of `checks/`; here is what needs the files, the settings, the context key
or the clock of this machine.
"""

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime

import asyncpg

from vanilla_saas.checks import BOOKS, Finding, Severity, checks, run_checks
from vanilla_saas.database.connection import Addresses, connect_admin
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database, translated_errors
from vanilla_saas.database.rotation import key_states
from vanilla_saas.database.schema import RELOAD, migrations
from vanilla_saas.operations.doctor_backups import backup_findings
from vanilla_saas.operations.doctor_settings import settings_findings
from vanilla_saas.settings import Settings
from vanilla_saas.tenancy import passwords

TOKEN_LIFETIME_S = 60
"""How long a context token is valid: a database whose clock is further ahead refuses every request."""
NOTABLE_SKEW_S = 5
DEFAULT_PASSWORDS = ("admin123", "admin", "password", "changeme", "postgres")
"""What people know without being told; admin123 is the one that tutorials give a super admin."""
ALL_BUT_BOOKS = tuple(check.name for check in checks() if check.name not in BOOKS)
ANOTHER_VERSION = "was applied in another version"
CHECKS = (
    "schema_missing",
    "schema_version",
    "context_key",
    "context_key_left",
    "clock_skew",
    "default_password",
    "runtime_login",
    "superuser_login",
    "export_place",
)
"""The checks of this module, beside the files of `checks/`, `doctor_settings` and `doctor_backups`."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding: `check` names it, `found` is what was seen, `mend` what to do, a command where one does it."""

    check: str
    found: str
    mend: str
    severity: Severity = "error"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


async def diagnose(
    where: Addresses,
    signer: ContextSigner,
    settings: Settings,
    *,
    books: bool = True,
    now: Callable[[], float] = time.time,
) -> list[Diagnosis]:
    """Everything that is wrong, errors first; empty when all is well.

    Without `books` the checks that read every ledger row are left out. `now` is this machine's clock, in epoch seconds.
    Raises VanillaError `database_unavailable`, `forbidden` for a login that is not the operator's.
    """
    found = [Diagnosis(*finding) for finding in settings_findings(settings)]
    connection = await connect_admin(where.admin)
    try:
        async with translated_errors():
            found += await _database(connection, signer, settings, books, now)
            found += await _superuser(connection, where)
            if not any(finding.check == "schema_missing" for finding in found):
                found += await _export_place(connection, settings)
    except asyncpg.InsufficientPrivilegeError as error:
        raise VanillaError(
            "forbidden",
            f"This login may not look into the database: {error.message}.",
            {"need": "vanilla_operator"},
            "Let DATABASE_URL name the login that migrates.",
        ) from None
    finally:
        await connection.close()
    if not any(finding.check == "schema_missing" for finding in found):
        found += await _logins(where, signer)
    return sorted(found, key=lambda finding: (finding.severity != "error", finding.check, finding.found))


async def _database(
    connection: asyncpg.Connection,
    signer: ContextSigner,
    settings: Settings,
    books: bool,
    now: Callable[[], float],
) -> list[Diagnosis]:
    found = await _schema(connection)
    if found and found[0].check == "schema_missing":
        return found
    # a database of another version may lack what its checks read: the version is the finding
    if not any(ANOTHER_VERSION in finding.found for finding in found):
        found += [_of_file(one) for one in await run_checks(connection, None if books else ALL_BUT_BOOKS)]
        found += await _keys(connection, signer)
        found += [Diagnosis(*one) for one in await backup_findings(connection, settings)]
    return found + await _clock(connection, now) + await _default_passwords(connection)


def _of_file(finding: Finding) -> Diagnosis:
    statement = finding.statement
    mend = f"vanilla-saas psql -c {shlex.quote(statement)}" if statement else finding.check.mend
    return Diagnosis(finding.check.name, f"{finding.check.meaning} {finding.figures}", mend, finding.check.severity)


async def _schema(connection: asyncpg.Connection) -> list[Diagnosis]:
    if await connection.fetchval("select to_regclass('vanilla.schema_migrations') is null"):
        return [Diagnosis("schema_missing", "The database is not migrated.", "vanilla-saas migrate")]
    async with connection.transaction():
        await connection.execute("set local role vanilla_owner")
        applied = dict(await connection.fetch("select name, checksum from vanilla.schema_migrations"))
    return [
        Diagnosis(
            "schema_version",
            f"{file.name} {ANOTHER_VERSION if file.name in applied else 'is not recorded as applied'}.",
            RELOAD if file.name in applied else "vanilla-saas migrate",
        )
        for file in migrations()
        if applied.get(file.name) != file.checksum
    ]


async def _keys(connection: asyncpg.Connection, signer: ContextSigner) -> list[Diagnosis]:
    """The key that signs here is accepted without an end, and it is the only one."""
    states = await key_states(connection)
    found = []
    if signer.key_id not in states:
        found.append(
            Diagnosis(
                "context_key", f"The database does not know the context key {signer.key_id}.", "vanilla-saas migrate"
            )
        )
    elif (until := states[signer.key_id]) is not None:
        found.append(
            Diagnosis(
                "context_key",
                f"The context key {signer.key_id} was retired; it is refused from {until:%Y-%m-%d %H:%M:%S} UTC.",
                "Use the key that replaced it: copy it from where it was rotated",
            )
        )
    return found + [
        Diagnosis(
            "context_key_left",
            f"The former context key {key_id} is accepted without an end.",
            f"vanilla-saas context-key expire {key_id}",
            "warning",
        )
        for key_id, until in states.items()
        if until is None and key_id != signer.key_id
    ]


async def _clock(connection: asyncpg.Connection, now: Callable[[], float]) -> list[Diagnosis]:
    """Tokens are signed by this machine's clock and verified by the database's."""
    before = now()
    there: datetime = await connection.fetchval("select clock_timestamp()")
    skew = there.timestamp() - (before + now()) / 2
    if abs(skew) < NOTABLE_SKEW_S:
        return []
    return [
        Diagnosis(
            "clock_skew",
            f"The database's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's;"
            f" a context token lives {TOKEN_LIFETIME_S} s.",
            "Set both clocks by NTP: timedatectl set-ntp true",
            "error" if abs(skew) >= TOKEN_LIFETIME_S else "warning",
        )
    ]


async def _superuser(connection: asyncpg.Connection, where: Addresses) -> list[Diagnosis]:
    """The embedded server has no credentials that a server process could lose."""
    if where.server is not None or not await connection.fetchval(
        "select rolsuper or rolbypassrls from pg_roles where rolname = session_user"
    ):
        return []
    return [
        Diagnosis(
            "superuser_login",
            "DATABASE_URL names a login that row-level security does not bind.",
            "Let it name a login that is NOSUPERUSER CREATEROLE and owns the database",
            "warning",
        )
    ]


async def _export_place(connection: asyncpg.Connection, settings: Settings) -> list[Diagnosis]:
    """Whether logs are exported is the database's setting, where to is this process's: one without the other."""
    wanted = await connection.fetchval(
        "select value = 'true' from system_configurations where tenant_id = vanilla.platform()"
        " and key = 'retention.export'"
    )
    if bool(wanted) == bool(settings.export_to):
        return []
    if wanted:
        found = "retention.export is on, but VANILLA_SAAS_EXPORT_TO is not set here: logs wait to be exported."
        mend = "Set VANILLA_SAAS_EXPORT_TO for every process that runs schedules"
    else:
        found = "VANILLA_SAAS_EXPORT_TO is set, but retention.export is off: logs are dropped without being exported."
        mend = "vanilla-saas psql -c \"update system_configurations set value = 'true' where key = 'retention.export'\""
    return [Diagnosis("export_place", found, mend, "warning")]


async def _default_passwords(connection: asyncpg.Connection) -> list[Diagnosis]:
    admins = await connection.fetch(
        "select email, password_hash from users where tenant_id = vanilla.platform() and role = 'superadmin'"
        " and status = 'active' and password_hash is not null order by email limit 20"
    )
    return [
        Diagnosis(
            "default_password",
            f"The super admin {row['email']} has a password that everybody knows.",
            f"vanilla-saas users set-password {shlex.quote(row['email'])} --tenant platform --generate",
        )
        for row in admins
        if any([await passwords.verify_password(row["password_hash"], guess) for guess in DEFAULT_PASSWORDS])
    ]


async def _logins(where: Addresses, signer: ContextSigner) -> list[Diagnosis]:
    """The run-time logins connect, and no policy is bypassed by them."""
    try:
        database = await Database.open(where.app, where.runtime, signer, size=1)
    except VanillaError as error:
        return [Diagnosis("runtime_login", error.message, error.hint or "vanilla-saas migrate")]
    await database.close()
    return []
