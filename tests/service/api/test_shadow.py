"""A second model in the shadow of the served one: what is seen of it in the metrics, and that a client sees nothing of it."""

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.access.keys import new_key
from service.api.batches import Arrays
from service.api.comparing import Other
from service.api.runtime import Runtime
from service.api.settings import Settings
from service.api.shadow import Shadow
from service.bundle.comparison import Comparison
from service.bundle.output import Output
from tests.service.api.in_process import Client, serving, serving_runtime
from tests.service.clinical.clinical_bundle import (
    hook_call,
    observation,
    patient,
    searchset,
    whole_prefetch,
    write_clinical_bundle,
)
from tests.serving import running_server
from tests.shadow_bundles import (
    EXAMPLE_DIFFERENCE,
    WEIGHT_DISTANCES,
    other_output,
    write_other_bundle,
    write_reordered_bundle,
    write_unnamed_bundle,
)
from tests.tiny_bundle import EXPERTS, POISON, TASK, tiny_example, tiny_output, write_tiny_bundle

INFER = "/v2/models/tiny/infer"
ADMIN, ADMIN_LINES = new_key("operator", ["admin", "predict", "explain", "metrics"])
AS_ADMIN = {"X-API-Key": ADMIN}
OUTCOMES = ("compared", "skipped", "invalid", "error")
RECORDS: list[dict[str, Any]] = [
    tiny_example(),
    {"labs": [1.0, 140.0], "history": {"age": 60, "sex": "female"}},
    {"labs": {"crea": 9.0}},
    {"history": [40.0, 1.0]},
]


@pytest.fixture(scope="session")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the other model's bundle."""
    return write_other_bundle(tmp_path_factory.mktemp("bundles") / "other")


