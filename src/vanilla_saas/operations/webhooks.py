"""Sends webhooks: takes what is due from the database, posts it, records what came of it.

Every process may run a sender: the database hands each delivery to one of them and holds an endpoint to its
concurrency over all. A process that is killed between sending and recording leaves a lease that runs out, and the
delivery is sent again under the same `webhook-id`: at least once, never silently lost.
"""

import asyncio
import base64
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import orjson
import structlog

from vanilla_saas import metrics
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.database.pool import Database
from vanilla_saas.operations import webhooks_store as store
from vanilla_saas.operations.webhooks_signing import signed_headers
from vanilla_saas.providers.secrets import OF_WEBHOOKS, SecretBox, SecretError
from vanilla_saas.settings import Settings
from vanilla_saas.targets import check_url, connector, no_cookies

log = structlog.get_logger()
IN_FLIGHT = 50
"""Deliveries that one process has in flight at most."""
POLL_SECONDS = 1.0
LEASE_MARGIN_S = 30.0
"""Beyond the timeout of a request: time to record what came of it."""
CLOSE_SECONDS = 5.0
EXCERPT_BYTES = 300
"""What is read of an answer: a refusal's first words help, the rest is not ours to keep."""


def event_body(event: dict[str, Any]) -> bytes:
    """The bytes that are signed and sent; the same for an event at every try."""
    return orjson.dumps(
        {
            "type": event["type"],
            "timestamp": f"{event['created_at']}Z",
            "id": event["id"],
            "tenant_id": event["tenant_id"],
            "user_id": event["user_id"],
            "data": event["payload"],
        }
    )


def task_body(event: dict[str, Any]) -> bytes:
    """A `StreamResponse` of A2A: the state that a task took, and when."""
    told = event["payload"]
    status = {"state": f"TASK_STATE_{told['state'].upper()}", "timestamp": told["at"]}
    return orjson.dumps(
        {"statusUpdate": {"taskId": told["execution_id"], "contextId": told["context_id"], "status": status}}
    )


def secret_box(settings: Settings) -> SecretBox:
    """Opens and closes the secrets of webhooks, bound to tenant and endpoint."""
    return SecretBox.from_settings(settings, column=OF_WEBHOOKS)


