"""GET / and its files: what is sent, and with which headers. What it does in a browser is test_browser.py's."""

import re
from pathlib import Path

import pytest

from service.api.route_labels import route_label
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving

STATIC = Path("service/static")
FILES = sorted(path.name for path in STATIC.iterdir() if path.suffix != ".html")
MAX_BYTES = 60_000


def policy(client: Client, path: str) -> dict[str, str]:
    """The Content-Security-Policy of a path, by directive."""
    directives = client.get(path).headers["content-security-policy"].split("; ")
    return dict(directive.split(" ", 1) for directive in directives)


def test_the_page_is_served_to_people(client: Client) -> None:
    """GET / is HTML that no cache keeps, since a page that comes back could hold what was typed into it."""
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert "Research use. Not for clinical decisions." in response.text


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css"])
def test_everything_is_forbidden_but_what_the_page_needs(client: Client, path: str) -> None:
    """No other host, no inline script or style, no frame, no form that is sent; types are not guessed; no referrer leaves."""
    assert policy(client, path) == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = client.get(path).headers
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_by_its_type_and_asked_for_again(client: Client, name: str) -> None:
    """Modules as JavaScript, whatever the machine's table of types says; browsers keep them but ask whether they changed."""
    response = client.get(f"/static/{name}")
    kind = {".css": "text/css", ".js": "text/javascript"}[Path(name).suffix]
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.content == (STATIC / name).read_bytes()
    again = client.request("GET", f"/static/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["nothing.js", "page.html", "..%2Fapi%2Fapp.py", "%2e%2e%2fapi%2fpage.py", "page.css%00.js", "."]
)
def test_nothing_else_is_a_file_of_the_page(client: Client, name: str) -> None:
    """Neither what is not there nor what lies elsewhere, however it is spelt."""
    assert_error(client.get(f"/static/{name}"), 404, "NOT_FOUND")


def test_the_page_can_be_switched_off(tiny_path: Path) -> None:
    """Then / leads to the API's description as it did before, there are no files, and the card is JSON for browsers too."""
    with serving(tiny_path, page=False) as client:
        response = client.get("/")
        assert (response.status_code, response.headers["location"]) == (307, "/docs.json")
        assert_error(client.get("/static/page.js"), 404, "NOT_FOUND")
        card = client.request("GET", "/model-card", headers={"Accept": "text/html"})
        assert card.headers["content-type"] == "application/json"


def test_the_page_comes_before_a_model_does() -> None:
    """It says itself why there is no model yet."""
    with serving(None) as client:
        assert client.get("/").status_code == 200
        assert_error(client.get("/model"), 503, "MODEL_NOT_READY")


def test_files_share_one_metric_label(client: Client) -> None:
    """Names that are made up do not grow the metrics."""
    assert {route_label(f"/static/{name}") for name in ("page.js", "x", "a/b")} == {"/static"}
    assert route_label("/staticx") == "other"


def test_the_whole_page_is_small() -> None:
    """Less than a photograph, whatever it grows into."""
    assert sum(path.stat().st_size for path in STATIC.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_no_file_names_another_host_or_makes_markup_of_data(path: Path) -> None:
    """No address but that of SVG's namespace, which nobody visits; nothing that reads text as HTML or code; nothing is kept."""
    text = path.read_text()
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|localStorage|sessionStorage|cookie"
    assert re.findall(forbidden + r"|indexedDB|console\.|\son[a-z]+=|<style|\sstyle=", text) == []


def test_every_module_that_is_imported_is_there() -> None:
    """A name that is misspelt would show as an empty page."""
    for path in STATIC.glob("*.js"):
        for name in re.findall(r'from "\./([\w.]+)"', path.read_text()):
            assert (STATIC / name).is_file(), (path.name, name)
