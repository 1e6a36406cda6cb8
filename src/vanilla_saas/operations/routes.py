"""`/livez` and `/readyz` for load balancers and Kubernetes, `/metrics` for Prometheus."""

import ipaddress
import secrets

from fastapi import APIRouter, Request, Response

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.metrics import exposition
from vanilla_saas.settings import Settings

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """The database answers too; 503 `database_unavailable` when it does not."""
    database: Database = request.app.state.database
    await database.call("select 1")
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus' text format; figures of the whole installation, so not for everybody: 403 `forbidden`."""
    settings: Settings = request.app.state.settings
    if settings.metrics_token:
        sent = request.headers.get("authorization", "").partition(" ")[2].strip().encode()
        allowed = secrets.compare_digest(sent, settings.metrics_token.get_secret_value().encode())
    else:
        # a proxy on this machine speaks for others, and says so
        allowed = _is_here(request) and not {"forwarded", "x-forwarded-for"} & set(request.headers)
    if not allowed:
        raise VanillaError(
            "forbidden",
            "The metrics are for this machine and for who has the token.",
            {"need": "VANILLA_SAAS_METRICS_TOKEN"},
            "Set VANILLA_SAAS_METRICS_TOKEN and send it as Authorization: Bearer.",
        )
    return Response(exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _is_here(request: Request) -> bool:
    try:
        return request.client is None or ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
