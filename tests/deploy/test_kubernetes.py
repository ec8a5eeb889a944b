"""Manifests that a cluster takes, that keep the service's promises, and that agree with the rest of the project."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.rules import TARGET, prometheus_rule
from service.api.metrics import Metrics
from service.api.settings import Settings, unknown_variables
from tests.deploy.manifests import KUBERNETES, Manifest, config_map, environment, load_all, one, rendered
from tests.deploy.prometheus import RULES, program
from tests.deploy.proxy import CONFIGURATION, SCRIPT
from tests.serving import ROOT

OVERLAYS = ("base", "overlays/monitored", "overlays/gpu", "overlays/keda")
KSERVE = ROOT / "deploy" / "kserve" / "inferenceservice.yaml"
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "InferenceService"}  # no schema of Kubernetes's own
BENTOML_EXTRA_S = 5  # what service.api.service adds to I2MOE_TIMEOUT_S


def pod(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    found: dict[str, Any] = one(manifests, "Deployment")["spec"]["template"]["spec"]
    return found


def kserve_pod() -> dict[str, Any]:
    (document,) = load_all(KSERVE)
    found: dict[str, Any] = document["spec"]["predictor"]
    return found


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_fit_kubernetes_own_schemas(overlay: str, version: str) -> None:
    """Strictly: a misspelt field is refused, where a cluster would drop it."""
    validate = pytest.importorskip("kubernetes_validate")
    for manifest in rendered(overlay):
        if manifest["kind"] not in CUSTOM:
            validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_exists(overlay: str) -> None:
    """A misspelt I2MOE_* variable would be ignored, and a bad value leave every pod unready."""
    settings = environment(rendered(overlay))
    assert unknown_variables(settings) == []
    Settings.model_validate({name.removeprefix("I2MOE_").lower(): value for name, value in settings.items()})


def test_kserve_settings_exist() -> None:
    """The same for the predictor; the bundle is where KServe's storage initializer puts it."""
    (container,) = kserve_pod()["containers"]
    settings = {variable["name"]: variable["value"] for variable in container["env"]}
    assert unknown_variables(settings) == []
    assert settings["I2MOE_BUNDLE"] == "/mnt/models"
    assert container["name"] == "kserve-container"