@pytest.fixture(scope="session")
def reordered_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundle whose labs come in another order."""
    return write_reordered_bundle(tmp_path_factory.mktemp("bundles") / "reordered")


@contextmanager
def shadowed(bundle: Path, shadow: Path, **settings: Any) -> Iterator[Client]:
    """A client of a service whose shadow is loaded, or never will be."""
    with serving(bundle, shadow_bundle=shadow, **settings) as client:
        wait_for(client, lambda: "being loaded" not in (status(client)["problem"] or ""))
        yield client


def status(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.request("GET", "/model", headers=AS_ADMIN).json()["shadow"]
    return found


def wait_for(client: Client, is_so: Any) -> None:
    """Let the service go on until something is so."""
    for _ in range(1000):
        if is_so():
            return
        client._portal.call(asyncio.sleep, 0.01)
    raise AssertionError("it never was")


def counts(client: Client) -> dict[str, int]:
    """Samples by outcome, of those that have one."""
    told = {outcome: client.metric(f'i2moe_shadow_samples_total{{outcome="{outcome}"}}') for outcome in OUTCOMES}
    return {outcome: int(count) for outcome, count in told.items() if count}


def settle(client: Client, **expected: int) -> None:
    """Wait until so many samples have an outcome; then they have these."""
    wait_for(client, lambda: sum(counts(client).values()) >= sum(expected.values()))
    assert counts(client) == expected


def below(client: Client, limit: float) -> int:
    """Risk differences up to a limit."""
    return int(client.metric(f'i2moe_shadow_risk_difference_bucket{{le="{limit}"}}'))


def ask_every_way(client: Client) -> int:
    """Ten samples: as records, as tensors in JSON and in bytes."""
    client.predict({"instances": RECORDS})
    client.predict({"instances": RECORDS, "explain": False})
    tensor = {"name": "labs", "shape": [1, 2], "datatype": "FP32"}
    assert client.request("POST", INFER, json={"inputs": [tensor | {"data": [4.0, 140.0]}]}).status_code == 200
    text = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 8}}]}).encode()
    body, headers = text + np.array([4, 140], "<f4").tobytes(), {"Inference-Header-Content-Length": str(len(text))}
    assert client.request("POST", INFER, content=body, headers=headers).status_code == 200
    return 10


def test_the_same_bundle_differs_in_nothing(tiny_path: Path) -> None:
    """Whatever way is asked: no difference at all for any sample, no other label, no other weight."""
    with shadowed(tiny_path, tiny_path) as client:
        settle(client, compared=ask_every_way(client))
        assert (below(client, -0.001), below(client, 0.0)) == (0, 10)
        assert client.metric("i2moe_shadow_label_changes_total") == 0
        for expert in EXPERTS:
            assert client.metric(f'i2moe_shadow_expert_weight_difference_bucket{{expert="{expert}",le="0.0"}}') == 10


def test_another_bundle_differs_as_computed_by_hand(tiny_path: Path, other_path: Path) -> None:
    """Risks, labels and weights of four patients, by the formulas of both bundles."""
    rows = (
        np.array([[4, 140], [1, 140], [9, np.nan], [np.nan, np.nan]], np.float32),
        np.array([[70, 1], [60, 0], [np.nan, np.nan], [40, 1]], np.float32),
    )
    ours, theirs = tiny_output(*rows).prediction[:, 1], other_output(*rows).prediction[:, 1]
    assert round(float(theirs[0] - ours[0]), 6) == EXAMPLE_DIFFERENCE
    with shadowed(tiny_path, other_path) as client:
        client.predict({"instances": RECORDS})
        settle(client, compared=4)
        for limit in (-0.1, 0.0, 0.05, 0.1, 0.2, 0.5):
            assert below(client, limit) == (theirs - ours <= limit).sum(), limit
        assert client.metric("i2moe_shadow_label_changes_total") == ((theirs >= 0.5) != (ours >= 0.5)).sum()
        for expert, distance in zip(EXPERTS, WEIGHT_DISTANCES, strict=True):
            told = client.metric(f'i2moe_shadow_expert_weight_difference_sum{{expert="{expert}"}}')
            assert told == pytest.approx(4 * distance)


def test_a_model_that_reads_otherwise_reads_what_was_sent(tiny_path: Path, reordered_path: Path) -> None:
    """Named values find their columns; flat vectors whose columns are others are invalid, not taken for what they are not."""
    with shadowed(tiny_path, reordered_path) as client:
        client.predict({"instances": [tiny_example(), {"labs": [4.0, 140.0]}, {"labs": {"crea": "x"}}, {"history": [70.0, 1.0]}]})
        client.predict(tiny_example())
        for name, data in (("labs", [4.0, 140.0]), ("history", [70.0, 1.0])):
            tensor = {"name": name, "shape": [1, 2], "datatype": "FP32", "data": data}
            assert client.request("POST", INFER, json={"inputs": [tensor]}).status_code == 200
        settle(client, compared=4, invalid=2)
        assert (below(client, -0.001), below(client, 0.0)) == (0, 4)


def test_a_record_that_the_shadow_refuses_is_invalid(tiny_path: Path, tmp_path: Path) -> None:
    """Here because it discards records without a modality, which the served model does not."""
    with shadowed(tiny_path, write_tiny_bundle(tmp_path / "strict", missing="reject").path) as client:
        client.predict({"instances": RECORDS})
        settle(client, compared=2, invalid=2)
        assert below(client, 0.0) == 2


def test_hospital_systems_are_compared_too(tmp_path: Path) -> None:
    """CDS Hooks, $evaluate and FHIR answers: the shadow maps the resources by what it calls its features itself.

    Without a LOINC code for creatinine it knows none, and says 0.30 where the served model says 0.51.
    """
    with shadowed(write_clinical_bundle(tmp_path / "served"), write_unnamed_bundle(tmp_path / "unnamed")) as client:
        hook = hook_call(whole_prefetch())
        assert client.request("POST", "/cds-services/tiny-patient-view", json=hook).json()["cards"]
        bundle = searchset(patient(), observation("2160-0", 4.0, "mg/dL"))
        assert client.request("POST", "/fhir/RiskAssessment/$evaluate", json=bundle).status_code == 200
        settle(client, compared=2)
        assert below(client, -0.2) == 2
        assert client.post(json=tiny_example(), headers={"Accept": "application/fhir+json"}).status_code == 200
        settle(client, compared=3)
        assert (below(client, -0.001), below(client, 0.0)) == (2, 3)  # by name, both know it


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in answer.items() if name not in {"request_id", "timing_ms"}}


def test_a_client_sees_no_difference(tiny_path: Path, other_path: Path) -> None:
    """Answers are the same bytes but for ids and times; so are refusals."""
    told = []
    for shadow in (None, other_path):
        with serving(tiny_path, shadow_bundle=shadow) as client:
            if shadow is not None:
                wait_for(client, lambda client=client: status(client)["model"] is not None)
            told.append(
                [
                    json.dumps(without_times(client.predict({"instances": [*RECORDS, {"labs": {"crea": "x"}}]}))),
                    json.dumps(without_times(client.post(json={"labs": {"nothing": 1}}).json())),
                    client.post(json=tiny_example(), headers={"X-Request-ID": "a"}).headers["x-request-id"],
                ]
            )
    assert told[0] == told[1]


def test_a_sample_on_which_the_shadow_fails_is_an_error_of_its_own(tiny_path: Path, poisoned_path: Path, caplog: Any) -> None:
    """Its neighbours are compared, clients get their answers, and no value is in the log."""
    with shadowed(tiny_path, poisoned_path) as client:
        answer = client.predict({"instances": [tiny_example(), {"labs": {"crea": POISON, "sod": 141.25}}, tiny_example()]})
        assert [prediction["status"] for prediction in answer["predictions"]] == ["ok"] * 3
        settle(client, compared=2, error=1)
        client.predict({"labs": {"crea": POISON, "sod": 141.25}})
        settle(client, compared=2, error=2)
    lines = [
        record.getMessage() for record in caplog.records if record.name == "i2moe.shadow" and "failed" in record.getMessage()
    ]
    assert len(lines) == 1  # further ones are counted alone
    assert "InferenceError" in lines[0]
    assert not any(trace in caplog.text for trace in (str(POISON), "141.25"))


class Odd(Shadow):
    """A shadow whose model does what a test wants."""

    def __init__(self, settings: Settings, runtime: Runtime, *, path: Path) -> None:
        super().__init__(settings, runtime.metrics, path=path)
        self.begun, self.may_go, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.fails: type[Exception] | None = None

    async def _load(self, path: Path) -> Other:
        other = await super()._load(path)

        def run(arrays: Arrays) -> Output:
            self.begun.set()
            assert self.may_go.wait(10)
            if self.fails is not None:
                raise self.fails(str(arrays))
            output = other.run(arrays)
            self.ended.set()
            return output

        return Other(other.manifest, other.info, run, other.reader)


@contextmanager
def oddly_shadowed(bundle: Path, shadow: Path, **options: Any) -> Iterator[tuple[Client, Odd]]:
    settings = Settings(bundle=bundle, num_threads=1, shadow_bundle=shadow, **options)
    runtime = Runtime(settings)
    odd = runtime.shadow = Odd(settings, runtime, path=shadow)
    with serving_runtime(runtime) as client:
        wait_for(client, lambda: status(client)["model"] is not None)
        yield client, odd


def test_a_shadow_that_hangs_holds_up_nothing(tiny_path: Path, other_path: Path) -> None:
    """Requests are answered, what does not fit its queue is skipped, and so is at shutdown all that waits."""
    with oddly_shadowed(tiny_path, other_path, queue_max=8, max_instances=8, max_batch_size=4) as (client, odd):
        client.predict(tiny_example())
        assert odd.begun.wait(10)
        for _ in range(5):
            assert len(client.predict({"instances": RECORDS})["predictions"]) == 4
        settle(client, skipped=12)
        assert client.get("/readyz").status_code != 500
        metrics = client.runtime.metrics
    assert b'i2moe_shadow_samples_total{outcome="skipped"} 20.0' in metrics.render()
    odd.may_go.set()


def test_a_shadow_that_raises_fails_nothing(tiny_path: Path, other_path: Path, caplog: Any) -> None:
    """Whatever it raises: the client is answered, the sample is an error, and the next one has its chance."""
    with oddly_shadowed(tiny_path, other_path) as (client, odd):
        odd.may_go.set()
        odd.fails = MemoryError
        client.predict({"instances": RECORDS})
        settle(client, error=4)
        odd.fails = None
        client.predict({"instances": RECORDS})
        settle(client, error=4, compared=4)
    assert "MemoryError" in caplog.text
    assert "array(" not in caplog.text


def test_a_hanging_shadow_can_be_replaced(tiny_path: Path, other_path: Path, tmp_path: Path) -> None:
    """Another bundle gets a thread of its own."""
    folder = tmp_path / "shadows"
    put(folder, other_path, "2.0.0", "2026-01-01T00:00:00Z")
    keys = tmp_path / "keys.toml"
    keys.write_text(ADMIN_LINES)
    with oddly_shadowed(tiny_path, folder, api_keys=keys) as (client, odd):
        client.request("POST", "/predict", json=tiny_example(), headers=AS_ADMIN)
        assert odd.begun.wait(10)
        put(folder, other_path, "2.1.0", "2026-02-01T00:00:00Z")
        reload(client)
        assert status(client)["model"]["version"] == "2.1.0"
        odd.may_go.set()


def put(folder: Path, bundle: Path, version: str, created: str) -> Path:
    """A bundle under another version, whole, by one renaming."""
    staged = folder.parent / f"staged-{version}"
    shutil.copytree(bundle, staged)
    document = json.loads((staged / "manifest.json").read_text()) | {"version": version, "created": created}
    (staged / "manifest.json").write_text(json.dumps(document))
    folder.mkdir(exist_ok=True)
    return staged.rename(folder / version)


def reload(client: Client) -> dict[str, Any]:
    response = client.request("POST", "/admin/reload", headers=AS_ADMIN)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


@pytest.fixture
def followed(tmp_path: Path, tiny_path: Path, other_path: Path) -> Iterator[tuple[Client, Path]]:
    """A service with an operator's key, and the folder of its shadow bundles, of which it has one."""
    (tmp_path / "keys.toml").write_text(ADMIN_LINES)
    folder = tmp_path / "shadows"
    put(folder, other_path, "2.0.0", "2026-01-01T00:00:00Z")
    with shadowed(tiny_path, folder, api_keys=tmp_path / "keys.toml") as client:
        yield client, folder


