"""Does the graph answer like the model? Compared through the service's own predictor, and every failure is told.

Cases cover batch sizes and patterns of missing values and modalities. Rows are drawn from the feature schema, so no
patient's data are needed to export a checkpoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.errors import ParityError
from service.bundle.manifest import Parity
from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.predictor import Predictor
from service.bundle.schema import CategoricalFeature, CodesFeature, Feature, FeatureSchema, NumericFeature
from training.inference import predict
from training.model.mixture import I2MoE

# float32 sums in another order: both sides agree to about 1e-6, a real difference is larger than this. Of numbers above 1,
# such as a regression's in the target's own unit, it is a share: float32 holds seven digits, whatever the unit.
ATOL = 1e-5
# Of a graph of lower precision; a logit 0.1 off moves a probability by 0.025 at most. float16 keeps ten bits of a number.
PRECISION_ATOL = {"fp16": 0.01, "int8": 0.1}
BATCH_SIZES = (1, 2, 7, 64)
_ALWAYS, _MAX_CELLS = 7, 1 << 24  # larger batches of volumes would fill the memory and prove nothing more
MISSING_RATES = (0.1, 0.5, 0.9)
_BEYOND = 0.25  # how far numbers reach beyond the range seen in training, as a share of that range
_CODE_RATE = 0.05

Floats = NDArray[np.floating]
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs to compare on, and what is special about them."""

    name: str
    arrays: Arrays

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(next(iter(self.arrays.values())))


def draw_rows(schema: FeatureSchema, num_rows: int, generator: np.random.Generator) -> Arrays:
    """Random complete rows that the schema allows, numbers reaching somewhat beyond their training range."""
    return {
        modality.name: np.concatenate([_draw(feature, num_rows, generator) for feature in modality.features], axis=1)
        for modality in schema.modalities
    }


def _draw(feature: Feature, num_rows: int, generator: np.random.Generator) -> NDArray[np.float32]:
    shape = (num_rows, feature.width)
    if isinstance(feature, NumericFeature):
        reach = _BEYOND * (feature.maximum - feature.minimum)
        values = generator.uniform(feature.minimum - reach, feature.maximum + reach, shape)
    elif isinstance(feature, CategoricalFeature):
        values = generator.integers(len(feature.vocabulary), size=shape).astype(float)
    elif isinstance(feature, CodesFeature):
        values = (generator.random(shape) < _CODE_RATE).astype(float)
    else:
        values = generator.normal(size=shape)
    return values.astype(np.float32)


def hide(arrays: Arrays, schema: FeatureSchema, rate: float, generator: np.random.Generator) -> Arrays:
    """The rows with whole features missing at random."""
    hidden = {name: array.copy() for name, array in arrays.items()}
    for modality in schema.modalities:
        for _, columns in modality.columns():
            rows = generator.random(len(hidden[modality.name])) < rate
            hidden[modality.name][rows, columns] = np.nan
    return hidden


def cases(schema: FeatureSchema, seed: int = 0) -> Iterator[Case]:
    """Every batch size complete and with missing values; where the model allows it, with modalities missing too."""
    generator = np.random.default_rng(seed)
    width = sum(modality.width for modality in schema.modalities)
    for size in (size for size in BATCH_SIZES if size <= _ALWAYS or size * width <= _MAX_CELLS):
        rows = draw_rows(schema, size, generator)
        yield Case(f"batch {size}, complete", rows)
        for rate in MISSING_RATES:
            yield Case(f"batch {size}, {rate:.0%} of values missing", hide(rows, schema, rate, generator))
        if schema.missing == "learned":
            for name in schema.names:
                yield Case(f"batch {size}, {name} missing", rows | {name: np.full_like(rows[name], np.nan)})
                others = {other: np.full_like(rows[other], np.nan) for other in schema.names if other != name}
                yield Case(f"batch {size}, only {name} present", rows | others)


def _compare(case: Case, wanted: Output, found: Output, atol: float) -> tuple[float, list[str]]:
    worst, failures = 0.0, []
    for name in OUTPUT_NAMES:
        expected, actual = getattr(wanted, name), getattr(found, name)
        if expected.shape != actual.shape:
            failures.append(f"{case.name}: {name} has shape {actual.shape}, expected {expected.shape}")
            continue
        difference = _largest(expected, actual)
        worst = max(worst, difference)
        if not difference <= atol:  # NaN is a failure too
            failures.append(f"{case.name}: {name} differs by {difference:.2g}")
    mixed = np.einsum("be,bec->bc", found.expert_weights, found.expert_logits)
    gap = _largest(mixed, found.logits, np.abs(found.expert_logits).max(axis=1))
    if not gap <= atol:
        failures.append(f"{case.name}: weighted expert logits differ from logits by {gap:.2g}")
    return worst, failures


def _largest(expected: Floats, actual: Floats, magnitude: Floats | None = None) -> float:
    """The largest difference, as a share of `magnitude` (of what is expected if not given) where that is above 1."""
    scale = np.maximum(1.0, np.abs(expected) if magnitude is None else magnitude)
    return float((np.abs(expected - actual) / scale).max())


def verify(predictor: Predictor, model: I2MoE, schema: FeatureSchema, *, atol: float = ATOL) -> Parity:
    """Compare graph and model over all cases. Raises `ParityError` listing everything that differs."""
    worst, failures, num_cases = 0.0, [], 0
    for case in cases(schema):
        difference, found = _compare(case, predict(model, schema, case.arrays), predictor.run(case.arrays), atol)
        worst, num_cases = max(worst, difference), num_cases + 1
        failures += found
    if failures:
        raise ParityError(failures, atol)
    return Parity(atol=atol, max_abs_diff=worst, cases=num_cases)


def verify_precision(predictor: Predictor, exact: Predictor, rows: Arrays) -> Parity:
    """Compare a graph of lower precision with the float32 graph it was made of, on real rows. Raises `ParityError`.

    The manifest tells the largest difference; the limit, `PRECISION_ATOL`, is only there to refuse what went wrong.
    """
    atol = PRECISION_ATOL[predictor.manifest.graph.precision]
    worst, failures = _compare(Case("calibration rows", rows), exact.run(rows), predictor.run(rows), atol)
    if failures:
        raise ParityError(failures, atol)
    return Parity(atol=atol, max_abs_diff=worst, cases=len(next(iter(rows.values()))))
