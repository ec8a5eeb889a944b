from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.comparison import Comparison, IncomparableError, Told
from service.bundle.explanation import DIGITS
from service.bundle.manifest import CalibrationInfo, ExpertInfo, Manifest, TaskInfo
from service.bundle.schema import FeatureSchema, NumericFeature
from tests.tiny_bundle import EXPERTS, tiny_manifest, tiny_schema

TINY = tiny_manifest({})


def changed(**changes: Any) -> Manifest:
    """The tiny manifest but for this."""
    return TINY.model_copy(update=changes)


def of_task(kind: str, labels: tuple[str, ...], **more: Any) -> Manifest:
    task = TaskInfo.model_validate({"kind": kind, "labels": labels, "outcome": "an outcome", **more})
    identity = CalibrationInfo(method="identity", scale=(1.0,) * len(labels), bias=(0.0,) * len(labels), num_rows=1)
    return changed(task=task, calibration=identity)


def features(**changes: Any) -> FeatureSchema:
    """The tiny schema with another creatinine."""
    labs, history = tiny_schema().modalities
    crea = NumericFeature.model_validate(labs.features[0].model_dump() | changes)
    return FeatureSchema(modalities=(labs.model_copy(update={"features": (crea, labs.features[1])}), history))


def told(prediction: Any, weight: Any = None) -> Told:
    rows = np.array(prediction, np.float32)
    return Told(rows, np.full((len(rows), 4), 0.25, np.float32) if weight is None else np.array(weight, np.float32))


def risks(*values: float) -> Told:
    return told([(1 - value, value) for value in values])


def test_differences_of_risks_are_signed_and_labels_go_by_each_models_threshold() -> None:
    """Other less served; the other's threshold of 0.3 makes one event of two risks below one half."""
    other = changed(task=TINY.task.model_copy(update={"threshold": 0.3}))
    found = Comparison.of(TINY, other).differences(risks(0.2, 0.25, 0.7), risks(0.35, 0.05, 0.6))
    assert found.risk == [0.15, -0.2, -0.1]
    assert (found.num_records, found.num_label_changes) == (3, 1)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8), st.floats(-2e-7, 2e-7))
def test_the_last_bits_of_an_answer_are_no_difference(values: list[float], noise: float) -> None:
    """They depend on what else was computed with it; nought is nought, and never a negative one."""
    again = risks(*values)
    noisy = Told((again.prediction.astype(np.float64) + noise).astype(np.float32), again.weight)
    found = Comparison.of(TINY, TINY).differences(again, noisy)
    assert [str(value) for value in found.risk] == ["0.0"] * len(values)
    assert Comparison.of(TINY, TINY).differences(again, again).num_label_changes == 0


def test_weights_are_compared_by_name() -> None:
    """Of experts that both have, wherever they stand; the distance has no sign."""
    experts = (TINY.experts[2], ExpertInfo(name="unique:images", kind="synergy"), TINY.experts[0])
    served = told([(0.5, 0.5)], [(0.4, 0.3, 0.2, 0.1)])
    found = Comparison.of(TINY, changed(experts=experts)).differences(served, told([(0.5, 0.5)], [(0.7, 0.2, 0.1)]))
    assert found.weight == {"unique:labs": [0.3], "synergy": [0.5]}
    assert set(Comparison.of(TINY, TINY).experts) == set(EXPERTS)


def test_labels_in_another_order_are_found() -> None:
    """Several classes: the served label's probability is compared with the other model's of the same name."""
    served, other = of_task("multiclass", ("a", "b", "c")), of_task("multiclass", ("c", "a", "b"))
    comparison = Comparison.of(served, other)
    ours, theirs = told([(0.1, 0.7, 0.2), (0.6, 0.3, 0.1)]), told([(0.5, 0.1, 0.4), (0.1, 0.7, 0.2)])
    assert comparison.differences(ours, theirs).risk == [-0.3, 0.1]
    changes = [comparison.differences(ours.rows(row), theirs.rows(row)).num_label_changes for row in (slice(0, 1), slice(1, 2))]
    assert changes == [1, 0]  # b is c for the other, a is a


def test_a_number_has_neither_risk_nor_label() -> None:
    """Of regression the weights are compared alone."""
    manifest = of_task("regression", ("days",), training_mean=3.0)
    found = Comparison.of(manifest, manifest).differences(told([(3.0,)]), told([(9.0,)]))
    assert (found.risk, found.num_label_changes, found.num_records) == ([], 0, 1)
    assert found.weight["synergy"] == [0.0]


INCOMPARABLE = {
    "another kind": (of_task("multiclass", ("alive", "dead")), "expected a binary task"),
    "another event": (of_task("binary", ("dead", "alive")), "expected the served model's event 'dead', found 'alive'"),
    "another unit": (changed(features=features(unit="umol/L")), "expected labs.crea in mg/dL, found a model of umol/L"),
}


@pytest.mark.parametrize(("other", "why"), INCOMPARABLE.values(), ids=INCOMPARABLE)
def test_what_means_something_else_is_refused(other: Manifest, why: str) -> None:
    """With what was expected and what was found."""
    with pytest.raises(IncomparableError, match=why):
        Comparison.of(TINY, other)


def test_other_classes_are_named() -> None:
    """Those that only one of the models has."""
    served, other = of_task("multiclass", ("a", "b", "c")), of_task("multiclass", ("a", "b", "d"))
    with pytest.raises(IncomparableError, match="only one of the models has 'c', 'd'"):
        Comparison.of(served, other)


def test_the_absence_of_the_event_may_be_called_otherwise() -> None:
    """The event is what is compared."""
    comparison = Comparison.of(TINY, of_task("binary", ("survived", "dead")))
    assert comparison.differences(risks(0.2), risks(0.9)).risk == [0.7]


def test_arrays_are_shared_where_a_record_would_be_read_alike() -> None:
    """A retrained model's other ranges do not matter; whatever changes what is read does."""
    assert Comparison.of(TINY, changed(features=features(minimum=0.1, maximum=99.0))).reads_alike
    for other in (features(loinc=("2160-0",)), features(summary="mean"), features(unit=None), features(name="creatinine")):
        assert not Comparison.of(TINY, changed(features=other)).reads_alike
    strict = changed(features=tiny_schema(missing="reject"))
    assert not Comparison.of(TINY, strict).reads_alike
    assert Comparison.of(strict, TINY).reads_alike
    fewer = changed(features=FeatureSchema(modalities=tiny_schema().modalities[:1]))
    assert not Comparison.of(TINY, fewer).reads_alike
    assert not Comparison.of(fewer, TINY).reads_alike


def test_flat_vectors_are_shared_by_modality() -> None:
    """Where every column means the same; what a feature is called elsewhere does not move it."""
    labs, history = tiny_schema().modalities
    reordered = FeatureSchema(modalities=(labs.model_copy(update={"features": labs.features[::-1]}), history))
    assert Comparison.of(TINY, changed(features=reordered)).flat_alike == {"history"}
    assert Comparison.of(TINY, changed(features=features(loinc=("2160-0",)))).flat_alike == {"labs", "history"}


def test_differences_have_the_digits_of_answers() -> None:
    """What is told to clients is told to six decimals, and so is this."""
    (found,) = Comparison.of(TINY, TINY).differences(risks(1 / 3), risks(2 / 3)).risk
    assert found == round(1 / 3, DIGITS)