def shown(client: Client, version: str) -> float:
    text = client.request("GET", "/metrics", headers=AS_ADMIN).text
    lines = [line for line in text.splitlines() if line.startswith("i2moe_shadow_info") and f'version="{version}"' in line]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


def problem(client: Client) -> float:
    text = client.request("GET", "/metrics", headers=AS_ADMIN).text
    (line,) = [line for line in text.splitlines() if line.startswith("i2moe_shadow_problem ")]
    return float(line.rpartition(" ")[2])


def test_another_shadow_takes_over(followed: tuple[Client, Path], other_path: Path, caplog: Any) -> None:
    """The last created, told by GET /model, the metrics and the log; what is served stays."""
    client, folder = followed
    caplog.set_level("INFO", "i2moe.shadow")
    assert (shown(client, "2.0.0"), problem(client)) == (1, 0)
    newer = put(folder, other_path, "2.1.0", "2026-02-01T00:00:00Z")
    told = reload(client)
    assert (told["changed"], told["model"]["version"], told["shadow"]["model"]["version"]) == (False, "1.0.0", "2.1.0")
    assert status(client) == told["shadow"]
    assert (shown(client, "2.0.0"), shown(client, "2.1.0"), problem(client)) == (0, 1, 0)
    shutil.rmtree(newer)
    assert reload(client)["shadow"]["model"]["version"] == "2.0.0"
    assert "the shadow took over: name=tiny version=2.1.0" in caplog.text


