import numpy as np
import pytest
import torch

from export.errors import ParityError
from export.verify import BATCH_SIZES, MISSING_RATES, Case, cases, draw_rows, hide, verify
from service.bundle.features import TextFeature
from service.bundle.manifest import TaskInfo
from service.bundle.output import Output
from service.bundle.schema import FeatureSchema, Modality
from tests.training import small_model
from training.inference import predict
from training.model.mixture import I2MoE

SCHEMA = small_model.schema()
REGRESSION = TaskInfo(kind="regression", labels=("days",), outcome="days in hospital", training_mean=50_000.0)


class TorchPredictor:
    """Answers as a graph would, from the model itself or from what `change` makes of its answers."""

    def __init__(self, model: I2MoE, change=None) -> None:  # type: ignore[no-untyped-def]
        self.model, self.change = model, change

    def run(self, arrays: dict[str, np.ndarray]) -> Output:
        output = predict(self.model, SCHEMA, arrays)
        parts = {name: getattr(output, name) for name in ("prediction", "logits", "expert_weights", "expert_logits")}
        return Output(**(self.change(parts) if self.change else parts))


def test_drawn_rows_are_rows_the_schema_allows() -> None:
    """Categories are positions, codes 0 or 1, numbers reach a little beyond their range; no cell is missing."""
    text = TextFeature(name="note", vocabulary=("a", "b"), idf=(1.0, 1.0))
    schema = FeatureSchema(modalities=(*SCHEMA.modalities, Modality(name="notes", features=(text,))))
    rows = draw_rows(schema, 500, np.random.default_rng(0))
    mixed = rows["mixed"]
    widths = {name: array.shape[1] for name, array in rows.items()}
    assert widths == {"mixed": 5, "labs": 3, "signal": 3, "notes": 2}
    assert all(len(array) == 500 for array in rows.values())
    assert set(mixed[:, 2]) == {0.0, 1.0, 2.0}
    assert set(mixed[:, 3:].ravel()) == {0.0, 1.0}
    assert -4.5 <= mixed[:, 0].min() < -3
    assert 3 < mixed[:, 0].max() <= 4.5
    assert not any(np.isnan(array).any() for array in rows.values())


def test_whole_features_are_hidden() -> None:
    """A missing feature loses all its columns, at about the rate; the rows themselves stay as they were."""
    generator = np.random.default_rng(0)
    rows = draw_rows(SCHEMA, 2000, generator)
    hidden = hide(rows, SCHEMA, 0.3, generator)
    assert not np.isnan(rows["signal"]).any()
    gone = np.isnan(hidden["signal"])
    assert (gone.all(axis=1) == gone.any(axis=1)).all()
    assert gone.mean() == pytest.approx(0.3, abs=0.04)


def test_cases_cover_sizes_gaps_and_lone_modalities() -> None:
    """Every batch size complete, with every share of gaps, without each modality and with each modality alone."""
    names = [case.name for case in cases(SCHEMA)]
    assert len(set(names)) == len(names) == len(BATCH_SIZES) * (1 + len(MISSING_RATES) + 2 * 3)
    found = {case.name: case for case in cases(SCHEMA)}
    assert found["batch 7, complete"].batch_size == 7
    assert np.isnan(found["batch 2, only labs present"].arrays["mixed"]).all()
    assert not np.isnan(found["batch 2, only labs present"].arrays["labs"]).any()
    assert not any("present" in case.name for case in cases(small_model.schema(missing="reject")))


def test_cases_are_the_same_every_time() -> None:
    """Verification is reproducible."""
    for first, second in zip(cases(SCHEMA), cases(SCHEMA), strict=True):
        assert isinstance(first, Case)
        assert all(np.array_equal(first.arrays[n], second.arrays[n], equal_nan=True) for n in SCHEMA.names)


def test_equal_answers_give_a_report() -> None:
    """The report has the tolerance, the largest difference and the number of cases."""
    model = small_model.model()
    parity = verify(TorchPredictor(model), model, SCHEMA)  # type: ignore[arg-type]
    assert (parity.max_abs_diff, parity.cases, parity.atol) == (0.0, 40, 1e-5)


def changed(name: str, value: float):  # type: ignore[no-untyped-def]
    return lambda parts: parts | {name: parts[name] + np.float32(value)}


@pytest.mark.parametrize(
    ("change", "told"),
    [(changed("prediction", 1e-3), "prediction differs by 0.001"),
     (changed("logits", np.nan), "logits differs by nan"),
     (changed("expert_weights", 1e-4), "expert_weights differs by 0.0001"),
     (lambda parts: parts | {"logits": parts["logits"][:, :1]}, r"logits has shape \(1, 1\), expected \(1, 2\)")],
)  # fmt: skip
def test_every_kind_of_difference_is_a_failure(change, told: str) -> None:  # type: ignore[no-untyped-def]
    """Values, NaN and shapes: told by case and output."""
    model = small_model.model()
    with pytest.raises(ParityError, match=f"batch 1, complete: {told}") as error:
        verify(TorchPredictor(model, change), model, SCHEMA)  # type: ignore[arg-type]
    assert len(error.value.failures) >= 40


def test_small_differences_pass_and_are_reported() -> None:
    """Rounding below the tolerance is no failure, and its size is in the report."""
    model = small_model.model()
    parity = verify(TorchPredictor(model, changed("prediction", 4e-6)), model, SCHEMA)  # type: ignore[arg-type]
    assert parity.max_abs_diff == pytest.approx(4e-6, rel=0.1)


def test_another_models_answers_fail() -> None:
    """A graph of other weights cannot pass."""
    model, other = small_model.model(), small_model.model(seed=1)
    with torch.no_grad():
        other.load_state_dict(model.state_dict())
        other.calibration.bias.add_(torch.tensor([0.01, -0.01]))
    with pytest.raises(ParityError):
        verify(TorchPredictor(other), model, SCHEMA)  # type: ignore[arg-type]


def test_large_numbers_are_compared_by_their_digits() -> None:
    """A regression in units of thousands: float32's own rounding passes, a difference in the fifth digit does not."""
    model = small_model.model(task=REGRESSION)
    assert model.units is not None
    model.units.fit(torch.tensor([20_000.0, 80_000.0]))
    last_bit = TorchPredictor(model, lambda parts: parts | {"logits": np.nextafter(parts["logits"], np.float32(np.inf))})
    assert verify(last_bit, model, SCHEMA).max_abs_diff < 1e-6  # type: ignore[arg-type]
    wrong = TorchPredictor(model, lambda parts: parts | {"prediction": parts["prediction"] * np.float32(1.0001)})
    with pytest.raises(ParityError, match="prediction differs by"):
        verify(wrong, model, SCHEMA)  # type: ignore[arg-type]
