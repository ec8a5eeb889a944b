"""Another bundle takes over: without a failed request, or not at all."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.keys import new_key
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving
from tests.serving import Connection, Server, running_server
from tests.tiny_bundle import tiny_example, write_tiny_bundle

ADMIN, ADMIN_LINES = new_key("operator", ["admin", "predict", "explain", "metrics"])
AS_ADMIN = {"X-API-Key": ADMIN}


def put(folder: Path, version: str, created: str) -> Path:
    """A bundle of this version, put into the folder as export does: whole, by one renaming."""
    staged = write_tiny_bundle(folder.parent / f"staged-{version}").path
    manifest = staged / "manifest.json"
    document = json.loads(manifest.read_text()) | {"version": version, "created": created}
    manifest.write_text(json.dumps(document))
    return staged.rename(folder / version)


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """A folder with version 1.0.0."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    put(folder, "1.0.0", "2026-01-01T00:00:00Z")
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """An operator's key."""
    path = tmp_path / "keys.toml"
    path.write_text(ADMIN_LINES)
    return path


@pytest.fixture
def reloadable(bundles: Path, keys: Path) -> Iterator[Client]:
    """A client of a service that is told when to look."""
    with serving(bundles, api_keys=keys, timeout_s=0.2) as client:
        yield client


def reload(client: Client) -> Any:
    return client.request("POST", "/admin/reload", headers=AS_ADMIN)


def version(client: Client) -> str:
    answer = client.request("POST", "/predict", json=tiny_example(), headers=AS_ADMIN)
    assert answer.status_code == 200, answer.text
    told: str = answer.json()["model"]["version"]
    return told


def test_a_newer_bundle_takes_over_and_an_older_one_comes_back(reloadable: Client, bundles: Path) -> None:
    """Both are told of while the old one may still answer; taking the new one away rolls back."""
    assert version(reloadable) == "1.0.0"
    assert reload(reloadable).json()["changed"] is False
    newer = put(bundles, "1.1.0", "2026-02-01T00:00:00Z")
    told = reload(reloadable).json()
    assert (told["changed"], told["model"]["version"]) == (True, "1.1.0")
    assert version(reloadable) == "1.1.0"
    shutil.rmtree(newer)
    assert reload(reloadable).json()["model"]["version"] == "1.0.0"
    assert version(reloadable) == "1.0.0"


def test_both_versions_are_visible_until_the_old_one_is_done(reloadable: Client, bundles: Path) -> None:
    """An old model is let go when no request can still be its own."""
    put(bundles, "1.1.0", "2026-02-01T00:00:00Z")
    reload(reloadable)

    def shown(of: str) -> str:
        text = reloadable.request("GET", "/metrics", headers=AS_ADMIN).text
        (line,) = [line for line in text.splitlines() if line.startswith("i2moe_model_info") and f'version="{of}"' in line]
        return line.rpartition(" ")[2]

    assert (shown("1.0.0"), shown("1.1.0")) == ("1.0", "1.0")
    for _ in range(100):
        if shown("1.0.0") == "0.0":
            break
        reloadable._portal.call(asyncio.sleep, 0.05)
    assert (shown("1.0.0"), shown("1.1.0")) == ("0.0", "1.0")
    assert version(reloadable) == "1.1.0"


