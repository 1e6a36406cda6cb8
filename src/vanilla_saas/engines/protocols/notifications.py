"""Push notifications of a run: who may see it has an address told what state it takes, by the sender of webhooks."""

import json
import re
from dataclasses import dataclass
from uuid import UUID, uuid5

from fastapi import Request

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.engines import runs
from vanilla_saas.engines.protocols import store
from vanilla_saas.providers.secrets import OF_WEBHOOKS, SecretBox
from vanilla_saas.settings import Settings
from vanilla_saas.targets import check_url
from vanilla_saas.tenancy.identity import Caller, acting

TOKEN_HEADER = "x-a2a-notification-token"  # noqa: S105 (a name)
MOST_HEADER = 4096
_SCHEME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")


@dataclass(frozen=True, slots=True)
class Notification:
    """Where a run is told, and the headers that say that it is us."""

    url: str
    headers: dict[str, str]


def checked(request: Request, url: str, token: str, scheme: str, credentials: str) -> Notification:
    """What may be set. Raises VanillaError `invalid_request`."""
    settings: Settings = request.app.state.settings
    headers = {}
    if token:
        headers[TOKEN_HEADER] = _header("token", token)
    if scheme and not _SCHEME.fullmatch(scheme):
        raise VanillaError("invalid_request", "The scheme is a word, as Bearer is.", {"param": "authentication.scheme"})
    if scheme and credentials:
        headers["authorization"] = f"{scheme} {_header('authentication.credentials', credentials)}"
    return Notification(check_url(url, private=settings.webhooks_to_private), headers)


async def put(
    request: Request, caller: Caller, execution_id: UUID, name: str, context_id: str, notification: Notification
) -> None:
    """Sets one of a run that the caller has seen; one of the same name is replaced.

    Raises VanillaError `forbidden`, `not_found`, `invalid_request`, `limit_reached`.
    """
    _require_chat(caller)
    settings: Settings = request.app.state.settings
    tenant_id, endpoint_id = caller.identity.tenant_id, uuid5(execution_id, name)
    box = SecretBox.from_settings(settings, column=OF_WEBHOOKS)
    sealed = box.encrypt(tenant_id, endpoint_id, json.dumps(notification.headers))
    async with acting(request, caller) as connection:
        await store.set_notification(
            connection, tenant_id, execution_id, endpoint_id, name, context_id, notification.url, sealed
        )


async def found(request: Request, caller: Caller, execution_id: UUID) -> list[store.Answer]:
    """Those of a run, by name, without what authenticates them. The caller has seen the run."""
    async with acting(request, caller, read_only=True) as connection:
        return await store.notifications(connection, caller.identity.tenant_id, execution_id)


async def delete(request: Request, caller: Caller, execution_id: UUID, name: str) -> None:
    """Deletes one of a run that the caller has seen; nothing when there is none.

    Raises VanillaError `forbidden`, `not_found`.
    """
    _require_chat(caller)
    async with acting(request, caller) as connection:
        await store.delete_notification(connection, caller.identity.tenant_id, execution_id, name)


def _require_chat(caller: Caller) -> None:
    if runs.key_of_engine(caller) is None:
        caller.require_scope("chat")


def _header(field: str, value: str) -> str:
    if not value.isascii() or not value.isprintable() or value != value.strip() or len(value) > MOST_HEADER:
        raise VanillaError(
            "invalid_request",
            f"It is sent in a header: up to {MOST_HEADER} printable characters of ASCII.",
            {"param": field},
        )
    return value
