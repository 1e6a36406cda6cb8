"""Draws pages: template environment, frame, error pages, theme. `install` joins it to an application."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import orjson
from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from starlette.responses import JSONResponse

from vanilla_saas.console.assets import Assets
from vanilla_saas.console.navigation import Room, Viewer, groups_for
from vanilla_saas.console.security import (
    PageHeaders,
    Redirect,
    add_page_headers,
    forget_cookie,
    is_fragment,
    local_path,
    page_router,
    wants_page,
)
from vanilla_saas.formats import FILTERS

THEME_COOKIE = "vs_theme"
THEMES = ("auto", "light", "dark")
_YEAR_S = 365 * 24 * 3600
_Handler = Callable[[Request, Exception], Response | Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Console:
    """What pages are drawn with; lives in `app.state.console`."""

    environment: Environment
    rooms: tuple[Room, ...]


def install(app: FastAPI, *rooms: Room) -> None:
    """Adds the rooms' pages, the static files, the page headers, and error answers as pages.

    Call it after the exception handlers are set: it keeps them for machines and draws their answers for people.
    """
    assets = Assets()
    app.state.console = Console(_environment(rooms, assets), rooms)
    app.add_middleware(PageHeaders)
    app.add_route("/static/{digest}/{name:path}", assets.serve, methods=["GET"], include_in_schema=False)
    app.include_router(_router())
    for room in rooms:
        app.include_router(room.router)
    for kind, handler in list(app.exception_handlers.items()):
        app.exception_handlers[kind] = _drawn(cast(_Handler, handler))
    app.add_exception_handler(Redirect, _leave)


def _environment(rooms: Sequence[Room], assets: Assets) -> Environment:
    loaders = {"console": PackageLoader("vanilla_saas.console")}
    loaders |= {room.name: PackageLoader(room.package) for room in rooms}
    environment = Environment(
        loader=PrefixLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(FILTERS)
    environment.globals["asset"] = assets.url
    return environment


def render(
    request: Request, template: str, /, *, status: int = 200, headers: dict[str, str] | None = None, **context: Any
) -> HTMLResponse:
    """The page `room/file.html`; `viewer`, `navigation`, `theme` and `path` are there in every template."""
    console: Console = request.app.state.console
    viewer: Viewer | None = getattr(request.state, "viewer", None)
    theme = request.cookies.get(THEME_COOKIE, "auto")
    frame = {
        "viewer": viewer,
        "navigation": []
        if viewer is None or viewer.restricted
        else groups_for([entry for room in console.rooms for entry in room.navigation], viewer.role),
        "theme": theme if theme in THEMES else "auto",
        "path": request.url.path,
        "fragment": is_fragment(request),
    }
    if context.get("problem"):
        context["problem"] = dict.fromkeys(("hint", "request_id", "retry_after_s")) | context["problem"]
    page = HTMLResponse(
        console.environment.get_template(template).render(frame | context), status_code=status, headers=headers
    )
    # also here: the answer to an unhandled error passes no middleware
    add_page_headers(page.headers)
    return page


def redirect(request: Request, path: str) -> Response:
    """To another page after a form, for a browser (303) or for htmx (HX-Redirect)."""
    if is_fragment(request):
        return Response(status_code=200, headers={"HX-Redirect": path, "cache-control": "no-store"})
    return RedirectResponse(path, 303)


def _router() -> APIRouter:
    router = page_router()

    @router.post("/theme")
    async def choose_theme(request: Request, theme: Annotated[str, Form()] = "auto") -> Response:
        response = RedirectResponse(local_path(urlsplit(request.headers.get("referer", "")).path), 303)
        response.set_cookie(
            THEME_COOKIE, theme if theme in THEMES else "auto", max_age=_YEAR_S, path="/", samesite="lax"
        )
        return response

    return router


def _drawn(handler: _Handler) -> _Handler:
    """The handler's own problem object, as a page or as a fragment where a person asked."""

    async def draw(request: Request, error: Exception) -> Response:
        answer = handler(request, error)
        if not isinstance(answer, Response):
            answer = await answer
        if not isinstance(answer, JSONResponse) or not wants_page(request):
            return answer
        problem = orjson.loads(bytes(answer.body))
        headers = {"retry-after": answer.headers["retry-after"]} if "retry-after" in answer.headers else None
        if is_fragment(request):
            return render(request, "console/alert.html", status=answer.status_code, headers=headers, problem=problem)
        return render(request, "console/error.html", status=answer.status_code, headers=headers, problem=problem)

    return draw


async def _leave(request: Request, error: Exception) -> Response:
    assert isinstance(error, Redirect)
    response = redirect(request, error.path)
    for name in error.forget:
        forget_cookie(request, response, name)
    return response
