"""`vanilla-saas providers` and `models`: those of the platform; tenants manage their own in the console."""

import sys
from typing import Annotated

import asyncpg
import orjson
import typer

from vanilla_saas.database.context import PLATFORM
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.operator import AsJson, as_operator, show
from vanilla_saas.providers.prices import PRICES_VERSION, catalogue
from vanilla_saas.providers.secrets import SecretBox
from vanilla_saas.settings import Settings

providers = typer.Typer(no_args_is_help=True, help="Model providers and their keys.")
models = typer.Typer(no_args_is_help=True, help="The model catalogue.")

PROVIDERS = """
select slug, name, kind, base_url, status, secret is not null as has_key, secret_hint
from ai_providers where tenant_id = vanilla.platform() order by slug
"""
MODELS = """
select m.slug, p.slug as provider, m.kind, m.context_window, m.input_price, m.output_price, m.input_weight,
       m.output_weight, m.status, m.price_source
from ai_models m join ai_providers p on p.tenant_id = m.provider_tenant_id and p.id = m.provider_id
where m.tenant_id = vanilla.platform() order by p.slug, m.slug
"""
SYNC = """
insert into ai_models (tenant_id, provider_tenant_id, provider_id, slug, upstream_model, name, kind, context_window,
                       input_price, output_price, cached_input_price, price_source, status)
select p.tenant_id, p.tenant_id, p.id, $2, $2, $3, $4, $5, $6, $7, $8, $9,
    case when $10 then 'deprecated' else 'active' end
from ai_providers p where p.tenant_id = vanilla.platform() and p.slug = $1
on conflict (tenant_id, slug) do update set
    name = excluded.name, kind = excluded.kind, context_window = excluded.context_window,
    input_price = excluded.input_price,
    output_price = excluded.output_price, cached_input_price = excluded.cached_input_price,
    price_source = excluded.price_source,
    status = case when ai_models.status = 'disabled' then 'disabled' else excluded.status end
where ai_models.provider_id = excluded.provider_id
returning (xmax = 0) as added
"""


@providers.command("list")
def list_providers(as_json: AsJson = False) -> None:
    """Providers of the platform, and whether they have a key."""
    show(as_operator(lambda connection: connection.fetch(PROVIDERS)), as_json)


@providers.command("set-key")
def set_key(
    slug: str,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the key from standard input.")] = False,
) -> None:
    """Store a provider's API key, encrypted. It is asked for, or read from standard input; never an argument."""
    key = sys.stdin.readline().strip() if stdin else typer.prompt(f"API key of {slug}", hide_input=True).strip()
    if not 8 <= len(key) <= 4096:
        raise VanillaError("invalid_request", "A key has 8 to 4096 characters.")
    _store_key(slug, key)
    typer.echo(f"The key of {slug} is stored (ends in {key[-4:]}).")


@providers.command("clear-key")
def clear_key(slug: str) -> None:
    """Forget a provider's API key; its models are refused from the next call on."""
    _store_key(slug, None)
    typer.echo(f"The key of {slug} is forgotten.")


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Models of the platform. Prices are micros of USD per million tokens, weights wallet tokens per model token."""
    show(as_operator(lambda connection: connection.fetch(MODELS)), as_json)


@models.command("sync")
def sync(as_json: AsJson = False) -> None:
    """Refresh names, context windows and prices from the installed genai-prices package."""
    added, updated = as_operator(_sync)
    if as_json:
        typer.echo(orjson.dumps({"added": added, "updated": updated, "source": f"genai-prices {PRICES_VERSION}"}))
    else:
        typer.echo(f"{added} models added, {updated} updated from genai-prices {PRICES_VERSION}.")


def _store_key(slug: str, key: str | None) -> None:
    async def run(connection: asyncpg.Connection) -> None:
        provider_id = await connection.fetchval(
            "select id from ai_providers where tenant_id = vanilla.platform() and slug = $1", slug
        )
        if provider_id is None:
            raise VanillaError("not_found", f"There is no provider {slug}.", hint="vanilla-saas providers list")
        sealed = SecretBox.from_settings(Settings()).encrypt(PLATFORM, provider_id, key) if key else None
        await connection.fetchval(
            "select set_provider_secret($1, $2, $3, $4)", provider_id, sealed, key and key[-4:], PLATFORM
        )

    as_operator(run)


async def _sync(connection: asyncpg.Connection) -> tuple[int, int]:
    """How many models were added and how many brought up to date."""
    await connection.execute("set local role vanilla_system")
    outcomes: list[bool] = []
    for row in catalogue():
        outcomes += [
            r["added"]
            for r in await connection.fetch(
                SYNC,
                row.provider,
                row.model,
                row.display_name,
                row.kind,
                row.context_window,
                row.input_price,
                row.output_price,
                row.cached_input_price,
                f"genai-prices {PRICES_VERSION}",
                row.deprecated,
            )
        ]
    return outcomes.count(True), outcomes.count(False)
