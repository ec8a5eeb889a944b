"""The [data] section of a recipe."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from service.bundle.features import MAX_TOKENS, Grouping, LoincCode, Pooling, Summary
from service.bundle.manifest import RiskBand, TaskKind
from training.config import Config


def _check_modality_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "id":
        raise ValueError("a modality's name holds letters, digits and _, starts with a letter and is not id")
    return name


ModalityName = Annotated[str, AfterValidator(_check_modality_name)]


def _as_codes(value: object) -> object:
    """One code may stand without its brackets."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Loinc = Annotated[tuple[LoincCode, ...], BeforeValidator(_as_codes)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]  # scikit-learn takes no other


class CodesConfig(Config):
    """A column of code sets."""

    column: str
    separator: str = "|"
    min_count: int = Field(default=10, ge=1)  # codes in fewer training rows are ignored
    grouping: Grouping | None = None  # icd: codes like icd10:I50.9 and icd9:428.0 count as categories, comorbidities and chapters


_TFIDF_OPTIONS = {"column", "encoder", "min_count", "max_features"}


class TextConfig(Config):
    """A column of free text, as weighted words or as a sentence embedding (docs/text.md)."""

    column: str
    encoder: Literal["tfidf", "onnx"] = "tfidf"
    min_count: int = Field(default=5, ge=1)  # tfidf: words in fewer training rows are ignored
    max_features: int = Field(default=2000, ge=1)  # tfidf
    path: Path | None = None  # onnx: folder with model.onnx and tokenizer.json, relative to the recipe
    pooling: Pooling = "mean"  # onnx: of token vectors: their mean, the first, or as the graph itself does
    normalise: bool = True  # onnx: embeddings have a Euclidean norm of 1
    max_tokens: int = Field(default=256, ge=1, le=MAX_TOKENS)  # onnx: read at once, special ones included
    max_chunks: int = Field(default=4, ge=1)  # onnx: a longer text is read in so many parts, and no further

    @model_validator(mode="after")
    def _options_are_the_encoders(self) -> "TextConfig":
        other = {"min_count", "max_features"} if self.encoder == "onnx" else {*type(self).model_fields} - _TFIDF_OPTIONS
        if given := sorted(n for n in other if getattr(self, n) != type(self).model_fields[n].default):
            raise ValueError(f"{', '.join(given)}: no option of encoder {self.encoder}")
        if self.encoder == "onnx" and self.path is None:
            raise ValueError("encoder onnx needs the path of a folder with model.onnx and tokenizer.json")
        return self


def is_pattern(name: str) -> bool:
    """Whether a name may stand for several columns, as in a shell: `lab_*`."""
    return re.search(r"[*?\[]", name) is not None


