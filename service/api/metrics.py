"""What operations see: Prometheus metrics with few labels, none of which ever holds a patient's value.

A scrape adds up the numbers of all serving processes, from the files of `service.api.metric_files`.
"""

import math
import os
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.api.errors import DeadlineError, OverloadedError
from service.api.metric_files import MULTIPROCESS_DIR, begin_files
from service.api.route_labels import SCORING_ROUTES
from service.audit.figures import Figures
from service.bundle.answers import Explained
from service.bundle.comparison import Differences
from service.bundle.manifest import Manifest

_GAUGE_MODES = ("livesum", "livemax", "livemin", "livemostrecent")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TENTHS = tuple(i / 10 for i in range(1, 11))
_DIFFERENCES = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, -0.001, 0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_DISTANCES = (0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_SAMPLES = tuple(float(2**i) for i in range(11))

RISK = "risk"  # in reference_share; the others are experts
_OUTCOMES = {  # of predictions with outcomes, by the model's version
    "count": "Predictions whose outcome is known",
    "events": "Events among them: what the stated probability is of came true",
    "auroc": "AUROC of predictions whose outcome is known",
    "auroc_error": "Standard error of that AUROC",
    "brier": "Brier score of predictions whose outcome is known",
    "calibration": "Observed share of events less the mean stated risk, of predictions whose outcome is known",
}
_INFO = ("name", "version", "sha256", "provider")  # of a model
FLAGS = ("abstain", "experts_disagree")  # of a prediction's uncertainty


class BatchHistogram(Histogram):
    """A histogram that takes the observations of a batch at once: a call per sample cost more than all their arithmetic."""

    def observe_many(self, values: Sequence[float]) -> None:
        """As many times `observe`, which this does with the parts that prometheus_client keeps for it."""
        self._sum.inc(sum(values))
        for position, count in Counts(bisect_left(self._upper_bounds, value) for value in values).items():
            self._buckets[position].inc(count)


class Metrics:
    """The metrics of one serving process. Its own registry, so that several can live side by side."""

    def __init__(self) -> None:
        """Create every metric; with several processes also forget those that died without saying so."""
        self._registry = CollectorRegistry()
        begin_files(("histogram", "counter", *(f"gauge_{mode}" for mode in _GAUGE_MODES)))
        histogram, counter, gauge = self._histogram, self._counter, self._gauge
        self.request_duration = histogram(
            "request_duration_seconds", "From the first byte of a request to the end of its answer", ["route", "status"]
        )
        self.queue = histogram("queue_seconds", "Time a request waited for its first batch")
        self.inference = histogram("inference_seconds", "Time one batch spent in the graph", ["provider"])
        self.attribution = histogram(
            "attribution_seconds", "Time one batch spent being attributed to features, after its prediction", ["provider"]
        )
        self.preprocess = histogram("preprocess_seconds", "Time from a request's body to encoded samples")
        self.postprocess = histogram("postprocess_seconds", "Time from the graph's outputs to explained predictions")
        self.batch_size = histogram("batch_size", "Samples per batch", buckets=_SAMPLES)
        self.samples = counter("samples_total", "Samples by outcome: ok, invalid, error", ["outcome"])
        self.rejected = counter("rejected_total", "Requests not answered, by error code", ["reason"])
        self.missing_modality = counter("missing_modality_total", "Scored samples without a modality", ["modality"])
        self.reloads = counter("reloads_total", "Changes of the served bundle: done, failed", ["outcome"])
        self.audit = counter("audit_total", "Predictions to be kept, by what became of them: kept, lost", ["outcome"])
        self.flagged = counter("flagged_total", "Scored samples by flag: abstain, experts_disagree", ["flag"])
        self.cards = counter("cds_cards_total", "Answers to CDS Hooks by the card's indicator, none: no card", ["indicator"])
        self.feedback = counter(
            "cds_feedback_total", "Feedback on cards by outcome and by this service's own override reasons", ["outcome", "reason"]
        )
        self.expert_weight = histogram("expert_weight", "Weight of an expert per sample", ["expert"], buckets=_TENTHS)
        self.risk = histogram("risk", "Stated probability per sample (binary tasks: the risk)", buckets=_TENTHS)
        self.queue_depth = gauge("queue_depth", "Samples that wait", mode="livesum")
        self.queue_limit = gauge("queue_limit", "Samples that may wait", mode="livesum")
        self.gpus = gauge("gpus", "GPUs that the driver sees, used or not", mode="livemax")
        self.reference_share = gauge(
            "reference_share",
            "Share of held-out rows by bin, named by its upper limit",
            ["of", "bin"],
            mode="livemax",
        )
        self._referred: set[str] = set()  # what reference_share was ever told of
        self.outcomes = {
            name: gauge(f"outcome_{name}", text, ["version"], mode="livemostrecent") for name, text in _OUTCOMES.items()
        }
        self.reference_auroc = gauge(
            "reference_auroc", "AUROC on the bundle's test rows, with its interval", ["version", "bound"], mode="livemax"
        )
        self.ready = gauge("ready", "1 when every serving process can answer", mode="livemin")
        self.model_info = gauge("model_info", "The model that is served", _INFO, mode="livemax")
        self.shadow = ShadowMetrics(self)
        for outcome in ("ok", "invalid", "error"):
            self.samples.labels(outcome)
        for outcome in ("done", "failed"):
            self.reloads.labels(outcome)
        for outcome in ("kept", "lost"):
            self.audit.labels(outcome)
        for flag in FLAGS:
            self.flagged.labels(flag)
        for error in (OverloadedError, DeadlineError):  # what alerts look for
            self.rejected.labels(error.code)
        for route in SCORING_ROUTES:
            for status in (200, 500, 503, 504):
                self.request_duration.labels(route, str(status))

    def _histogram(self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = _SECONDS) -> BatchHistogram:
        return BatchHistogram(f"i2moe_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"i2moe_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = (), *, mode: Any) -> Gauge:
        return Gauge(f"i2moe_{name}", text, labels, multiprocess_mode=mode, registry=self._registry)

    def observe_answers(self, explained: Explained) -> None:
        """Count a batch that was scored: risks, weights and raised flags, for drift. May be called from any thread."""
        manifest = explained.manifest
        self.samples.labels("ok").inc(len(explained.stated))
        if manifest.task.kind != "regression":
            self.risk.observe_many(explained.stated.tolist())
        for expert, weights in zip(manifest.experts, explained.weight.T.tolist(), strict=True):
            self.expert_weight.labels(expert.name).observe_many(weights)
        for flag in FLAGS if explained.uncertainty is not None else ():
            raised = getattr(explained.uncertainty, flag)  # None where a single expert has nobody to disagree with
            if raised is not None and (count := int(raised.sum())):
                self.flagged.labels(flag).inc(count)

    def count_missing(self, modalities: Iterable[str]) -> None:
        """Count a modality each time it is named: a scored sample was sent without it."""
        for name in modalities:
            self.missing_modality.labels(name).inc()

    def begin(self, manifest: Manifest, reference: Mapping[str, Any]) -> None:
        """Make every series of a model, at nought: Prometheus sees no rise in one that appears with its first event.

        Tells, too, how risk and expert weights were distributed over held-out rows, in the bins of their histograms.
        """
        for modality in manifest.features.names:
            self.missing_modality.labels(modality)
        for expert in manifest.experts:
            self.expert_weight.labels(expert.name)
        self._begin_reference_auroc(manifest)
        told = dict(reference.get("expert_weights", {}))  # nothing is known of the rows of an imported checkpoint
        label = manifest.task.labels[-1]
        if manifest.task.kind == "binary" and (risk := reference.get("prediction", {}).get(label)) is not None:
            told[RISK] = risk
        for name in self._referred - told.keys():  # by the model before, whose rows tell nothing of this one
            self._set_reference(name, [math.nan] * len(_TENTHS))
        for name, histogram in told.items():
            self._set_reference(name, _shares(histogram))
        self._referred |= told.keys()

    def _set_reference(self, name: str, shares: Sequence[float]) -> None:
        for limit, share in zip(_TENTHS, shares, strict=True):
            self.reference_share.labels(name, str(limit)).set(share)

    def _begin_reference_auroc(self, manifest: Manifest) -> None:
        found = manifest.metrics.get("test", {}).get("auroc")
        for bound in ("low", "value", "high") if found is not None and manifest.task.kind == "binary" else ():
            if (value := getattr(found, bound)) is not None:
                self.reference_auroc.labels(manifest.version, bound).set(value)

    def set_outcomes(self, version: str, found: Figures) -> None:
        """Tell what the predictions of one version of the model were worth; figures that are not defined are NaN."""
        for name, series in self.outcomes.items():
            series.labels(version).set(getattr(found, name))

    def render(self) -> bytes:
        """The exposition text, over all serving processes. Reads files: not for the event loop."""
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class ShadowMetrics:
    """What is seen of a second model that scores what is served; without one, its series stay at nought."""

    def __init__(self, metrics: Metrics) -> None:
        """Create them beside the others."""
        self.samples = metrics._counter(
            "shadow_samples_total", "Answered samples meant for the shadow: compared, skipped, invalid, error", ["outcome"]
        )
        self.risk = metrics._histogram(
            "shadow_risk_difference",
            "The shadow's risk less the served one; of several labels, the served label's",
            buckets=_DIFFERENCES,
        )
        self.label_changes = metrics._counter("shadow_label_changes_total", "Compared samples that the shadow labels otherwise")
        self.weight = metrics._histogram(
            "shadow_expert_weight_difference",
            "How far the shadow's weight of an expert is from the served one",
            ["expert"],
            buckets=_DISTANCES,
        )
        self.problem = metrics._gauge("shadow_problem", "1 when the shadow bundle that is there is not compared", mode="livemax")
        self.info = metrics._gauge("shadow_info", "The model that is compared with the served one", _INFO, mode="livemax")
        for outcome in ("compared", "skipped", "invalid", "error"):
            self.samples.labels(outcome)

    def observe(self, found: Differences) -> None:
        """Count samples that were compared."""
        self.risk.observe_many(found.risk)
        self.label_changes.inc(found.num_label_changes)
        for expert, distances in found.weight.items():
            self.weight.labels(expert).observe_many(distances)


def _shares(histogram: Mapping[str, Sequence[float]]) -> list[float]:
    """Of a histogram over [0, 1] of some tens of bins the share in each tenth; without rows, equal shares."""
    counts, per_tenth = histogram["counts"], len(histogram["counts"]) // len(_TENTHS)
    tenths = [sum(counts[i * per_tenth : (i + 1) * per_tenth]) for i in range(len(_TENTHS))]
    return [count / total for count in tenths] if (total := sum(tenths)) else [1 / len(_TENTHS)] * len(_TENTHS)
