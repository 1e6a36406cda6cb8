"""Settings of one process, read from the environment and `.env`.

Order of the database: `DATABASE_URL`, then libpq's `PG*` variables, then the embedded server.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _whole_number(value: object) -> object:
    """The environment has text only."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


class Settings(BaseSettings):
    """One field a setting; `VANILLA_SAAS_` is prefixed to its name but for `DATABASE_URL`."""

    model_config = SettingsConfigDict(
        env_prefix="VANILLA_SAAS_",
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
    )

    database_url: SecretStr | None = Field(default=None, validation_alias="DATABASE_URL")
    """The login that migrates and administers; requests never run as it."""
    app_url: SecretStr | None = None
    """Overrides how requests connect (role `vanilla_app`)."""
    runtime_url: SecretStr | None = None
    """Overrides how the gateway connects (role `vanilla_runtime`)."""
    home: Path = Field(default_factory=lambda: user_data_path("vanilla-saas"))
    """Embedded data directory, keys and logs."""
    pg_bin: Path | None = None
    """Folder of PostgreSQL binaries for the embedded server, instead of the wheel's."""
    pg_version: Annotated[Literal[16, 18], BeforeValidator(_whole_number)] = 18
    """Major version of the embedded server."""
    context_key: SecretStr | None = None
    """64 hex digits that sign request contexts; else `$VANILLA_SAAS_HOME/context.key`."""
    secret_key: SecretStr | None = None
    """64 hex digits that encrypt provider secrets; else `$VANILLA_SAAS_HOME/secret.key`."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    pool_size: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Connections a process keeps for each of its two pools."""
    transaction_pooling: bool = False
    """The database is reached through a pooler in transaction mode that is not noticed by itself, as PgBouncer is."""
    sandbox_url: str | None = None
    """Base address of a running sandbox provider; else each process starts its own on loopback."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 4 * 1024 * 1024
    """Largest request body that is read."""
    max_running_calls: Annotated[int, Field(ge=1)] = 512
    """Model calls in flight in one process; one more is answered 429 with Retry-After."""
    max_streams: Annotated[int, Field(ge=1)] = 1000
    """Streams of an execution's events that one process keeps open; one more is answered 429 with Retry-After."""
    public_url: str | None = None
    """Address under which people reach this installation; links in mails and answers begin with it, and its pages may
    ask `/mcp`."""
    smtp_url: SecretStr | None = None
    """`smtp://user:password@host:587?from=name@host` (or `smtps://`) sends links to people who forgot a password;
    needs `VANILLA_SAAS_PUBLIC_URL`. Without it an admin hands out links."""
    send_webhooks: bool = True
    """This process sends webhooks while it serves; any number of processes may."""
    webhook_timeout_s: Annotated[float, Field(ge=1, le=120)] = 15.0
    """Seconds that a webhook's receiver has to answer."""
    webhooks_to_private: bool = False
    """Send webhooks also over plain http and to loopback and private addresses: for development only."""
    stripe_api_base: str | None = None
    """Address of Stripe's API (extra `stripe`); another one than Stripe's is for tests."""
    metrics_token: SecretStr | None = None
    """Whoever asks for `/metrics` sends `Authorization: Bearer` with it; without it only this machine may ask."""
    otel: bool = False
    """Trace requests, database and provider calls by OpenTelemetry (extra `otel`); `OTEL_*` variables say where to."""
    log_requests: bool = False
    """One line of the log for every request: method, route, status, milliseconds, ids; never content."""
    backup_dir: Path | None = None
    """Folder of backups; else `backups` in the home."""
    backup_keep: Annotated[int, Field(ge=0)] = 7
    """Backups of this database that are kept in the folder, the newest; 0 keeps all."""
    backup_passphrase: SecretStr | None = None
    """Encrypts backups (AES-256-GCM) and opens them again. Keep it elsewhere: without it they are lost."""
    backup_url: SecretStr | None = None
    """How a backup connects, when `DATABASE_URL`'s login may not read every row (role with BYPASSRLS)."""
    backup_max_age_days: Annotated[float, Field(ge=0)] = 8.0
    """`doctor` warns when the last backup is older; 0 never warns."""
    rehearsal_max_age_days: Annotated[float, Field(ge=0)] = 40.0
    """`doctor` warns when the last backup that was restored for trial is older; 0 never warns."""
    run_schedules: bool = True
    """This process runs what is due (resets, retention, clean-up) while it serves; any number of processes may."""
    run_worker: bool = True
    """This process runs steps of workflows while it serves; `vanilla-saas worker` does nothing else. Without it, only
    those of runs of engines that somebody waits for here."""
    worker_pools: Annotated[list[str], Field(min_length=1, max_length=100)] = ["default"]
    """Pools whose steps a worker takes, as a JSON list."""
    worker_capacity: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Steps that a worker runs at the same time."""
    worker_tools: list[str] = []
    """Python modules with functions marked `@tool`, which nodes of the kind tool call; a JSON list."""
    mcp_servers: Path | None = None
    """JSON file of MCP servers whose tools nodes of the kind tool call (extra `mcp`); docs/workflows.md shows it."""
    workflows_to_private: bool = False
    """Let nodes of the kind http reach loopback and private addresses: for development only."""
    export_to: str | None = None
    """Where logs past retention are written before they are dropped: a directory, or
    `s3://bucket/prefix?endpoint=https://host&region=name` (extra `export`, credentials in `AWS_ACCESS_KEY_ID` and
    `AWS_SECRET_ACCESS_KEY`). Needs `retention.export`, docs/design/operations.md."""
    export_format: Literal["csv", "parquet"] = "csv"
    """Form of those files: CSV compressed by gzip, or Parquet (extra `export`)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    allow_superuser: bool = False
    """Serve although the configured database login is a superuser or bypasses row-level security."""

    @model_validator(mode="after")
    def _mails_have_links(self) -> Self:
        if self.smtp_url and not self.public_url:
            # never from the request: whoever asks for a link chooses its Host header
            raise ValueError("VANILLA_SAAS_SMTP_URL needs VANILLA_SAAS_PUBLIC_URL, with which links in mails begin")
        return self

    def backup_directory(self) -> Path:
        """Where backups are kept."""
        return (self.backup_dir or self.home / "backups").expanduser()

    def uses_embedded_server(self) -> bool:
        """True when neither `DATABASE_URL` nor `PGHOST` names another server."""
        return self.database_url is None and not os.environ.get("PGHOST")