class WebhookSender:
    """`run_once` starts what is due and there is room for; `run` does so until `close`."""

    def __init__(self, database: Database, box: SecretBox, *, timeout_s: float = 15.0, private: bool = False):
        self._database = database
        self._box = box
        self._timeout_s = timeout_s
        self._private = private
        self._flights: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._client: aiohttp.ClientSession | None = None

    @classmethod
    def from_settings(cls, database: Database, settings: Settings) -> "WebhookSender":
        return cls(
            database,
            secret_box(settings),
            timeout_s=settings.webhook_timeout_s,
            private=settings.webhooks_to_private,
        )

    def start(self) -> None:
        """Sends in the background until `close`."""
        self._loop = asyncio.create_task(self.run())

    async def run(self) -> None:
        """Looks once a second, and at once when a delivery has ended and there may be more."""
        while True:
            try:
                await self.run_once()
            except (VanillaError, asyncpg.PostgresError, OSError) as error:
                log.warning("webhooks_not_claimed", error=str(error))
            if self._flights:
                await asyncio.wait(self._flights, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(POLL_SECONDS)

    async def run_once(self) -> int:
        """Claims what is due and there is room for, and starts sending it; returns how many. Waits for no endpoint."""
        room = IN_FLIGHT - len(self._flights)
        if room <= 0:
            return 0
        lease = timedelta(seconds=self._timeout_s + LEASE_MARGIN_S)
        claimed = await store.claim(self._database, room, lease)
        for delivery in claimed:
            flight = asyncio.create_task(self._deliver(delivery))
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)
        return len(claimed)

    async def drain(self) -> None:
        """Waits until nothing is in flight."""
        while self._flights:
            await asyncio.wait(self._flights)

    async def close(self) -> None:
        """Ends: what is in flight gets five seconds, the rest is sent again when its lease has run out."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        if self._flights:
            _, late = await asyncio.wait(self._flights, timeout=CLOSE_SECONDS)
            for flight in late:
                flight.cancel()
            if late:
                await asyncio.wait(late)
        if self._client is not None:
            await self._client.close()

    async def _deliver(self, delivery: dict[str, Any]) -> None:
        began = time.perf_counter()
        status, error, retry_after = await self._send(delivery)
        duration_ms = round((time.perf_counter() - began) * 1000)
        metrics.WEBHOOK_DELIVERIES.labels("failed" if error else "delivered").inc()
        try:
            state = await store.finish(self._database, delivery, status, error, duration_ms, retry_after)
        except (VanillaError, asyncpg.PostgresError, OSError) as failure:
            # the lease runs out and it is sent again: the receiver knows it by its webhook-id
            log.warning("webhook_not_recorded", delivery=delivery["delivery_id"], error=str(failure))
            return
        log.debug("webhook_tried", delivery=delivery["delivery_id"], state=state, status=status)

    async def _send(self, delivery: dict[str, Any]) -> tuple[int | None, str | None, timedelta | None]:
        """Status, error (None: delivered) and the time the receiver asks for."""
        try:
            url = check_url(delivery["url"], private=self._private)
            body, headers = self._message(delivery)
            return await self._post(url, body, headers)
        except VanillaError as refusal:
            return None, refusal.message, None
        except SecretError as error:
            log.error("webhook_secret_unreadable", endpoint=delivery["endpoint_id"], error=str(error))
            return None, "The signing secret cannot be read; rotate it.", None
        except TimeoutError:
            return None, f"no answer within {self._timeout_s:g} s", None
        except aiohttp.ClientConnectorCertificateError as error:
            return None, str(error.certificate_error), None
        except aiohttp.ClientConnectorError as error:
            return None, str(error.os_error), None
        except (aiohttp.ClientError, OSError) as error:
            return None, f"{type(error).__name__}: {error}", None

    def _message(self, delivery: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        """Body and headers: signed for a webhook; of a task with what its client gave, which says that it is us."""
        event, secrets = delivery["event"], self._secrets(delivery)
        if delivery["of_task"]:
            given: dict[str, str] = orjson.loads(secrets[0])
            return task_body(event), given | {"webhook-id": event["id"], "content-type": "application/a2a+json"}
        body = event_body(event)
        signed = signed_headers(event["id"], int(time.time()), body, secrets)
        return body, signed | {"content-type": "application/json"}

    async def _post(
        self, url: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int | None, str | None, timedelta | None]:
        headers |= {"user-agent": "vanilla-saas-webhooks/1"}
        # redirects are not followed: what says that it is us is for the address that was named
        async with self._http().post(url, data=body, headers=headers, allow_redirects=False) as answer:
            if 200 <= answer.status < 300:
                return answer.status, None, None
            excerpt = _printable(await _first_bytes(answer))
            reason = f"answered {answer.status}" + (f": {excerpt}" if excerpt else "")
            return answer.status, reason, _retry_after(answer)

    def _http(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=connector(private=self._private),
                cookie_jar=no_cookies(),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                # a small answer cannot become a large one
                auto_decompress=False,
                trust_env=False,
            )
        return self._client

    def _secrets(self, delivery: dict[str, Any]) -> list[str]:
        tenant_id, endpoint_id = UUID(delivery["tenant_id"]), UUID(delivery["endpoint_id"])
        sealed = [delivery["secret"], delivery["previous_secret"]]
        return [self._box.decrypt(tenant_id, endpoint_id, base64.b64decode(one)) for one in sealed if one]


async def _first_bytes(answer: aiohttp.ClientResponse) -> bytes:
    """The first bytes of a body, whatever its length; the connection is closed over the rest."""
    found = b""
    while len(found) < EXCERPT_BYTES and (chunk := await answer.content.read(EXCERPT_BYTES - len(found))):
        found += chunk
    answer.close()
    return found


def _printable(text: bytes) -> str:
    words = text.decode("utf-8", "replace").split()
    return "".join(character for character in " ".join(words) if character.isprintable())


def _retry_after(answer: aiohttp.ClientResponse) -> timedelta | None:
    """Of 429, 502, 503 and 504: seconds in Retry-After; the form with a date is not read."""
    seconds = answer.headers.get("retry-after", "")
    if answer.status not in (429, 502, 503, 504) or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 6:
        return None
    return timedelta(seconds=int(seconds))
