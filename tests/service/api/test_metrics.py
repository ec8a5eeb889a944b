import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

from service.api import metric_files
from service.api.metrics import BatchHistogram, Metrics
from service.api.route_labels import (
    CDS_ROUTES,
    INFER_ROUTE,
    OTHER_ROUTE,
    PREDICTIONS_ROUTE,
    PROTOCOL_ROUTE,
    ROUTES,
    STATIC_ROUTE,
    route_label,
)
from tests.service.api.in_process import Client, serving
from tests.tiny_bundle import POISON, TINY_UNCERTAINTY, tiny_example, tiny_manifest, tiny_reference, write_tiny_bundle


def test_samples_are_counted_by_outcome(poisoned_path: Path) -> None:
    """Good, invalid and failed samples are told apart, also when the whole request is refused."""
    with serving(poisoned_path) as client:
        assert client.metric('i2moe_samples_total{outcome="ok"}') == 0
        client.predict({"instances": [tiny_example(), tiny_example(), {"labs": {"crea": "x"}}, {"labs": {"crea": POISON}}]})
        client.post(json={"instances": [{}, {}]})
        assert client.metric('i2moe_samples_total{outcome="ok"}') == 2
        assert client.metric('i2moe_samples_total{outcome="invalid"}') == 3
        assert client.metric('i2moe_samples_total{outcome="error"}') == 1
        assert client.metric('i2moe_rejected_total{reason="INVALID_INPUT"}') == 1


def test_times_and_batches_are_observed(tiny_path: Path) -> None:
    """One request of three samples leaves one observation in each timing, and its size among the batches."""
    with serving(tiny_path) as client:
        client.predict({"instances": [tiny_example()] * 3})
        assert client.metric("i2moe_queue_seconds_count") == 1
        assert client.metric('i2moe_inference_seconds_count{provider="CPUExecutionProvider"}') == 1
        assert client.metric("i2moe_preprocess_seconds_count") == 1
        assert client.metric("i2moe_postprocess_seconds_count") == 1
        assert client.metric("i2moe_batch_size_sum") == 3
        assert client.metric("i2moe_queue_depth") == 0
        assert client.metric('i2moe_request_duration_seconds_count{route="/predict",status="200"}') == 1
        assert 'i2moe_request_duration_seconds_bucket{le="0.0005",' in client.get("/metrics").text


def test_drift_is_observed(tiny_path: Path) -> None:
    """Risks, expert weights and absent modalities are counted per sample."""
    with serving(tiny_path) as client:
        client.predict({"instances": [tiny_example(), {"labs": {"crea": 1}}]})  # risks 0.51 and 0.22
        assert client.metric('i2moe_risk_bucket{le="0.2"}') == 0
        assert client.metric('i2moe_risk_bucket{le="0.3"}') == 1
        assert client.metric("i2moe_risk_count") == 2
        assert client.metric('i2moe_expert_weight_sum{expert="synergy"}') == pytest.approx(0.4)
        assert client.metric('i2moe_missing_modality_total{modality="history"}') == 1
        assert client.metric('i2moe_missing_modality_total{modality="labs"}') == 0


def test_a_batch_of_observations_is_as_many_observations() -> None:
    """Sum, count and every bucket are those of one call per value, limits included."""
    values = [0.0, 0.1, 0.1000001, 0.55, 1.0, 7.0]
    together, apart = (BatchHistogram("h", "h", buckets=(0.1, 0.5, 1.0), registry=CollectorRegistry()) for _ in range(2))
    together.observe_many(values)
    for value in values:
        apart.observe(value)
    assert told(together) == told(apart)
    assert told(together)["h_bucket", "0.1"] == 2
    together.observe_many([])
    assert told(together) == told(apart)


def told(histogram: Histogram) -> dict[tuple[str, str], float]:
    """Every sample by name and bucket, but not when the histogram was made."""
    (metric,) = histogram.collect()
    return {(s.name, s.labels.get("le", "")): s.value for s in metric.samples if not s.name.endswith("_created")}


def test_raised_flags_are_counted(tmp_path: Path) -> None:
    """Abstentions and disagreements are counted per sample, from 0 on; a bundle that does not say how sure it is raises none."""
    sure, divided = {"labs": {"crea": 10.0}}, {"labs": {"crea": 4.0, "sod": 140.0}, "history": {"age": 40.0, "sex": "female"}}
    with serving(write_tiny_bundle(tmp_path / "tiny", uncertainty=TINY_UNCERTAINTY).path) as client:
        assert client.metric('i2moe_flagged_total{flag="abstain"}') == 0
        answers = client.predict({"instances": [sure, divided, divided]})["predictions"]
        flags = [(answer["uncertainty"]["abstain"], answer["uncertainty"]["experts_disagree"]) for answer in answers]
        assert flags == [(False, False), (True, True), (True, True)]
        assert client.metric('i2moe_flagged_total{flag="abstain"}') == 2
        assert client.metric('i2moe_flagged_total{flag="experts_disagree"}') == 2


