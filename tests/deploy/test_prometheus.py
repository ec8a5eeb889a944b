"""What operations get: rules that Prometheus accepts and that fire, dashboards that show something, a page for every alert."""

import json
import re
import subprocess
import time
from typing import Any

import pytest

from service.api.metrics import Metrics
from tests.deploy.prometheus import RULES, Prometheus, program, running_prometheus
from tests.deploy.proxy import CONFIGURATION
from tests.serving import ROOT, Server, running_server
from tests.tiny_bundle import TINY_UNCERTAINTY, tiny_example, write_tiny_bundle

DASHBOARD = ROOT / "deploy" / "grafana" / "i2moe.json"
RUNBOOK = ROOT / "docs" / "operations.md"
OUR_METRIC = re.compile(r"\b(i2moe_[a-z0-9_]+)\b")


def promtool(*arguments: str) -> str:
    """What promtool says; fails with it."""
    done = subprocess.run([program("promtool"), *arguments], cwd=RULES, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_good() -> None:
    """As Prometheus's own checker sees them."""
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


@pytest.mark.slow
def test_every_alert_fires_on_what_it_is_for_and_on_nothing_else() -> None:
    """The rules' own unit tests; every alert has one."""
    promtool("test", "rules", "alerts_test.yml")
    tested = set(re.findall(r"alertname: (\w+)", (RULES / "alerts_test.yml").read_text()))
    assert tested == set(alerts())


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())


def test_crowding_is_told_before_and_while_the_proxy_refuses() -> None:
    """More in hand than half of what it lets through, and less than are there when it refuses (measured: seven eighths)."""
    (let_through,) = re.findall(r"limit_conn scoring (\d+);", CONFIGURATION.read_text())
    (bound,) = re.findall(r"expr: i2moe:scoring_in_flight:mean2m > (\d+)", (RULES / "alerts.yml").read_text())
    assert int(let_through) / 2 < int(bound) < 3 * int(let_through) / 4
    assert f"beyond {let_through}" in (RULES / "alerts.yml").read_text()


def test_every_alert_has_a_page() -> None:
    """The runbook's headings are the alerts, and their links lead there."""
    headings = re.findall(r"(?m)^### (\w+)$", RUNBOOK.read_text())
    assert headings == alerts()
    links = re.findall(r"runbook: docs/operations.md#(\w+)", (RULES / "alerts.yml").read_text())
    assert links == [name.lower() for name in alerts()]


def panels() -> list[tuple[str, str]]:
    """(title, query) of every panel, for the job of the tests."""
    document = json.loads(DASHBOARD.read_text())
    return [(p["title"], t["expr"].replace("$job", "i2moe")) for p in document["panels"] for t in p.get("targets", ())]


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    """A renamed metric would leave a panel empty and an alert silent."""
    text = "".join(path.read_text() for path in (RULES / "recording.yml", RULES / "alerts.yml"))
    asked = set(OUR_METRIC.findall(text)) | {name for _, query in panels() for name in OUR_METRIC.findall(query)}
    groups = set(re.findall(r"(?m)^  - name: (\w+)$", text))
    described = set(re.findall(r"# TYPE (\w+) ", Metrics().render().decode()))
    known = described | {f"{name}_{part}" for name in described for part in ("bucket", "sum", "count")}
    assert asked - groups <= known


def test_every_metric_is_documented() -> None:
    """Names are an interface: what is scraped stands in the table, and nothing else does."""
    described = set(re.findall(r"# TYPE (i2moe_\w+) ", Metrics().render().decode()))
    listed = set(re.findall(r"(?m)^\| `(i2moe_\w+)`", RUNBOOK.read_text()))
    assert listed == {name for name in described if not name.endswith("_created")}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Prometheus that has scraped a busy service a few times."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    bundle = write_tiny_bundle(folder / "bundle", uncertainty=TINY_UNCERTAINTY).path
    environment = {
        "I2MOE_AUDIT_URL": f"sqlite:///{folder / 'kept.db'}",
        "I2MOE_AUDIT_REQUIRED": "false",  # a slow disk would raise an alert
        "I2MOE_OUTCOMES_EVERY_S": "0.5",
        "I2MOE_SHADOW_BUNDLE": str(bundle),
    }
    with (
        running_server(bundle, folder / "server", environment=environment) as server,
        running_prometheus(server, folder) as it,
    ):
        # An increase counts from the first scrape on: what happened before it is in no figure.
        it.wait_for('i2moe_missing_modality_total{modality="history"} == 0')
        be_busy(server)
        tell_outcomes(server)
        it.wait_for('i2moe_request_duration_seconds_count{route="/predict",status="422"} == 5')
        be_busy(server)  # requests by route and status are series that appear with the first of them
        it.wait_for('i2moe:scored_samples:increase1d > 0 and on (job) i2moe:population_stability_index:1d{of="risk"}')
        it.wait_for("i2moe:scoring_latency_seconds:p99_5m > 0")
        yield it


def tell_outcomes(server: Server) -> None:
    """Half of two patients die."""
    answer = server.post("/predict", {"instances": [tiny_example(), {"labs": {"crea": 1.0}}]}).json()
    told = [{"request_id": answer["request_id"], "position": i, "label": label} for i, label in enumerate(("dead", "alive"))]
    for _ in range(100):  # until the predictions are kept
        if server.post("/outcomes", {"outcomes": told}).json().get("accepted") == 2:
            return
        time.sleep(0.05)
    raise AssertionError("the predictions were never kept")


def be_busy(server: Server) -> None:
    """Every outcome that a panel shows."""
    for _ in range(5):
        assert server.post("/predict", {"instances": [tiny_example()] * 4}).status_code == 200
        assert server.post("/predict", {"labs": {"crea": 4.0}}).status_code == 200
        assert server.post("/predict", {"labs": {"nothing": 1}}).status_code == 422


@pytest.mark.slow
@pytest.mark.parametrize(("title", "query"), panels())
def test_a_dashboard_panel_shows_something(scraped: Prometheus, title: str, query: str) -> None:
    """Asked of a real Prometheus that scrapes a real service."""
    assert scraped.wait_for(query), title


@pytest.mark.slow
def test_what_prometheus_sees_is_what_happened(scraped: Prometheus) -> None:
    """Counts come through the service's several files as they were, and drift is measured against the bundle."""
    assert scraped.wait_for('sum(i2moe_samples_total{outcome="ok"}) == 52')
    (shares,) = scraped.query('sum(i2moe:served_share:1d{of="risk"})')
    assert float(shares["value"][1]) == pytest.approx(1)
    # 11 of the 52 have no history; the rule is computed a moment after the last of them was scraped.
    assert scraped.wait_for('abs(i2moe:missing_modality:ratio1d{modality="history"} - 11 / 52) < 0.001')
    assert {found["metric"]["of"] for found in scraped.query("i2moe:population_stability_index:1d")} >= {"risk", "synergy"}


@pytest.mark.slow
def test_a_healthy_service_raises_no_alert(scraped: Prometheus) -> None:
    """Nothing fires. On a loaded machine something may be pending: a slow answer is one for ten minutes before it is an alert."""
    assert scraped.query('ALERTS{alertstate="firing"}') == []
