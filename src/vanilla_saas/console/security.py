"""What every page is sent with, and what a page accepts: headers, cookies, and where a POST came from."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    # not no-referrer: with it a browser sends `Origin: null` with a form, and we ask where a form came from
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
MACHINE_PATHS: Sequence[str] = ("/api/", "/v1/", "/static/", "/livez", "/readyz", "/metrics", "/openapi.json")


class Redirect(Exception):
    """Leaves a page for another: raised where a page cannot be shown, answered with 303 or HX-Redirect."""

    def __init__(self, path: str, forget: Sequence[str] = ()) -> None:
        super().__init__(path)
        self.path = path
        self.forget = forget
        """Names of cookies to remove."""


class PageHeaders:
    """Sends every HTML answer with the content security policy and its companions."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    add_page_headers(headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def add_page_headers(headers: MutableHeaders) -> None:
    """Pages are never kept by a cache: the next person at the machine must not see them with Back."""
    for name, value in PAGE_HEADERS.items():
        headers[name] = value
    headers.setdefault("cache-control", "no-store")


def wants_page(request: Request) -> bool:
    """Whether an error is answered with a page or a fragment rather than a problem object."""
    path = request.url.path
    if any(path == prefix.rstrip("/") or path.startswith(prefix) for prefix in MACHINE_PATHS):
        return False
    return is_fragment(request) or "text/html" in request.headers.get("accept", "")


def is_fragment(request: Request) -> bool:
    """Whether htmx asks, to put the answer into a page that is already there."""
    return request.headers.get("hx-request") == "true"


def same_origin(request: Request) -> None:
    """Refuses a POST that another site's page caused.

    Browsers send Sec-Fetch-Site to https and to localhost, and Origin with every POST; what carries
    neither is no browser and has the API.
    """
    if request.method in ("GET", "HEAD"):
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        origin = urlsplit(request.headers.get("origin", ""))
        allowed = origin.netloc != "" and origin.netloc == request.headers.get("host")
    if not allowed:
        raise HTTPException(403, "This form was not sent from a page of this console.")


def page_router() -> APIRouter:
    """A router for pages: HTML, out of the API's description, closed to other sites' forms."""
    return APIRouter(default_response_class=HTMLResponse, include_in_schema=False, dependencies=[Depends(same_origin)])


def local_path(path: str) -> str:
    """The path when it stays on this host, else `/`: browsers read `//x` and `/\\x` as another host."""
    return path if path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable() else "/"


def cookie_name(request: Request, name: str) -> str:
    """With https the prefix __Host-, which no sibling domain and no http page can overwrite."""
    return f"__Host-{name}" if request.url.scheme == "https" else name


def set_cookie(
    request: Request, response: Response, name: str, value: str, *, max_age_s: int, readable: bool = False
) -> None:
    """A cookie for the whole console; `readable` lets scripts see it."""
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=max_age_s,
        path="/",
        secure=request.url.scheme == "https",
        httponly=not readable,
        samesite="lax",
    )


def read_cookie(request: Request, name: str) -> str:
    return request.cookies.get(cookie_name(request, name), "")


def forget_cookie(request: Request, response: Response, name: str) -> None:
    response.delete_cookie(
        cookie_name(request, name), path="/", secure=request.url.scheme == "https", httponly=True, samesite="lax"
    )