def test_the_served_model_is_named(client: Client) -> None:
    """One gauge names the model by name, version, hash and provider; another says that it is ready."""
    info = client.runtime.require_model().info
    series = f'name="{info["name"]}",provider="{info["provider"]}",sha256="{info["sha256"]}",version="{info["version"]}"'
    assert client.metric(f"i2moe_model_info{{{series}}}") == 1
    assert client.metric("i2moe_ready") == 1


def test_paths_that_nobody_serves_share_one_label(client: Client) -> None:
    """A port scan does not grow the metrics."""
    for i in range(20):
        client.get(f"/scan/{i}")
    text = client.get("/metrics").text
    assert "/scan" not in text
    assert client.metric(f'i2moe_request_duration_seconds_count{{route="{OTHER_ROUTE}",status="404"}}') >= 20


def test_every_route_has_its_label(client: Client) -> None:
    """Routes that are added get a label of their own, or this test fails."""
    labels = {route_label(route.path) for route in client.app.routes}  # type: ignore[attr-defined]
    assert labels <= ROUTES | {PROTOCOL_ROUTE, INFER_ROUTE, STATIC_ROUTE, PREDICTIONS_ROUTE, *CDS_ROUTES}
    assert route_label("/predict") == "/predict"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/cds-services", "/cds-services"),
        ("/cds-services/a-patient-view", "/cds-services/{id}"),
        ("/cds-services/a/feedback", "/cds-services/{id}/feedback"),
        ("/cds-services/a/b", OTHER_ROUTE),
        ("/cds-services/a/feedback/c", OTHER_ROUTE),
        ("/cds-servicesx", OTHER_ROUTE),
        ("/fhir/RiskAssessment/$evaluate", "/fhir/RiskAssessment/$evaluate"),
        ("/fhir/x", OTHER_ROUTE),
    ],
)
def test_paths_of_cds_hooks_are_labelled_by_their_form(path: str, label: str) -> None:
    """The name of a service makes no series of its own."""
    assert route_label(path) == label


def test_two_applications_do_not_share_metrics() -> None:
    """Each has its own registry."""
    first, second = Metrics(), Metrics()
    first.samples.labels("ok").inc()
    assert b'i2moe_samples_total{outcome="ok"} 0.0' in second.render()


WORKER = """
import sys
from service.api.metric_files import forget_this_process
from service.api.metrics import Metrics
metrics = Metrics()
metrics.samples.labels("ok").inc(2)
metrics.ready.set(1)
metrics.queue_depth.set(5)
metrics.model_info.labels(name="tiny", version="1", sha256="0", provider="CPU").set(1)
if "leaves" in sys.argv:
    forget_this_process()
"""
SCRAPE = "from service.api.metrics import Metrics; m = Metrics(); m.ready.set(1); print(m.render().decode())"


def play_workers(folder: Path, *workers: str) -> str:
    """Run serving processes that end one after another, then scrape from another one; answers the exposition text."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    for worker in workers:
        subprocess.run([sys.executable, "-c", WORKER, worker], env=environment, check=True)
    scrape = subprocess.run([sys.executable, "-c", SCRAPE], env=environment, check=True, capture_output=True, text=True)
    return scrape.stdout


def test_several_processes_add_up(tmp_path: Path) -> None:
    """With PROMETHEUS_MULTIPROC_DIR counters of all processes are added, and no series carries a process id.

    Gauges of processes that left, or were killed, are gone.
    """
    text = play_workers(tmp_path, "leaves", "is killed")
    assert 'i2moe_samples_total{outcome="ok"} 4.0' in text
    assert "i2moe_ready 1.0" in text
    assert "i2moe_queue_depth 0.0" in text
    assert "pid=" not in text
    assert "i2moe_model_info{" not in text


def test_workers_that_begin_together_forget_the_same_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds that another has been quicker goes on."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"gauge_livesum_{ended.pid}.db"
    left.touch()

    def too_late(pid: int, folder: str) -> None:
        assert (pid, folder) == (ended.pid, str(tmp_path))
        left.unlink()
        raise FileNotFoundError(left)

    monkeypatch.setattr(metric_files, "mark_process_dead", too_late)
    monkeypatch.setenv(metric_files.MULTIPROCESS_DIR, str(tmp_path))
    metric_files.begin_files(["counter"])
    assert [file.name for file in tmp_path.iterdir()] == [f"counter_{os.getpid()}.db"]


EVERY_SERIES = """
from service.api.metrics import *
from service.api.route_labels import *
from tests.tiny_bundle import tiny_manifest
metrics = Metrics()
for version in map(str, range(20)):
    metrics.begin(tiny_manifest({}), {})
    metrics.model_info.labels(name="tiny" * 9, version=version, sha256="0" * 64, provider="CUDAExecutionProvider").set(1)
for route in {*ROUTES, STATIC_ROUTE, PREDICTIONS_ROUTE, PROTOCOL_ROUTE, INFER_ROUTE, *CDS_ROUTES, OTHER_ROUTE}:
    for status in (200, 400, 401, 403, 404, 405, 413, 415, 422, 429, 499, 500, 503, 504):
        metrics.request_duration.labels(route, str(status)).observe(1)