def _not_among(columns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The columns that are none of these names and match no pattern among them."""
    names = set(names)
    return sorted(c for c in columns if c not in names and not any(fnmatchcase(c, n) for n in names if is_pattern(n)))


class ModalityConfig(Config):
    """Which columns make one modality. Numeric and categorical ones may be named by a shell pattern, such as `lab_*`."""

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    codes: CodesConfig | None = None
    text: TextConfig | None = None
    array: Path | None = None  # row-aligned .npy file of any rank, relative to the recipe; or an array of the named data set
    units: dict[str, str] = {}  # numeric column -> unit, as UCUM spells it
    loinc: dict[str, Loinc] = {}  # column -> what a hospital system calls it, one code or several
    summaries: dict[str, Summary] = {}  # numeric column -> what of several measurements it is; last where nothing is said
    # Numeric columns summarise measurements of these hours before the prediction; one number for all, or one per column.
    lookback_hours: PositiveFloat | dict[str, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _has_features(self) -> "ModalityConfig":
        if not (self.columns or self.array):
            raise ValueError("names no feature: give numeric, categorical, codes, text or array")
        names = [*self.columns, *([self.array.stem] if self.array else ())]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {', '.join(twice)} twice; a feature belongs to a modality once")
        lookbacks = self.lookback_hours if isinstance(self.lookback_hours, dict) else {}
        for given, what in ((self.units, "units"), (self.summaries, "summaries"), (lookbacks, "lookback_hours")):
            if unknown := _not_among(given, self.numeric):
                raise ValueError(f"{what} are given for {unknown}, which are not numeric features of the modality")
        if unknown := _not_among(self.loinc, self.columns):
            raise ValueError(f"loinc is given for {unknown}, which are not features of the modality")
        return self

    def lookback(self, column: str) -> float | None:
        """How many hours before the prediction a numeric column summarises; None: all."""
        return self.lookback_hours.get(column) if isinstance(self.lookback_hours, dict) else self.lookback_hours

    @property
    def columns(self) -> tuple[str, ...]:
        """Every table column the modality reads."""
        return (*self.numeric, *self.categorical, *(part.column for part in (self.codes, self.text) if part))


class SplitConfig(Config):
    """How rows are divided: random fractions, repeated cross-validation, or a column holding train, validation and test.

    With `folds`, a training run with seed r tests on fold `r mod folds` of the division drawn from `seed + r // folds`, so
    that runs 0 to k * folds - 1 are a k times repeated cross-validation.

    `conformal` takes that share of all rows out of the training rows, for prediction sets and intervals alone
    (`training.uncertainty`); validation and test rows stay what they are without it. A split column says it itself: rows
    marked conformal.
    """

    validation: float | None = Field(default=None, gt=0, lt=1)
    test: float | None = Field(default=None, gt=0, lt=1)
    conformal: float | None = Field(default=None, gt=0, lt=1)
    folds: int | None = Field(default=None, ge=2)
    seed: Seed | Literal["run"] = 0  # "run": the seed of the training run, so every seed has its own split
    column: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "SplitConfig":
        ways = [name for name in ("test", "folds", "column") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(f"needs one of test, folds and column, found {' and '.join(ways) or 'none'}")
        if (self.validation is None) != (self.column is not None):
            raise ValueError("needs a validation fraction, unless a column says the split")
        if self.conformal is not None and self.column is not None:
            raise ValueError(f"conformal is no fraction where a column says the split: mark rows conformal in {self.column}")
        if self.folds is not None and self.seed == "run":
            raise ValueError("with folds the run's seed chooses the fold; seed is a number, found 'run'")
        if self.validation is not None and self.validation + self.test_fraction + (self.conformal or 0) >= 1:
            held_out = f"validation {self.validation} and test {self.test_fraction:.3g}"
            more = f" and conformal {self.conformal}" if self.conformal is not None else ""
            raise ValueError(f"{held_out}{more} leave no training rows")
        return self

    @property
    def test_fraction(self) -> float:
        """The share of rows that test; 0 where a column says it."""
        return self.test if self.test is not None else 1 / self.folds if self.folds is not None else 0.0


class DataConfig(Config):
    """Where the rows come from, what is predicted, and what may be used.

    A pattern among a modality's columns stands for those of the table that it matches; never for the label, the group, the
    split, or what is excluded.
    """

    name: str | None = None  # a named data set with its own loader, label rules and leak list
    path: Path | None = None  # csv, csv.gz or parquet, relative to the recipe; of a data set made from tables, rows made before
    root: Path | None = None  # a named data set's own folder, relative to the recipe
    options: dict[str, Any] = {}  # a named data set's own, which its module checks
    label: str | tuple[str, ...]  # a column, or a rule of the named data set; multilabel: one 0/1 column per label
    task: TaskKind = "binary"
    labels: tuple[str, ...] = ()  # class names in the order of the label's sorted values; the event last for binary
    outcome: str | None = None  # for a person: "death within one year"
    threshold: float = Field(default=0.5, gt=0, lt=1)  # binary: from which calibrated risk the event is predicted
    risk_bands: tuple[RiskBand, ...] = ()
    exclude: tuple[str, ...] = ()  # columns that must never be features
    group: str | None = None  # rows of one group never fall on two sides of a split
    split: SplitConfig
    in_memory_mb: int = Field(default=256, ge=0)  # a larger array (MiB as float32) stays in its files, read batch by batch
    modalities: dict[ModalityName, ModalityConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _source_and_columns(self) -> "DataConfig":
        if self.name is None and self.path is None:
            raise ValueError("needs a path, or the name of a data set")
        if isinstance(self.label, tuple) and self.task != "multilabel":
            raise ValueError(f"label is a list of columns, which only multilabel tasks have; this one is {self.task}")
        if len(self.modalities) < 2:
            raise ValueError(f"I2MoE needs at least 2 modalities, found {len(self.modalities)}: {', '.join(self.modalities)}")
        for name, modality in self.modalities.items():
            if leaks := sorted(set(modality.columns) & {*self.exclude, *self.label_columns}):
                raise ValueError(f"modality {name} uses {', '.join(leaks)} as a feature, but it is the label or excluded")
        return self

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label as columns: one, or several for multilabel tasks."""
        return (self.label,) if isinstance(self.label, str) else self.label
