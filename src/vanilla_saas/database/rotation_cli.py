"""`vanilla-saas context-key`: the key that signs request contexts, and how it is replaced."""

import asyncio
from datetime import timedelta
from typing import Annotated, Any

import asyncpg
import typer

from vanilla_saas.database import rotation
from vanilla_saas.database.connection import addresses
from vanilla_saas.database.context import load_signer
from vanilla_saas.database.operator import AsJson, as_operator, show, tell
from vanilla_saas.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The key that signs request contexts.")

FOREVER = "without end"


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """The installed context keys by id, and until when each is accepted."""
    signing = load_signer(Settings()).key_id

    async def run(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        states = await rotation.key_states(connection)
        return [
            {"key_id": key_id, "accepted_until": until or FOREVER, "signs_here": key_id == signing}
            for key_id, until in states.items()
        ]

    show(as_operator(run), as_json)


@app.command("rotate")
def rotate(
    accept_for: Annotated[
        int, typer.Option(min=60, max=31 * 86_400, help="Seconds for which the former key is still accepted.")
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Replace the context key while servers run. With VANILLA_SAAS_CONTEXT_KEY it prints what to set."""
    settings = Settings()
    signer = load_signer(settings)
    with addresses(settings, signer) as where:
        done = asyncio.run(rotation.rotate(where.admin, signer, timedelta(seconds=accept_for)))
    facts = {"key_id": done.signing.key_id, "former": done.former.key_id, "accepted_until": done.accept_until}
    if done.accept_until is not None:
        tell(
            f"{done.signing.key_id} signs from now on; {done.former.key_id} is accepted until"
            f" {done.accept_until:%Y-%m-%d %H:%M:%S} UTC.\n"
            f"Servers that read {signer.path} follow by themselves; copy it to those on other machines before then.",
            facts,
            as_json,
        )
        return
    both = ",".join(key.secret.hex() for key in (done.signing, *signer.listed))
    tell(
        f"{done.signing.key_id} is installed beside {done.former.key_id}. Now:\n"
        f"1. set VANILLA_SAAS_CONTEXT_KEY={both}\n"
        "   wherever servers run, and restart them one after the other;\n"
        f"2. then, with the same value: vanilla-saas context-key expire {done.former.key_id}\n"
        "3. at leisure, leave out what follows the comma.",
        facts | {"set": {"VANILLA_SAAS_CONTEXT_KEY": both}},
        as_json,
    )


@app.command("expire")
def expire(
    key_id: str,
    accept_for: Annotated[
        int, typer.Option(min=0, max=31 * 86_400, help="Seconds for which it is still accepted.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Refuse a former context key, and put the login passwords of the present one in force."""
    settings = Settings()
    signer = load_signer(settings)
    with addresses(settings, signer) as where:
        until = asyncio.run(rotation.expire(where.admin, signer, key_id, timedelta(seconds=accept_for)))
    tell(
        f"{key_id} is accepted until {until:%Y-%m-%d %H:%M:%S} UTC.",
        {"key_id": key_id, "accepted_until": until},
        as_json,
    )
