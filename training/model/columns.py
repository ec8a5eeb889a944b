"""Where the features of a modality lie among its graph input's columns, as index tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.bundle.schema import ArrayFeature, CategoricalFeature, EmbeddedTextFeature, Modality, NumericFeature


@dataclass(frozen=True, slots=True)
class Columns:
    """Column positions by what they hold, for one modality of F columns and N features."""

    numeric: Tensor  # (Fn,), one column each
    categorical: Tensor  # (Fc,), one column each, holding a vocabulary position
    vocabulary_sizes: tuple[int, ...]  # (Fc,)
    dense_features: tuple[Tensor, ...]  # the columns of every codes, text or array feature
    is_array: tuple[bool, ...]  # of those, which are arrays or embeddings: their 0 means nothing
    first: Tensor  # (N,), the first column of every feature: NaN there means the feature is missing
    num_columns: int

    @classmethod
    def of(cls, modality: Modality) -> "Columns":
        """The layout of a modality."""
        numeric: list[int] = []
        categorical: list[int] = []
        sizes: list[int] = []
        dense: list[Tensor] = []
        is_array: list[bool] = []
        first: list[int] = []
        for feature, columns in modality.columns():
            first.append(columns.start)
            if isinstance(feature, NumericFeature):
                numeric.append(columns.start)
            elif isinstance(feature, CategoricalFeature):
                categorical.append(columns.start)
                sizes.append(len(feature.vocabulary))
            else:
                dense.append(torch.arange(columns.start, columns.stop))
                is_array.append(isinstance(feature, ArrayFeature | EmbeddedTextFeature))
        numeric_index, categorical_index, first_index = (
            torch.tensor(positions, dtype=torch.long) for positions in (numeric, categorical, first)
        )
        return cls(numeric_index, categorical_index, tuple(sizes), tuple(dense), tuple(is_array), first_index, modality.width)


def one_hot_layout(columns: Columns) -> tuple[Tensor, Tensor]:
    """For every one-hot cell the column it looks at and the position it compares with: two (K,) tensors."""
    sizes = columns.vocabulary_sizes
    source = torch.repeat_interleave(columns.categorical, torch.tensor(sizes, dtype=torch.long), output_size=sum(sizes))
    position = torch.cat([torch.arange(size) for size in sizes]) if sizes else torch.empty(0)
    return source, position.float()


def partly(x: Tensor, known: Tensor, baseline: Tensor) -> Tensor:
    """Cell by cell baseline + known (x - baseline); a missing cell stays NaN, without a gradient in how known it is."""
    missing = torch.isnan(x)
    change = torch.where(missing, torch.zeros_like(x), x - baseline)
    return torch.where(missing, x, baseline + known * change)


def zero_nan(x: Tensor) -> Tensor:
    """NaN to 0; infinities, which the schema never lets in, would stay."""
    return torch.where(torch.isnan(x), torch.zeros_like(x), x)
