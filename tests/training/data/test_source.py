from pathlib import Path

import polars as pl
import pytest

from tests.training.small_data import recipe, write_data
from training.data.source import load_source, named_dataset
from training.errors import DataError


def test_an_unknown_data_set_is_told_with_the_known_ones() -> None:
    """A misspelt name answers with the names that exist."""
    with pytest.raises(DataError, match=r"data.name: expected one of support2, .*, found 'suport2'"):
        named_dataset("suport2")


@pytest.mark.parametrize(
    ("changes", "column"),
    [({"data.label": "death"}, "death"), ({"data.group": "stay"}, "stay"), ({"data.split": {"column": "fold"}}, "fold"),
     ({"data.modalities.labs": {"numeric": ["crea", "lactate", "amylase"]}}, "amylase, lactate")],
)  # fmt: skip
def test_a_column_that_is_not_there_is_named(tmp_path: Path, changes: dict[str, object], column: str) -> None:
    """Label, group, split and features must be columns of the table."""
    with pytest.raises(DataError, match=f"table.csv: has no column {column}$"):
        load_source(recipe(changes).data, write_data(tmp_path))


def test_a_label_rule_needs_its_columns(tmp_path: Path) -> None:
    """A file that is not the named data set is told by the column it lacks."""
    write_data(tmp_path)
    changes = {"data.name": "support2", "data.label": "one_year_mortality"}
    with pytest.raises(DataError, match="label rule one_year_mortality: column death: not in the table"):
        load_source(recipe(changes).data, tmp_path)


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    """Bytes that are no parquet are one line naming the file."""
    (tmp_path / "table.parquet").write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match=r"table.parquet: cannot be read as a table") as error:
        load_source(recipe({"data.path": "table.parquet"}).data, tmp_path)
    assert "\n" not in str(error.value)


def test_a_table_without_rule_is_taken_whole(tmp_path: Path) -> None:
    """A user's own table loses no row and has no notes."""
    source = load_source(recipe().data, write_data(tmp_path))
    assert (source.frame.height, source.notes) == (120, ())
    assert source.frame.schema["crea"] == pl.String