def test_a_damaged_shadow_changes_nothing(followed: tuple[Client, Path], other_path: Path, caplog: Any) -> None:
    """The one before goes on; the reason is told, once in the log; the service stays ready."""
    client, folder = followed
    broken = put(folder, other_path, "2.1.0", "2026-02-01T00:00:00Z")
    (broken / "model.onnx").write_bytes(b"damaged")
    for _ in range(3):
        told = reload(client)["shadow"]
        assert told["model"]["version"] == "2.0.0"
        assert "model.onnx is damaged" in told["problem"]
    assert caplog.text.count("the shadow bundle that is there is not loaded") == 1
    assert (problem(client), shown(client, "2.0.0"), client.runtime.is_ready) == (1, 1, True)
    client.request("POST", "/predict", json=tiny_example(), headers=AS_ADMIN)
    shutil.rmtree(broken)
    assert reload(client)["shadow"]["problem"] is None
    assert problem(client) == 0


@pytest.mark.parametrize("what", ["nothing", "no bundle", "another event"])
def test_a_shadow_that_cannot_be_compared_leaves_the_service_ready(tiny_path: Path, tmp_path: Path, what: str) -> None:
    """Nothing there, nothing that is a bundle, or a model of something else: told by GET /model and a metric."""
    path = tmp_path / "shadow"
    if what == "no bundle":
        path.mkdir()
        (path / "manifest.json").write_text("{")
    if what == "another event":
        write_other_bundle(path, task=TASK.model_copy(update={"labels": ("dead", "alive"), "risk_bands": ()}))
    why = {"nothing": "found nothing", "no bundle": "cannot be read as JSON", "another event": "event 'dead', found 'alive'"}[
        what
    ]
    with shadowed(tiny_path, path) as client:
        found = status(client)
        assert found["model"] is None
        assert why in found["problem"]
        assert client.metric("i2moe_shadow_problem") == 1
        assert client.runtime.is_ready
        client.predict(tiny_example())
        assert counts(client) == {}


