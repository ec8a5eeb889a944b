"""GET / and what it needs: files of service/static, sent as they are, with headers that let them do little.

The page talks to /model, /explanations and /predict of this service and to nobody else. Its HTML holds no data: what it shows
it puts into text nodes.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import NotModifiedResponse

from service.api.access import GuardedRoute
from service.api.errors import NotFoundError
from service.api.scoring import runtime_of

_FOLDER = Path(__file__).resolve().parent.parent / "static"
_PAGE = "page.html"
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}  # never the machine's own table: some say text/plain

# All else is forbidden: inline scripts and styles, other hosts, a frame around the page, a form that is sent anywhere.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_SAFE = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def page_headers() -> dict[str, str]:
    """Headers of every page for people. Not stored: a page that came back from a cache could hold what was typed into it."""
    return {**_SAFE, "Cache-Control": "no-store"}


def page_routes() -> list[GuardedRoute]:
    """The page and its files."""
    return [GuardedRoute("/", show_page, needs=None), GuardedRoute("/static/{name}", show_file, needs=None)]


def show_page(request: Request) -> Response:
    """GET /: the page for people. Where it is switched off, the description of the service.

    Takes the place of BentoML's page, which loads trackers from the internet.
    """
    if not runtime_of(request).settings.page:
        return RedirectResponse("/docs.json")
    return FileResponse(_FOLDER / _PAGE, media_type="text/html", headers=page_headers())


def show_file(request: Request) -> Response:
    """GET /static/NAME: a stylesheet or module of the page. Browsers ask each time whether it is still the same."""
    path = _FOLDER / request.path_params["name"]
    if not (runtime_of(request).settings.page and path.suffix in _MEDIA_TYPES and path.is_file()):
        raise NotFoundError("there is nothing at this path; GET /docs.json describes every path")
    headers = {**_SAFE, "Cache-Control": "no-cache"}
    response = FileResponse(path, media_type=_MEDIA_TYPES[path.suffix], headers=headers, stat_result=path.stat())
    is_same = request.headers.get("if-none-match") == response.headers["etag"]
    return NotModifiedResponse(response.headers) if is_same else response