DAMAGES = {
    "truncated": lambda path: (path / "model.onnx").write_bytes((path / "model.onnx").read_bytes()[:-7]),
    "another sha": lambda path: (path / "reference.json").write_text("{}"),
    "a missing file": lambda path: (path / "model.onnx").unlink(),
    "half a manifest": lambda path: (path / "manifest.json").write_text('{"created": "2026-02-01T00:00:00Z", "version": "1.1.0"'),
    "another format": lambda path: (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace('"format_version": 3', '"format_version": 99')
    ),
    "another answer": lambda path: (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace('"prediction": [', '"prediction": [0.9, ', 1)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bundle_that_cannot_be_served_changes_nothing(reloadable: Client, bundles: Path, damage: Any) -> None:
    """The old one goes on; the reason is told, once in the log and with every reload; repaired, it takes over."""
    newer = put(bundles, "1.1.0", "2026-02-01T00:00:00Z")
    damage(newer)
    first = reload(reloadable)
    if first.status_code == 200:  # a manifest that cannot be read is not chosen while another can be
        assert first.json()["changed"] is False
    else:
        assert_error(first, 409, "RELOAD_FAILED")
        assert_error(reload(reloadable), 409, "RELOAD_FAILED")
        text = reloadable.request("GET", "/metrics", headers=AS_ADMIN).text
        assert 'i2moe_reloads_total{outcome="failed"} 1.0' in text
    assert version(reloadable) == "1.0.0"
    shutil.rmtree(newer)
    put(bundles, "1.1.0", "2026-02-01T00:00:00Z")
    assert reload(reloadable).json()["changed"] is True
    assert version(reloadable) == "1.1.0"


def test_a_pinned_version_stays(bundles: Path, keys: Path) -> None:
    """Whatever else appears."""
    with serving(bundles, api_keys=keys, bundle_version="1.0.0") as client:
        put(bundles, "1.1.0", "2026-02-01T00:00:00Z")
        assert reload(client).json()["changed"] is False
        assert version(client) == "1.0.0"


def test_reloading_needs_a_key(bundles: Path, keys: Path) -> None:
    """Of scope admin; a service without keys reloads for nobody."""
    ward, lines = new_key("ward", ["predict"])
    keys.write_text(f"{ADMIN_LINES}\n{lines}")
    with serving(bundles, api_keys=keys) as client:
        assert_error(client.request("POST", "/admin/reload", headers={"X-API-Key": ward}), 403, "FORBIDDEN")
    with serving(bundles) as client:
        assert_error(client.request("POST", "/admin/reload"), 403, "FORBIDDEN")


async def ask_until(server: Server, done: asyncio.Event, answers: list[tuple[int, str]]) -> None:
    """Post the example again and again."""
    connection = await Connection.open(server)
    while not done.is_set():
        status, body = await connection.post("/predict", tiny_example())
        answers.append((status, body.get("model", {}).get("version", "")))
    connection.close()


@pytest.mark.slow
def test_under_load_a_new_bundle_takes_over_without_a_failed_request(bundles: Path, tmp_path: Path) -> None:
    """The real process looks by itself: forward, a damaged one that is ignored, and back, with eight clients asking."""
    answers: list[tuple[int, str]] = []

    async def play(server: Server) -> None:
        done = asyncio.Event()
        clients = [asyncio.create_task(ask_until(server, done, answers)) for _ in range(8)]
        await asyncio.sleep(0.5)
        newer = put(bundles, "1.1.0", "2026-02-01T00:00:00Z")
        await seen("1.1.0")
        broken = put(bundles, "1.2.0", "2026-03-01T00:00:00Z")
        DAMAGES["truncated"](broken)
        await asyncio.sleep(1)
        shutil.rmtree(broken)
        newer.rename(tmp_path / "taken-away")
        await seen("1.0.0")
        done.set()
        await asyncio.gather(*clients)

    async def seen(wanted: str) -> None:
        async with asyncio.timeout(20):
            while not answers or answers[-1][1] != wanted:
                await asyncio.sleep(0.02)

    with running_server(bundles, tmp_path / "server", environment={"I2MOE_WATCH_S": "0.2"}) as server:
        asyncio.run(play(server))
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} >= {"1.0.0", "1.1.0"}
    assert len(answers) > 100


@pytest.mark.slow
def test_a_service_without_a_bundle_becomes_ready_when_one_appears(tmp_path: Path) -> None:
    """No restart: the folder is empty at first."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    with running_server(folder, tmp_path / "server", ready=False, environment={"I2MOE_WATCH_S": "0.2"}) as server:
        server.wait_until_status("/readyz", 503)
        put(folder, "1.0.0", "2026-01-01T00:00:00Z")
        server.wait_until_status("/readyz", 200)
        assert server.post("/predict", tiny_example()).status_code == 200