def test_without_a_shadow_there_is_nothing_of_it(tiny_path: Path) -> None:
    """GET /model says null and no series has risen."""
    with serving(tiny_path) as client:
        client.predict(tiny_example())
        assert client.get("/model").json()["shadow"] is None
        assert counts(client) == {}
        assert client.metric("i2moe_shadow_problem") == 0


def test_a_served_model_that_changes_is_compared_with_the_same_shadow(tmp_path: Path, tiny_path: Path, other_path: Path) -> None:
    """From then on against the new one: here the very same, so that nothing differs any more."""
    folder, keys = tmp_path / "served", tmp_path / "keys.toml"
    keys.write_text(ADMIN_LINES)
    put(folder, tiny_path, "1.0.0", "2026-01-01T00:00:00Z")
    with shadowed(folder, other_path, api_keys=keys) as client:
        put(folder, other_path, "2.0.0", "2026-02-01T00:00:00Z")
        assert reload(client)["model"]["version"] == "2.0.0"
        assert status(client)["problem"] is None
        client.request("POST", "/predict", json=tiny_example(), headers=AS_ADMIN)

        def told() -> str:
            return client.request("GET", "/metrics", headers=AS_ADMIN).text

        wait_for(client, lambda: 'i2moe_shadow_samples_total{outcome="compared"} 1.0' in told())
        assert 'i2moe_shadow_risk_difference_bucket{le="0.0"} 1.0' in told()


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_a_share_of_requests_is_compared(tiny_path: Path, share: float) -> None:
    """Always the same ones, evenly, whatever the rhythm in which different requests come."""
    runtime = Runtime(Settings(shadow_bundle=tiny_path, shadow_share=share))
    assert runtime.shadow is not None
    chosen = [runtime.shadow._is_chosen() for _ in range(10_000)]
    assert sum(chosen) == pytest.approx(10_000 * share, abs=3)
    for period in (2, 3, 7):
        for start in range(period):
            assert sum(chosen[start::period]) == pytest.approx(10_000 * share / period, abs=8), (period, start)


