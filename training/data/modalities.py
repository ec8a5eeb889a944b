"""From a recipe's modalities to those of its table: patterns become columns, and what a data set says of its columns is added."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import ValidationError

from service.bundle.features import Summary
from training.config import sentence
from training.data.config import ModalityConfig, is_pattern
from training.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """What a data set says of a column that it makes, so that no recipe has to."""

    loinc: tuple[str, ...] = ()
    unit: str | None = None  # UCUM
    summary: Summary | None = None
    lookback_hours: float | None = None


Facts = Mapping[str, ColumnFacts]


def table_modalities(
    modalities: Mapping[str, ModalityConfig], columns: Sequence[str], facts: Facts, *, never: Collection[str]
) -> dict[str, ModalityConfig]:
    """The modalities with every column by name, in the table's order where a pattern stood, and with the data set's facts.

    What the recipe itself says of a column wins. Columns of `never` match no pattern. Raises `DataError` for a pattern that
    matches nothing.
    """
    usable = [column for column in columns if column not in never]
    return {name: _complete(name, config, usable, facts) for name, config in modalities.items()}


def _complete(modality: str, config: ModalityConfig, columns: Sequence[str], facts: Facts) -> ModalityConfig:
    numeric = tuple(dict.fromkeys(_named(modality, config.numeric, columns)))
    categorical = tuple(dict.fromkeys(_named(modality, config.categorical, columns)))
    others = [column for column in config.columns if column not in {*config.numeric, *config.categorical}]
    of_numeric = {column: facts[column] for column in numeric if column in facts}
    of_all = {column: facts[column] for column in (*numeric, *categorical, *others) if column in facts}
    changes = {
        "numeric": numeric,
        "categorical": categorical,
        "units": {c: f.unit for c, f in of_numeric.items() if f.unit is not None} | config.units,
        "summaries": {c: f.summary for c, f in of_numeric.items() if f.summary is not None} | config.summaries,
        "loinc": {c: f.loinc for c, f in of_all.items() if f.loinc} | config.loinc,
        "lookback_hours": _lookbacks(config, of_numeric),
    }
    try:
        return ModalityConfig.model_validate({**dict(config), **changes})
    except ValidationError as error:
        raise DataError(f"modality {modality}: {sentence(error.errors()[0])}") from None


def _lookbacks(config: ModalityConfig, facts: Facts) -> float | dict[str, float] | None:
    if isinstance(config.lookback_hours, float):
        return config.lookback_hours
    told = {column: f.lookback_hours for column, f in facts.items() if f.lookback_hours is not None}
    return (told | (config.lookback_hours or {})) or None


def _named(modality: str, names: Sequence[str], columns: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name in columns or not is_pattern(name):
            yield name
            continue
        found = [column for column in columns if fnmatchcase(column, name)]
        if not found:
            raise DataError(f"modality {modality}: {name} matches none of the {len(columns)} columns that may be features")
        yield from found
