"""`python -m tests.service.http_reference` writes docs/http.md: every route of /docs.json with an example and its real answer.

The examples are asked of a real service that serves a small bundle with hand-checked answers. What differs from run to run
(hashes, times) is left out, long answers are shortened.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from service.access.keys import SCOPES, new_key
from service.api.app import all_routes
from service.api.openapi import API_VERSION
from tests.service.clinical.clinical_bundle import write_clinical_bundle
from tests.serving import ROOT, running_server

TARGET = ROOT / "docs" / "http.md"
Json = dict[str, Any]
_HEAD = f"""\
# The HTTP API, route by route

Version {API_VERSION}. Made by `python -m tests.service.http_reference`, which asks a running service for every answer below; a
test says when it is out of date. `GET /docs.json` of your own service is the same in OpenAPI 3.1, with your model's features.

Where the service has keys (docs/security.md), send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`; where it trusts an
identity provider, send an access token as `Authorization: Bearer TOKEN`. The scope that it needs stands with each route. Send an
`X-Request-ID` of up to 128 plain characters and it comes back, in every answer that has a place for it and in the log; else one
is made. A refusal is `{{"error", "code", "detail": [{{"loc", "type", "msg"}}], "request_id"}}`; 429 and 503 say in `Retry-After`
when to come back. `service.client` does all this for Python.

In what follows numbers are rounded and `...` stands for what is left out here; bodies of which something is left out are
whole in `/docs.json`.
"""
_ID = "example-1"
_RUNS_DIFFER = {
    *("sha256", "time", "uuid", "created", "queue", "inference", "total", "batch_size", "detail", "text", "note"),
    *("occurrenceDateTime", "effectiveDateTime", "date", "birthDate", "lastUpdated", "hookInstance", "card"),
}
_OF_A_PATH = {"{request_id}": _ID, "{version}": "1.0.0"}
_STATIC = "page.css"
_DEPTHS = {"/docs.json": 1, "/model": 1, "/model-card": 1, "/explanations": 2}  # of long answers
_DEPTH, _ITEMS, _WIDTH = 4, 2, 120
_DIGITS = 3  # of numbers below 1, else one less: the last bits of a risk depend on how its batch was run, and a patient born so
# many years ago today is some hours older in the evening (51.250 % became 51.251)


class Reference:
    """The routes of a running service, asked by way of `http`."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._document: Json = http.get("/docs.json").json()
        self._model: str = http.get("/model").json()["model"]["name"]
        self._hook: str = http.get("/cds-services").json()["services"][0]["id"]

    def text(self) -> str:
        """The document. Fails for a route without an example."""
        items = self._document["paths"].items()
        routes = [(path, method, told) for path, item in items for method, told in item.items() if method != "parameters"]
        return "\n".join([_HEAD, *(part for route in routes for part in self._route(*route))])

    def _route(self, path: str, method: str, told: Json) -> Iterator[str]:
        yield f"## {method.upper()} {path}\n"
        yield f"{told['summary']}. {told.get('description', '')}".strip() + "\n"
        scope = next((route.needs for route in all_routes() if route.path == path), None)
        yield f"Scope: {scope or 'none, open to all'}. Answers: {', '.join(sorted(told['responses']))}.\n"
        asked = self._asked(path)
        if method == "get":
            response = self._http.get(asked)
            yield f"```sh\ncurl localhost:3000{asked}\n```\n"
        elif "requestBody" not in told:
            response = self._http.post(asked)
            yield f"```sh\ncurl -X POST localhost:3000{asked}\n```\n"
        else:
            body, kind = self._body(path, told), next(iter(told["requestBody"]["content"]))
            response = self._http.post(asked, json=body, headers={"Content-Type": kind})
            yield f"```sh\ncurl 'localhost:3000{asked}' -H 'Content-Type: {kind}' -d @body.json\n```\n"
            yield f"`body.json`:\n\n```text\n{_shown(body)}\n```\n"
        assert response.is_success, f"{method} {asked}: {response.text}"
        yield f"Answer:\n\n```text\n{_answer(response)}\n```\n"

    def _asked(self, path: str) -> str:
        names = {**_OF_A_PATH, "{id}": self._hook, "{name}": _STATIC if path.startswith("/static") else self._model}
        for place, value in names.items():
            path = path.replace(place, value)
        assert "{" not in path, f"{path}: no example for its parameters"
        return path

    def _body(self, path: str, told: Json) -> Json:
        """The example of /docs.json, or one that fits the model's own description."""
        if path == "/outcomes":  # of a prediction that was asked for above
            return {"outcomes": [{"request_id": _ID, "label": self._http.get("/model").json()["task"]["labels"][-1]}]}
        content: Json = next(iter(told["requestBody"]["content"].values()))
        if examples := content.get("examples"):
            return dict(next(iter(examples.values()))["value"])
        if "example" in content:
            return dict(content["example"])
        return {"infer": self._tensors, "feedback": _feedback}[path.rpartition("/")[2]]()

    def _tensors(self) -> Json:
        inputs = self._http.get(f"/v2/models/{self._model}").json()["inputs"]
        tensors = [{**tensor, "shape": [1, tensor["shape"][1]], "data": [1.0] * tensor["shape"][1]} for tensor in inputs]
        return {"inputs": tensors, "outputs": [{"name": "prediction"}, {"name": "contribution"}]}


def _feedback() -> Json:
    card = "30f34f7c-2d7a-4d9d-9a0a-5d8b0a6a3a11"
    return {"feedback": [{"card": card, "outcome": "accepted", "outcomeTimestamp": "2026-01-01T12:00:00Z"}]}


def _answer(response: httpx.Response) -> str:
    kind = response.headers["content-type"]
    return _shown(response.json(), _DEPTHS.get(response.url.path, _DEPTH)) if "json" in kind else f"({kind})"


def _shown(document: object, depth: int = _DEPTH) -> str:
    return json.dumps(_shortened(document, depth), indent=1, ensure_ascii=False).replace('"..."', "...")


def _shortened(value: Any, depth: int) -> Any:
    match value:
        case dict() | list() if depth == 0 and value:
            return "..."
        case dict():
            return {key: _shortened(one, depth - 1) if _is_shown(key, one) else "..." for key, one in value.items()}
        case list():
            return [*(_shortened(one, depth - 1) for one in value[:_ITEMS]), *(["..."] if len(value) > _ITEMS else [])]
        case str() if len(value) > _WIDTH:
            return value[:_WIDTH] + " ..."
        case float():
            return round(value, _DIGITS if abs(value) < 1 else _DIGITS - 1)
    return value


def _is_shown(key: str, value: object) -> bool:
    return key not in _RUNS_DIFFER or isinstance(value, dict) or value == []


def make_reference(folder: Path) -> str:
    """Start a service for it."""
    key, lines = new_key("reference", list(SCOPES))
    (folder / "keys.toml").write_text(lines)
    settings = {"AUDIT_URL": f"sqlite:///{folder / 'predictions.db'}", "PROVIDER": "cpu", "API_KEYS": str(folder / "keys.toml")}
    environment = {f"I2MOE_{name}": value for name, value in settings.items()}
    headers = {"X-API-Key": key, "X-Request-ID": _ID}
    bundle = write_clinical_bundle(folder / "bundle")
    with (
        running_server(bundle, folder / "server", environment=environment) as server,
        httpx.Client(base_url=server.url, headers=headers, timeout=20) as http,
    ):
        return Reference(http).text()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        TARGET.write_text(make_reference(Path(made)))