def test_requests_that_are_not_chosen_are_not_counted(tiny_path: Path, other_path: Path) -> None:
    """A share is no failure."""
    with shadowed(tiny_path, other_path, shadow_share=0.5) as client:
        for _ in range(20):
            client.predict(tiny_example())
        settle(client, compared=10)


def test_a_shadow_that_cannot_begin_now_is_told_and_tried_again(tiny_path: Path, other_path: Path, caplog: Any) -> None:
    """For want of a thread, for instance: it is not "being loaded" for ever, and the next look has another chance."""

    class Threadless(Shadow):
        fails = True

        def _take_over(self, other: Other, comparison: Comparison) -> None:
            if self.fails:
                raise RuntimeError("can't start new thread")
            super()._take_over(other, comparison)

    settings = Settings(bundle=tiny_path, num_threads=1, shadow_bundle=other_path)
    runtime = Runtime(settings)
    shadow = runtime.shadow = Threadless(settings, runtime.metrics, path=other_path)
    with serving_runtime(runtime) as client:
        wait_for(client, lambda: "cannot be compared now (RuntimeError)" in (status(client)["problem"] or ""))
        assert client.metric("i2moe_shadow_problem") == 1
        assert "no shadow runs: unexpected RuntimeError" in caplog.text
        shadow.fails = False
        client._portal.call(shadow.follow)
        assert status(client)["problem"] is None
        assert client.metric("i2moe_shadow_problem") == 0


def test_a_stop_waits_for_the_pass_that_has_begun(tiny_path: Path, other_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that comes out of a graph after Python's end may abort the process."""
    monkeypatch.setattr("service.api.background._STOP_S", 20.0)
    with oddly_shadowed(tiny_path, other_path) as (client, odd):
        client.predict(tiny_example())
        assert odd.begun.wait(10)
        threading.Timer(0.2, odd.may_go.set).start()
    assert odd.ended.is_set()


@pytest.mark.slow
def test_a_real_process_compares_and_forgets_nothing_when_a_worker_is_replaced(tmp_path: Path) -> None:
    """With two workers, each with its own shadow: counts add up, also of one that was killed; an exit is clean and quick."""
    import time

    import psutil

    served = write_tiny_bundle(tmp_path / "tiny").path
    environment = {"I2MOE_SHADOW_BUNDLE": str(write_other_bundle(tmp_path / "other")), "I2MOE_WORKERS": "2"}
    with running_server(served, tmp_path / "server", environment=environment) as server:

        def until(is_so: Any) -> None:
            give_up = time.monotonic() + 60
            while not is_so():
                assert time.monotonic() < give_up, server.log
                time.sleep(0.1)

        def compared() -> float:
            lines = server.get("/metrics").text.splitlines()
            return sum(
                float(line.split()[1]) for line in lines if line.startswith('i2moe_shadow_samples_total{outcome="compared"}')
            )

        until(lambda: server.log.count("the shadow took over") == 2)
        for _ in range(20):
            assert server.post("/predict", tiny_example()).status_code == 200
        until(lambda: compared() == 20)
        children = psutil.Process(server.process.pid).children(recursive=True)
        next(child for child in children if "_bentoml_impl.worker.service" in " ".join(child.cmdline())).kill()
        until(lambda: server.log.count("the shadow took over") == 3)
        assert compared() == 20
        assert 'i2moe_shadow_risk_difference_bucket{le="0.1"} 20.0' in server.get("/metrics").text
        assert server.get("/model").json()["shadow"]["model"]["version"] == "2.0.0"
        assert server.terminate() == 0
    assert "Traceback" not in server.log