@pytest.mark.parametrize("spec", [*OVERLAYS, "kserve"])
def test_pods_are_locked_down(spec: str) -> None:
    """The restricted pod security standard, and a read-only root with the one writable folder that BentoML needs."""
    found = kserve_pod() if spec == "kserve" else pod(rendered(spec))
    assert found["automountServiceAccountToken"] is False
    assert found["enableServiceLinks"] is False  # a Service called i2moe would set I2MOE_SERVICE_HOST, which is no setting
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (user,) = re.findall(r"(?m)^USER (\d+)$", (ROOT / "Dockerfile").read_text())
    assert found["securityContext"]["runAsUser"] == int(user)
    for container in [*found["containers"], *found.get("initContainers", ())]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
    running = [c for c in found.get("initContainers", ()) if c.get("restartPolicy") == "Always"]
    for container in [*found["containers"], *running]:
        assert [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")] == ["/tmp"]


@pytest.mark.parametrize("spec", [*OVERLAYS, "kserve"])
def test_accepted_requests_are_answered_when_a_pod_stops(spec: str) -> None:
    """The grace covers the wait for proxies, a request's whole time and BentoML's slack."""
    if spec == "kserve":
        found, timeout_s = kserve_pod(), Settings.model_fields["timeout_s"].default
    else:
        found, timeout_s = pod(rendered(spec)), float(environment(rendered(spec))["I2MOE_TIMEOUT_S"])
    sleep_s = found["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep_s >= 5
    assert found["terminationGracePeriodSeconds"] > sleep_s + timeout_s + BENTOML_EXTRA_S


def sidecar(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    """The proxy's container, which begins before the service and ends after it."""
    (found,) = [c for c in pod(manifests)["initContainers"] if c.get("restartPolicy") == "Always"]
    assert found["name"] == "proxy"
    return dict(found)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_proxy_is_the_shipped_one(overlay: str) -> None:
    """deploy/proxy's configuration and script, byte for byte; the certificate is a Secret, where that configuration looks."""
    manifests = rendered(overlay)
    files, proxy = config_map(manifests, "i2moe-proxy"), sidecar(manifests)
    assert files["data"] == {path.name: path.read_text() for path in (CONFIGURATION, SCRIPT)}
    sources = {volume["name"]: volume for volume in pod(manifests)["volumes"]}
    mounts = {mount["mountPath"]: sources[mount["name"]] for mount in proxy["volumeMounts"]}
    assert mounts["/etc/i2moe/proxy"]["configMap"]["name"] == files["metadata"]["name"]
    assert mounts["/etc/i2moe/tls"]["secret"]["secretName"] == "i2moe-tls"
    assert proxy["command"] == ["sh", f"/etc/i2moe/proxy/{SCRIPT.name}"]
    (compose,) = re.findall(r"I2MOE_PROXY_IMAGE:-([^}]+)}", (ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    assert proxy["image"] == compose


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clients_reach_the_proxy_and_prometheus_the_service(overlay: str) -> None:
    """Two ports, and each is open to those alone who should use it; probes ask there, too."""
    manifests = rendered(overlay)
    (https,), (http,) = sidecar(manifests)["ports"], pod(manifests)["containers"][0]["ports"]
    assert f"listen {https['containerPort']} ssl" in CONFIGURATION.read_text()
    assert f"server 127.0.0.1:{http['containerPort']};" in CONFIGURATION.read_text()
    targets = {port["name"]: port["targetPort"] for port in one(manifests, "Service")["spec"]["ports"]}
    assert targets == {"https": https["containerPort"], "metrics": http["containerPort"]}
    rules = one(manifests, "NetworkPolicy")["spec"]["ingress"]
    open_to = {str(*rule["from"][0]["namespaceSelector"]["matchLabels"]): [p["port"] for p in rule["ports"]] for rule in rules}
    assert open_to == {"i2moe.org/client": [targets["https"]], "kubernetes.io/metadata.name": [targets["metrics"]]}
    for probe in ("readinessProbe", "livenessProbe"):
        assert sidecar(manifests)[probe]["httpGet"]["port"] == targets["https"]
    assert f"location = {sidecar(manifests)['livenessProbe']['httpGet']['path']} " in CONFIGURATION.read_text()


def test_prometheus_asks_at_a_port_that_there_is() -> None:
    """The ServiceMonitor names the Service's port for it."""
    manifests = rendered("overlays/monitored")
    (endpoint,) = one(manifests, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == "metrics"
    assert endpoint["port"] in [port["name"] for port in one(manifests, "Service")["spec"]["ports"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_that_leaves_lets_go_of_connections_while_the_service_answers(overlay: str) -> None:
    """The sidecar's preStop ends within the service's; the grace covers its longest answer, too."""
    manifests = rendered(overlay)
    *_, drain = sidecar(manifests)["lifecycle"]["preStop"]["exec"]["command"]
    (after_s,) = re.findall(r"^sleep (\d+); nginx -c /etc/i2moe/proxy/nginx.conf .*-s reload$", drain)
    sleep_s = pod(manifests)["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 5 <= int(after_s) < sleep_s
    (longest,) = re.findall(r"proxy_read_timeout (\d+)s;", CONFIGURATION.read_text())
    assert pod(manifests)["terminationGracePeriodSeconds"] > int(after_s) + int(longest)


def waiting(settings: Settings) -> int:
    """Records that wait at most behind the proxy where each request brings one: those let through, less a batch in the graph."""
    (let_through,) = re.findall(r"limit_conn scoring (\d+);", CONFIGURATION.read_text())
    return int(let_through) - settings.max_batch_size


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_autoscalers_reach_their_target_behind_the_proxy(overlay: str) -> None:
    """What may wait there at most is well beyond it."""
    manifests = rendered(overlay)
    settings = Settings.model_validate(
        {name.removeprefix("I2MOE_").lower(): value for name, value in environment(manifests).items()}
    )
    if overlay.endswith("keda"):
        target = float(one(manifests, "ScaledObject")["spec"]["triggers"][0]["metadata"]["threshold"])
    else:
        metric, _ = one(manifests, "HorizontalPodAutoscaler")["spec"]["metrics"]
        target = int(metric["pods"]["target"]["averageValue"].removesuffix("m")) / 1000
    assert waiting(settings) / settings.queue_max > 1.5 * target


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cpu_is_the_services_own(overlay: str) -> None:
    """An autoscaler that took the proxy's with it would be moved by a storm of refusals."""
    manifests = rendered(overlay)
    if overlay.endswith("keda"):
        cpu = one(manifests, "ScaledObject")["spec"]["triggers"][1]["metadata"]["containerName"]
    else:
        cpu = one(manifests, "HorizontalPodAutoscaler")["spec"]["metrics"][1]["containerResource"]["container"]
    assert cpu == pod(manifests)["containers"][0]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_and_nothing_else(overlay: str) -> None:
    """Service, budget, policy, spreading and autoscaling are about the Deployment's pods."""
    manifests = rendered(overlay)
    labels = {"app.kubernetes.io/name": "i2moe"}
    assert one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"] == labels
    assert one(manifests, "Service")["spec"]["selector"] == labels
    assert one(manifests, "PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": labels}
    assert one(manifests, "NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": labels}
    assert {str(spread["labelSelector"]) for spread in pod(manifests)["topologySpreadConstraints"]} == {
        str({"matchLabels": labels})
    }
    scaler = one(manifests, "ScaledObject" if overlay.endswith("keda") else "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == one(manifests, "Deployment")["metadata"]["name"]
    assert {manifest["metadata"].get("namespace", "i2moe") for manifest in manifests} == {"i2moe"}


def test_the_gpu_overlay_asks_for_a_gpu_and_insists_on_it() -> None:
    """One GPU, the image that has CUDA, and no silent fall-back to the CPU."""
    manifests = rendered("overlays/gpu")
    (container,) = pod(manifests)["containers"]
    assert container["image"] == "i2moe-service:cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert environment(manifests) | {"I2MOE_REQUIRE_GPU": "true", "I2MOE_PROVIDER": "cuda"} == environment(manifests)


def test_the_operators_rules_are_prometheus_own() -> None:
    """The PrometheusRule is up to date with deploy/prometheus (`python -m deploy.kubernetes.rules`), group by group."""
    assert TARGET.read_text() == prometheus_rule()
    (manifest,) = load_all(TARGET)
    groups = [group for name in ("recording.yml", "alerts.yml") for group in yaml.safe_load((RULES / name).read_text())["groups"]]
    assert manifest["spec"]["groups"] == groups


def queries() -> list[str]:
    """What the two autoscalers ask of Prometheus."""
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter" / "values.yaml").read_text())["rules"]["custom"]
    asked = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="i2moe"')
    (scaler,) = load_all(KUBERNETES / "components" / "keda" / "scaledobject.yaml")
    return [asked, rule["seriesQuery"], scaler["spec"]["triggers"][0]["metadata"]["query"]]


@pytest.mark.parametrize("query", queries())
def test_autoscalers_ask_for_metrics_that_exist(query: str, tmp_path: Path) -> None:
    """In words that Prometheus understands."""
    described = set(re.findall(r"# TYPE (\w+) ", Metrics().render().decode()))
    asked = set(re.findall(r"\bi2moe_\w+", query))
    assert asked
    assert asked <= described
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "autoscaling", "rules": [{"record": "x", "expr": query}]}]}))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(rules)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_autoscaler_asks_for_what_the_adapter_makes() -> None:
    """By the same name."""
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter" / "values.yaml").read_text())["rules"]["custom"]
    (scaler,) = load_all(KUBERNETES / "base" / "horizontalpodautoscaler.yaml")
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
