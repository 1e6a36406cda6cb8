"""Where webhooks and push notifications may be sent: tenants choose the address, and it must not lead into our own
network (`outgoing`)."""

from yarl import URL

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.outgoing import REFUSED, connector, is_public, no_cookies

__all__ = ["check_url", "connector", "is_public", "no_cookies"]


def check_url(url: str, *, private: bool) -> str:
    """The URL in one spelling. `private` allows http and addresses of our own network.

    Raises VanillaError `invalid_request`. A name is not resolved here: what it means is checked at every request.
    """
    url = url.strip()
    if not url.isprintable() or " " in url:
        raise _not_valid("That is not a URL.")
    try:
        parsed = URL(url)
        host = parsed.host
        _ = parsed.port
    except ValueError:
        raise _not_valid("That is not a URL.") from None
    if parsed.scheme not in ("http", "https") or not host:
        raise _not_valid("A webhook's URL begins with https:// and names a host.")
    if parsed.user is not None or parsed.password is not None:
        raise _not_valid("A webhook's URL holds no user and no password.", "The signature says that it is us.")
    if private:
        return str(parsed.with_fragment(None))
    if parsed.scheme != "https":
        raise _not_valid("A webhook's URL begins with https://.")
    try:
        public = is_public(host)
    except ValueError:
        public = host.rstrip(".") != "localhost" and not host.rstrip(".").endswith(".localhost")
    if not public:
        raise _not_valid(REFUSED.format(host), "VANILLA_SAAS_WEBHOOKS_TO_PRIVATE allows it for development.")
    return str(parsed.with_fragment(None))


def _not_valid(message: str, hint: str | None = None) -> VanillaError:
    return VanillaError("invalid_request", message, {"param": "url"}, hint)
