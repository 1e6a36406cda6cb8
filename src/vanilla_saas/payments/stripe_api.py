"""What is asked of Stripe, through its official package, which is imported when it is needed (extra `stripe`).

Every call that makes something carries an idempotency key of ours: asked twice, it is made once.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.settings import Settings

if TYPE_CHECKING:
    import stripe

log = structlog.get_logger()
TIMEOUT_S = 20.0
TOLERANCE_S = 300
"""How old a signature may be: who records a request cannot send it again later."""
API_VERSION = "2026-10-28.endive"
"""The form of what is sent and answered; events have the version of their endpoint."""


def require_stripe() -> None:
    """Raises VanillaError `invalid_state` when the extra is not installed."""
    try:
        import stripe  # noqa: F401
    except ImportError:
        raise VanillaError(
            "invalid_state", "Payments need Stripe's package.", {"need": "stripe"}, "pip install 'vanilla-saas[stripe]'"
        ) from None


class ChargeRefused(Exception):
    """A charge without the user that did not happen and will not by itself; `args[0]` is Stripe's code."""


class Stripe:
    """One account of Stripe's."""

    def __init__(self, client: "stripe.StripeClient"):
        self._client = client

    async def make_customer(self, customer_key: str, tenant_id: str, user_id: str, email: str | None) -> str:
        """The id of a customer for a user: one, however often it is asked."""
        params: dict[str, Any] = {"metadata": {"vanilla_tenant": tenant_id, "vanilla_user": user_id}}
        if email:
            params["email"] = email
        made = await self._client.v1.customers.create_async(params, _once(f"customer:{customer_key}"))  # type: ignore[arg-type]
        return made.id

    async def checkout(self, begun: dict[str, Any], customer: str, back: str, *, keep_method: bool) -> str:
        """The address of a checkout for what `begin_checkout` began; `back` is the page to return to."""
        params: dict[str, Any] = {
            "customer": customer,
            "line_items": [{"price": begun["price_id"], "quantity": 1}],
            "success_url": f"{back}?notice=paid",
            "cancel_url": f"{back}?notice=cancelled",
        }
        if begun["kind"] == "level":
            options = None
            params |= {"mode": "subscription", "subscription_data": {"metadata": {"vanilla_user": begun["user_id"]}}}
        else:
            metadata = {"vanilla_payment": begun["payment_id"]}
            intent: dict[str, Any] = {"metadata": metadata}
            if keep_method:
                intent["setup_future_usage"] = "off_session"
            options = _once(f"checkout:{begun['payment_id']}")
            params |= {"mode": "payment", "metadata": metadata, "payment_intent_data": intent}
        made = await self._client.v1.checkout.sessions.create_async(params, options)  # type: ignore[arg-type]
        return _address(made.url)

    async def portal(self, customer: str, back: str) -> str:
        """The address of the customer portal."""
        made = await self._client.v1.billing_portal.sessions.create_async({"customer": customer, "return_url": back})
        return _address(made.url)

    async def subscription(self, subscription_id: str) -> dict[str, Any]:
        """A subscription as it is now."""
        return (await self._client.v1.subscriptions.retrieve_async(subscription_id)).to_dict(for_json=True)

    async def charge(self, claimed: dict[str, Any]) -> dict[str, Any] | None:
        """The PaymentIntent of a charge without the user, or None when no answer says what became of it.

        Raises ChargeRefused.
        """
        import stripe

        params: dict[str, Any] = {
            "amount": claimed["amount"],
            "currency": claimed["currency"].lower(),
            "customer": claimed["customer_id"],
            "payment_method": claimed["payment_method"],
            "off_session": True,
            "confirm": True,
            # nobody is there who could confirm it: it fails instead of waiting to be paid later
            "error_on_requires_action": True,
            "metadata": {"vanilla_payment": claimed["payment_id"]},
        }
        try:
            made = await self._client.v1.payment_intents.create_async(params, _once(f"top-up:{claimed['payment_id']}"))  # type: ignore[arg-type]
        except (stripe.CardError, stripe.InvalidRequestError) as error:
            raise ChargeRefused(error.code or type(error).__name__) from None
        except stripe.StripeError as error:
            log.warning("stripe_no_answer", error=type(error).__name__, status=error.http_status)
            return None
        return made.to_dict(for_json=True)


def _once(key: str) -> "stripe.RequestOptions":
    return {"idempotency_key": key}


def _address(url: str | None) -> str:
    if not url or not url.startswith(("https://", "http://127.0.0.1")):
        raise VanillaError("internal_error", "Stripe answered without an address.")
    return url


@asynccontextmanager
async def connected(settings: Settings, key: str) -> AsyncIterator[Stripe]:
    """Stripe under an API key; its refusals become VanillaErrors without what was sent.

    Raises VanillaError `invalid_state` without the extra or when Stripe refuses, `provider_not_ready` for the key.
    """
    require_stripe()
    import stripe
    from stripe import AIOHTTPClient

    http = AIOHTTPClient(timeout=TIMEOUT_S)
    bases: dict[str, Any] = {"base_addresses": {"api": settings.stripe_api_base}} if settings.stripe_api_base else {}
    client = stripe.StripeClient(key, http_client=http, stripe_version=API_VERSION, max_network_retries=2, **bases)
    try:
        yield Stripe(client)
    except (stripe.AuthenticationError, stripe.PermissionError):
        raise VanillaError(
            "provider_not_ready", "Stripe does not accept the key.", {}, "An admin sets another one."
        ) from None
    except stripe.StripeError as error:
        log.warning("stripe_refused", error=type(error).__name__, status=error.http_status, code=error.code)
        raise VanillaError(
            "invalid_state",
            "Stripe refused or did not answer.",
            {"code": error.code, "status": error.http_status},
            "Try again; the account's log at Stripe says why.",
        ) from None
    finally:
        await http.close_async()  # type: ignore[no-untyped-call]


def verified_event(body: bytes, signature: str, secret: str | None) -> dict[str, Any] | None:
    """The event of a request that Stripe signed within the last five minutes, else None, whatever is wrong."""
    import stripe

    if not secret:
        return None
    try:
        stripe.WebhookSignature.verify_header(body, signature, secret, TOLERANCE_S)
        event = orjson.loads(body)
    except (stripe.SignatureVerificationError, ValueError, TypeError):
        return None
    return event if isinstance(event, dict) else None