for number in range(50):
    metrics.rejected.labels(f"SOME_LONG_REASON_{number}").inc()
    metrics.missing_modality.labels(f"modality_{number}").inc()
"""


def test_files_have_their_blocks_before_they_are_written(tmp_path: Path) -> None:
    """Or a full disk would end the process: no file has holes, and none grows even when every route answers everything."""
    program = f"{EVERY_SERIES}\nimport sys; sys.stdout.write(metrics.render().decode())"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    text = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True).stdout
    files = {file.stem.rpartition("_")[0]: file.stat() for file in tmp_path.iterdir()}
    assert set(files) == {"counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin", "gauge_livemostrecent"}
    assert {kind: status.st_size for kind, status in files.items()} == {
        k: 1 << 20 if k == "histogram" else 1 << 17 for k in files
    }
    assert all(status.st_blocks * 512 >= status.st_size for status in files.values())
    assert text.count("i2moe_request_duration_seconds_count{") == 14 * 21


COUNTING = """
import os
from service.api.metrics import Metrics
asked, system = [], os.getpid
metrics = Metrics()
os.getpid = lambda: asked.append(1) or system()
metrics.samples.labels("ok").inc()
metrics.samples.labels("ok").inc()
metrics.queue.observe(0.1)
print(len(asked))
if child := os.fork():
    os.waitpid(child, 0)
    print(metrics.render().decode())
else:
    metrics.samples.labels("ok").inc(5)
    os._exit(0)
"""


def test_counting_does_not_ask_the_system_for_the_process(tmp_path: Path) -> None:
    """Each number that is counted would be a call of the system; a process that forks off counts in files of its own."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COUNTING], env=environment, check=True, capture_output=True, text=True)
    num_asked, _, text = done.stdout.partition("\n")
    assert num_asked == "0"
    assert 'i2moe_samples_total{outcome="ok"} 7.0' in text
    assert len(list(tmp_path.glob("counter_*.db"))) == 2


def test_the_reference_is_told_in_the_bins_of_what_is_served(tmp_path: Path) -> None:
    """Shares of held-out rows by tenth, for risk and for every expert: drift is then a matter of a query."""
    counts = [0.0] * 20
    counts[0], counts[1], counts[19] = 5.0, 1.0, 2.0
    histogram = {"edges": [i / 20 for i in range(21)], "counts": counts}
    empty = {"edges": histogram["edges"], "counts": [0.0] * 20}
    reference = {"prediction": {"alive": empty, "dead": histogram}, "expert_weights": {"synergy": histogram, "redundancy": empty}}
    metrics = Metrics()
    metrics.begin(tiny_manifest({}), reference)
    text = metrics.render().decode()
    for of in ("risk", "synergy"):
        assert f'i2moe_reference_share{{bin="0.1",of="{of}"}} 0.75' in text
        assert f'i2moe_reference_share{{bin="0.5",of="{of}"}} 0.0' in text
        assert f'i2moe_reference_share{{bin="1.0",of="{of}"}} 0.25' in text
    assert 'i2moe_reference_share{bin="0.3",of="redundancy"} 0.1' in text
    assert "alive" not in text


def test_a_model_is_never_compared_with_the_rows_of_the_one_before() -> None:
    """Of an imported model no held-out rows are known: what was told of the one before it is no number any more."""
    metrics = Metrics()
    metrics.begin(tiny_manifest({}), tiny_reference())
    assert 'i2moe_reference_share{bin="0.1",of="risk"} NaN' not in metrics.render().decode()
    for reference, is_known in (({}, False), (tiny_reference(), True)):
        metrics.begin(tiny_manifest({}), reference)
        lines = [line for line in metrics.render().decode().splitlines() if line.startswith("i2moe_reference_share{")]
        assert {not line.endswith(" NaN") for line in lines} == {is_known}


def test_a_service_tells_its_reference_and_its_limits(tiny_path: Path) -> None:
    """Each distribution adds up to 1; the queue's limit and the GPUs are there to compare with."""
    with serving(tiny_path, queue_max=300) as client:
        shares = [client.metric(f'i2moe_reference_share{{bin="{i / 10}",of="risk"}}') for i in range(1, 11)]
        assert sum(shares) == pytest.approx(1)
        assert client.metric("i2moe_queue_limit") == 300
        assert "i2moe_gpus " in client.get("/metrics").text


def test_every_series_is_there_before_its_first_event(tiny_path: Path) -> None:
    """Prometheus sees no rise in a series that appears with its first event."""
    with serving(tiny_path) as client:
        text = client.get("/metrics").text
    for series in (
        'i2moe_missing_modality_total{modality="labs"} 0.0',
        'i2moe_expert_weight_count{expert="redundancy"} 0.0',
        'i2moe_rejected_total{reason="OVERLOADED"} 0.0',
        'i2moe_request_duration_seconds_count{route="/predict",status="500"} 0.0',
        'i2moe_samples_total{outcome="error"} 0.0',
    ):
        assert series in text
