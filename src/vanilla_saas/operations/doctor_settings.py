"""What can be unsafe before a database is asked: key files, addresses, switches."""

import ipaddress
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vanilla_saas.checks import Severity
from vanilla_saas.settings import Settings

Found = tuple[str, str, str, Severity]
CHECKS = (
    "key_file_mode",
    "public_address",
    "public_url_without_tls",
    "superuser_allowed",
    "database_without_tls",
    "debug_logs",
)
VERIFYING = ("require", "verify-ca", "verify-full")


def settings_findings(settings: Settings) -> list[Found]:
    """(check, found, mend, severity) of what is unsafe in files and settings."""
    found: list[Found] = []
    for name, given in (("context.key", settings.context_key), ("secret.key", settings.secret_key)):
        if given is None:
            found += _key_file(settings.home / name)
    return found + _addresses(settings) + _switches(settings)


def _key_file(path: Path) -> list[Found]:
    if not path.exists() or not (mode := path.stat().st_mode & 0o077):
        return []
    return [
        (
            "key_file_mode",
            f"{path} can be used by others than its owner: {mode:03o} of its mode is too much.",
            f"chmod 600 {shlex.quote(str(path))}",
            "error",
        )
    ]


def _addresses(settings: Settings) -> list[Found]:
    found: list[Found] = []
    public = urlsplit(settings.public_url or "")
    if public.scheme == "http" and not _local(public.hostname or ""):
        found.append(
            (
                "public_url_without_tls",
                f"People reach this by {settings.public_url}: passwords, links and cookies are in the clear.",
                "Put a proxy with TLS before it and set VANILLA_SAAS_PUBLIC_URL=https://...",
                "error",
            )
        )
    if not _local(settings.host) and public.scheme != "https":
        found.append(
            (
                "public_address",
                f"The server listens on {settings.host} without TLS, and no https address is set.",
                "Set VANILLA_SAAS_HOST=127.0.0.1 behind a proxy with TLS, and VANILLA_SAAS_PUBLIC_URL=https://...",
                "warning",
            )
        )
    url = urlsplit(settings.database_url.get_secret_value() if settings.database_url else "")
    mode = parse_qs(url.query).get("sslmode", [""])[0]
    if url.hostname and not _local(url.hostname) and mode not in VERIFYING:
        found.append(
            (
                "database_without_tls",
                f"The database at {url.hostname} may be reached without TLS (sslmode {mode or 'is not set'}).",
                "Add ?sslmode=verify-full (or require) to DATABASE_URL",
                "warning",
            )
        )
    return found


def _switches(settings: Settings) -> list[Found]:
    found: list[Found] = []
    if settings.allow_superuser:
        found.append(
            (
                "superuser_allowed",
                "VANILLA_SAAS_ALLOW_SUPERUSER lets the server hold a login that no policy binds.",
                "Unset VANILLA_SAAS_ALLOW_SUPERUSER, and let DATABASE_URL name a NOSUPERUSER owner",
                "warning",
            )
        )
    if settings.log_level == "debug":
        found.append(
            (
                "debug_logs",
                "The logs tell everything: VANILLA_SAAS_LOG_LEVEL is debug.",
                "Set VANILLA_SAAS_LOG_LEVEL=info",
                "warning",
            )
        )
    return found


def _local(host: str) -> bool:
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
