"""What held-out rows looked like, kept beside the metrics: the reference that drift is measured against, and an example.

Nothing here is one patient's: the example is made of medians and most common values, the rest are counts.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.features import UnfitValueError
from service.bundle.manifest import ExpertInfo, TaskInfo
from service.bundle.output import Output
from service.bundle.schema import (
    ArrayFeature,
    CategoricalFeature,
    CodesFeature,
    EmbeddedTextFeature,
    Feature,
    FeatureSchema,
    NumericFeature,
    TextFeature,
)
from training.data.encode import values_in_memory
from training.data.rows import RowArray, parts

NUM_BINS = 20
_EXAMPLE_WORDS = 5
_EXAMPLE_TEXT = "The patient is stable and comfortable."  # nobody's: an embedding's mean is no text


def _histogram(values: NDArray[np.floating]) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(0.0, 1.0))
    return {"edges": [round(edge, 6) for edge in edges.tolist()], "counts": counts.tolist()}


def reference(
    output: Output,
    arrays: Mapping[str, RowArray],
    schema: FeatureSchema,
    task: TaskInfo,
    experts: Iterable[ExpertInfo],
) -> dict[str, Any]:
    """Histograms over [0, 1] of every label's probability and every expert's weight, and how often features were missing."""
    missing = {
        f"{modality.name}.{feature.name}": float(np.isnan(values_in_memory(arrays[modality.name])[:, columns.start]).mean())
        for modality in schema.modalities
        for feature, columns in modality.columns()
    }
    return {
        "num_rows": len(output.prediction),
        "prediction": {label: _histogram(output.prediction[:, c]) for c, label in enumerate(task.labels)},
        "expert_weights": {expert.name: _histogram(output.expert_weights[:, e]) for e, expert in enumerate(experts)},
        "missing_rate": missing,
    }


def typical_record(arrays: Mapping[str, RowArray], schema: FeatureSchema) -> dict[str, Any]:
    """A record of nobody: each feature at its median or most common value over the given rows (N, columns)."""
    return {
        modality.name: {
            feature.name: value
            for feature, columns in modality.columns()
            if (value := _typical(feature, arrays[modality.name], columns)) is not None
        }
        for modality in schema.modalities
    }


def _typical(feature: Feature, array: RowArray, columns: slice) -> Any:
    if isinstance(feature, ArrayFeature):
        return _mean_array(array, columns, feature.shape)
    values_NK = values_in_memory(array)[:, columns]
    known_NK = values_NK[~np.isnan(values_NK).any(axis=1)]
    if len(known_NK) == 0:
        return None
    if isinstance(feature, NumericFeature):
        return float(f"{np.median(known_NK):.4g}")
    if isinstance(feature, CategoricalFeature):
        return feature.vocabulary[int(Counter(known_NK[:, 0].tolist()).most_common(1)[0][0])]
    if isinstance(feature, CodesFeature):
        return _commonest_code(feature, known_NK.mean(axis=0))
    return _EXAMPLE_TEXT if isinstance(feature, EmbeddedTextFeature) else _common_words(feature, known_NK)


def _common_words(feature: TextFeature, known_NK: NDArray[np.float32]) -> str:
    return " ".join(feature.vocabulary[i] for i in known_NK.mean(axis=0).argsort()[-_EXAMPLE_WORDS:][::-1])


def _commonest_code(feature: CodesFeature, shares: NDArray[np.floating]) -> list[str] | None:
    """The code that most rows have; of a vocabulary of groups the commonest that can be sent as a code, a category.

    None where no group can: chapters and comorbidities are no codes.
    """
    words = [feature.vocabulary[place] for place in (-shares).argsort(stable=True)]
    return next(([word] for word in words if _can_be_sent(feature, word)), None)


def _can_be_sent(feature: CodesFeature, word: str) -> bool:
    try:
        feature.encode([word])
    except UnfitValueError:
        return False
    return True


def _mean_array(array: RowArray, columns: slice, shape: tuple[int, ...]) -> Any:
    """The mean of the rows without a gap, None if there is none."""
    total_K, count = np.zeros(columns.stop - columns.start), 0
    for part in parts(array):
        known_NK = part[:, columns][~np.isnan(part[:, columns]).any(axis=1)]
        total_K, count = total_K + known_NK.sum(axis=0, dtype=np.float64), count + len(known_NK)
    return (total_K / count).astype(np.float32).reshape(shape).tolist() if count else None
