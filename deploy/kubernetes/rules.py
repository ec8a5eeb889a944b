"""`python -m deploy.kubernetes.rules`: the rules of deploy/prometheus as the PrometheusRule of the Prometheus operator."""

from pathlib import Path

SOURCES = tuple(Path(__file__).parents[1] / "prometheus" / name for name in ("recording.yml", "alerts.yml"))
TARGET = Path(__file__).parent / "components" / "prometheus-operator" / "prometheusrule.yaml"
_HEAD = """\
# Made by `python -m deploy.kubernetes.rules` from deploy/prometheus/recording.yml and alerts.yml: change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: i2moe
  namespace: i2moe
spec:
  groups:
"""


def prometheus_rule() -> str:
    """The manifest. The files' groups are copied as they stand, two columns further in."""
    return _HEAD + "\n".join(_groups(path.read_text()) for path in SOURCES)


def _groups(text: str) -> str:
    _, found, groups = text.partition("\ngroups:\n")
    assert found, "rule files have a line `groups:`"
    return "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule())
