"""`/livez` and `/readyz` for load balancers and Kubernetes."""

from fastapi import APIRouter, Request

from vanilla_saas.database.pool import Database

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
