"""Which features drove each expert: what the second graph of a bundle answers, and how it is told.

For every record and expert of the batch, towards one label,

    contribution = base + sum over all columns of their attributions + gap

where base is the contribution of a record of which nothing is known, and gap what the graph's sum over a path leaves
untold (`completeness` in the manifest). A number or category is told as `labs.crea`, a code or word as
`diagnosis.codes=I50`, an array and an embedded text as a whole. Knows nothing of graphs, requests or torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle.schema import CodesFeature, FeatureSchema, TextFeature

FloatArray = NDArray[np.float32]

LABEL_INPUT = "label.one_hot"  # (B, C): towards which label; no modality can have this name
_COLUMNS = "attribution.{}"
_PER_EXPERT = ("base", "contribution", "gap")
NUM_TOLD = 10  # features of one expert that are named; all others are one sum


def attribution_outputs(schema: FeatureSchema) -> tuple[str, ...]:
    """The graph's outputs in order: (B, E, columns) of every modality, then (B, E) each of base, contribution and gap."""
    return (*(_COLUMNS.format(name) for name in schema.names), *_PER_EXPERT)


@dataclass(frozen=True, slots=True)
class Attribution:
    """What the graph answers for B records and E experts, as float32 arrays."""

    columns: Mapping[str, FloatArray]  # modality -> (B, E, columns)
    base: FloatArray  # (B, E)
    contribution: FloatArray  # (B, E)
    gap: FloatArray  # (B, E)

    @classmethod
    def of(cls, schema: FeatureSchema, arrays: Sequence[FloatArray]) -> "Attribution":
        """From the graph's outputs, in the order of `attribution_outputs`."""
        return cls(dict(zip(schema.names, arrays, strict=False)), *arrays[len(schema.names) :])

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, rows: slice) -> "Attribution":
        """That of some of the records."""
        columns = {name: array[rows] for name, array in self.columns.items()}
        return Attribution(columns, self.base[rows], self.contribution[rows], self.gap[rows])

    @classmethod
    def join(cls, parts: Sequence["Attribution"]) -> "Attribution":
        """Those of several batches, one after the other."""
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        return cls(columns, *(np.concatenate([getattr(part, name) for part in parts]) for name in _PER_EXPERT))

    def fits(self, schema: FeatureSchema, *, num_rows: int, num_experts: int) -> bool:
        """Whether every array has the shape that it must have for so many records and experts."""
        widths = {modality.name: modality.width for modality in schema.modalities}
        columns = {name: (num_rows, num_experts, width) for name, width in widths.items()}
        others = {getattr(self, name).shape for name in _PER_EXPERT}
        return {name: array.shape for name, array in self.columns.items()} == columns and others == {(num_rows, num_experts)}

    def is_finite(self) -> bool:
        """Whether every number is one."""
        return all(np.isfinite(array).all() for array in (*self.columns.values(), self.base, self.contribution, self.gap))


@dataclass(frozen=True, slots=True)
class ExpertAttribution:
    """One expert's contribution to one record, told by features."""

    features: tuple[tuple[str, float], ...]  # name and attribution, the largest first, without those that are 0
    rest: float  # the sum of all that are not named
    base: float
    gap: float


RecordAttribution = tuple[ExpertAttribution, ...]  # every expert's, in order


def one_hot(label: NDArray[np.integer], num_labels: int) -> FloatArray:
    """Label positions (B,) as the graph reads them, (B, C)."""
    rows: FloatArray = np.eye(num_labels, dtype=np.float32)[label]
    return rows


def tell_attribution(attribution: Attribution, row: int, expert: int, schema: FeatureSchema) -> ExpertAttribution:
    """The features that weigh most for one expert on one record, what the others add up to, base and gap."""
    told = [(name, value) for name, value in _named(attribution, row, expert, schema) if value != 0]
    told.sort(key=lambda pair: -abs(pair[1]))
    return ExpertAttribution(
        features=tuple(told[:NUM_TOLD]),
        rest=sum(value for _, value in told[NUM_TOLD:]),
        base=float(attribution.base[row, expert]),
        gap=float(attribution.gap[row, expert]),
    )


def tell_attributions(attribution: Attribution, schema: FeatureSchema) -> list[RecordAttribution]:
    """Of every record of the batch."""
    num_experts = attribution.base.shape[1]
    return [
        tuple(tell_attribution(attribution, row, expert, schema) for expert in range(num_experts))
        for row in range(len(attribution))
    ]


def _named(attribution: Attribution, row: int, expert: int, schema: FeatureSchema) -> Iterator[tuple[str, float]]:
    for modality in schema.modalities:
        values = attribution.columns[modality.name][row, expert].astype(np.float64)
        for feature, columns in modality.columns():
            name = f"{modality.name}.{feature.name}"
            if isinstance(feature, CodesFeature | TextFeature):
                for position in values[columns].nonzero()[0]:
                    yield f"{name}={feature.vocabulary[position]}", float(values[columns.start + position])
            else:
                yield name, float(values[columns].sum())
