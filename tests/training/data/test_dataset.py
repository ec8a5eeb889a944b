import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from service.bundle.features import CategoricalFeature, CodesFeature, NumericFeature, TextFeature
from service.bundle.schema import FeatureSchema
from tests.training.small_data import ALL_MODALITIES, recipe, records, small_signal, small_table, write_data
from training.data.dataset import Dataset, load_dataset
from training.errors import DataError, RecipeError
from training.model.build import build_model, fit_encoders


def load(folder: Path, changes: dict[str, Any] | None = None, *, rich: bool = False, missing: Any = "learned") -> Dataset:
    modalities = {"modalities": ALL_MODALITIES} if rich else {}
    return load_dataset(recipe(changes, **modalities).data, folder, seed=0, missing=missing)


def changed_table(folder: Path, **columns: Any) -> Path:
    write_data(folder)
    values = [pl.Series(name, values) for name, values in columns.items()]
    small_table().with_columns(values).write_csv(folder / "table.csv")
    return folder


def outcome(**of_row: Any) -> list[Any]:
    return [of_row.get(f"row_{i}", value) for i, value in enumerate(small_table()["outcome"].to_list())]


@pytest.mark.parametrize("suffix", ["csv.gz", "parquet", "typed.parquet"])
def test_every_table_format_gives_the_same_arrays(tmp_path: Path, suffix: str) -> None:
    """The same rows as csv, csv.gz, parquet of text or parquet of numbers become the same arrays, target and schema."""
    write_data(tmp_path)
    wanted = load(tmp_path, rich=True)
    table = small_table()
    if suffix == "csv.gz":
        table.write_csv(tmp_path / "other.csv.gz", compression="gzip")
    elif suffix == "typed.parquet":
        numbers = [pl.col(c).cast(pl.Float64) for c in ("crea", "sod", "age")] + [pl.col("outcome").cast(pl.Int64)]
        table.with_columns(numbers).write_parquet(tmp_path / f"other.{suffix}")
    else:
        table.write_parquet(tmp_path / f"other.{suffix}")
    found = load(tmp_path, {"data.path": f"other.{suffix}"}, rich=True)
    assert wanted.schema.model_dump() == found.schema.model_dump()
    np.testing.assert_array_equal(wanted.target, found.target)
    for name, array in wanted.arrays.items():
        np.testing.assert_array_equal(array, found.arrays[name])


def assert_same_record(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for modality, features in wanted.items():
        assert found[modality].keys() == features.keys()
        for name, value in features.items():
            np.testing.assert_array_equal(found[modality][name], value)


def test_training_and_serving_encode_records_alike(tmp_path: Path) -> None:
    """A table's rows as training encodes them equal the same records sent as JSON to a schema read from a manifest."""
    write_data(tmp_path)
    dataset = load(tmp_path, rich=True)
    served_schema = FeatureSchema.model_validate_json(dataset.schema.model_dump_json())
    sent = records(tmp_path, dataset.schema)
    assert_same_record(dataset.record(17), sent[17])
    as_json = json.dumps(sent, default=lambda array: array.tolist()).replace("NaN", "null")
    served, scored = served_schema.encode_many(json.loads(as_json)), served_schema.encode_many(sent)
    for name, array in dataset.arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, served[name])
        np.testing.assert_array_equal(array, scored[name])


def test_columns_hold_what_the_table_says(tmp_path: Path) -> None:
    """Numbers stay numbers, categories become positions, codes 0 and 1, an empty cell NaN."""
    write_data(tmp_path)
    dataset = load(tmp_path, rich=True)
    table = small_table()
    _, person, papers, signal = dataset.schema.modalities
    crea = [float(v) if v is not None else np.nan for v in table["crea"]]
    np.testing.assert_array_equal(dataset.arrays["labs"][:, 0], np.array(crea, np.float32))
    ward = person.features[2]
    assert isinstance(ward, CategoricalFeature)
    assert set(ward.vocabulary) == {"007", "010", "7"}
    assert [ward.vocabulary[int(v)] for v in dataset.arrays["person"][:, 2] if not np.isnan(v)] == [v for v in table["ward"] if v]
    codes, note = papers.features
    assert isinstance(codes, CodesFeature)
    assert codes.vocabulary == ("0038", "I10")
    wanted = [[float("0038" in v), 1.0] if v else [np.nan] * 2 for v in table["codes"]]
    np.testing.assert_array_equal(dataset.arrays["papers"][:, :2], np.array(wanted))
    assert isinstance(note, TextFeature)
    assert {"chronic", "kidney", "healthy"} <= set(note.vocabulary)
    assert signal.features[0].name == "signal"
    np.testing.assert_array_equal(dataset.arrays["signal"], small_signal().reshape(len(table), -1))


def test_an_array_of_any_rank_becomes_columns(tmp_path: Path) -> None:
    """A (N, 2, 2, 3) array is one feature of 12 columns, row-major, integers included."""
    write_data(tmp_path)
    image = np.arange(120 * 12).reshape(120, 2, 2, 3)
    np.save(tmp_path / "image.npy", image)
    modalities = recipe().model_dump(mode="json")["data"]["modalities"] | {"image": {"array": "image.npy"}}
    dataset = load_dataset(recipe(modalities=modalities).data, tmp_path, seed=0)
    assert dataset.schema.modalities[2].width == 12
    np.testing.assert_array_equal(dataset.arrays["image"], image.reshape(120, 12))


@pytest.mark.parametrize(
    ("array", "told"),
    [(np.zeros(120), r"expected numbers of shape \(120, ...\), found float64 \(120,\)"),
     (np.zeros((7, 2)), r"expected numbers of shape \(120, ...\), found float64 \(7, 2\)"),
     (np.full((120, 1), "a"), "found <U1"),
     (np.full((120, 1), {}), "cannot be read as a .npy array"),
     (np.full((120, 1), np.inf), "row 1: signal.signal: must hold finite numbers")],
)  # fmt: skip
def test_an_array_that_does_not_fit_is_refused(tmp_path: Path, array: Any, told: str) -> None:
    """Wrong rank, rows or type, pickled objects and infinity are each one line saying what was expected."""
    write_data(tmp_path)
    np.save(tmp_path / "signal.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=told):
        load(tmp_path, rich=True)


def test_statistics_come_from_training_rows_alone(tmp_path: Path) -> None:
    """Changing test and validation rows changes neither the schema nor what encoders learned nor the training arrays."""
    write_data(tmp_path)
    before = load(tmp_path, rich=True)
    held_out = np.concatenate([before.splits["validation"], before.splits["test"]])
    table, signal = small_table(), small_signal()
    strange = {
        "crea": "99999",
        "sod": "-5",
        "age": "300",
        "sex": "unknown",
        "ward": "99",
        "codes": "X|X2|X3",
        "note": "zebra zebra",
    }
    for column, value in strange.items():
        values = table[column].to_list()
        for row in held_out:
            values[row] = value
        table = table.with_columns(pl.Series(column, values))
    table.write_csv(tmp_path / "table.csv")
    signal[held_out] = 1e6
    np.save(tmp_path / "signal.npy", signal)
    after = load(tmp_path, rich=True)
    assert before.schema.model_dump() == after.schema.model_dump()
    for name in ("feature", "patch"):
        wanted, found = (fitted_buffers(dataset, name) for dataset in (before, after))
        assert wanted
        assert all(np.array_equal(wanted[key], found[key]) for key in wanted)
    for name, array in before.part("train")[0].items():
        np.testing.assert_array_equal(array, after.part("train")[0][name])


def fitted_buffers(dataset: Dataset, kind: str) -> dict[str, Any]:
    import torch

    model = build_model(recipe({"model.encoders": {"default": {"kind": kind}}}).model, dataset.schema, dataset.task)
    fit_encoders(model, [torch.from_numpy(array) for array in dataset.part("train")[0].values()])
    return {name: value.numpy() for name, value in model.encoders.named_buffers()}


def test_rows_without_a_modality_are_dropped_and_told_where_the_model_rejects_them(tmp_path: Path) -> None:
    """missing = reject trains on rows that have every modality, and notes how many it left out."""
    write_data(tmp_path)
    learned, rejecting = load(tmp_path, rich=True), load(tmp_path, rich=True, missing="reject")
    complete = ~np.isnan(small_signal()[:, 0, 0]) & small_table()[["codes", "note"]].to_numpy().any(axis=1)
    labs = small_table()[["crea", "sod"]].to_numpy().any(axis=1)
    num_complete = int((complete & labs).sum())
    assert len(learned.target) == 120
    assert learned.notes == ()
    assert len(rejecting.target) == num_complete < 120
    assert rejecting.notes == (
        f"{120 - num_complete} of 120 rows dropped: without a value in one of the modalities (missing = reject)",
    )
    assert rejecting.schema.missing == "reject"
    assert not any(np.isnan(array).all(axis=1).any() for array in rejecting.arrays.values())


def test_a_row_without_any_value_is_dropped_and_told(tmp_path: Path) -> None:
    """Even a model with missing tokens learns nothing from an empty row."""
    empty = {name: [None, *small_table()[name].to_list()[1:]] for name in ("crea", "sod", "age", "sex", "ward")}
    dataset = load(changed_table(tmp_path, **empty))
    assert dataset.notes == ("1 of 120 rows dropped: without any value",)
    assert len(dataset.target) == len(dataset.arrays["labs"]) == 119


def test_a_class_whose_rows_are_all_dropped_is_not_a_class(tmp_path: Path) -> None:
    """Labels are those of the rows that stay, so that positions and names cannot drift apart."""
    labels = ["a_rare" if i < 3 else "bc"[i % 2] for i in range(120)]
    gaps = {name: [None] * 3 + small_table()[name].to_list()[3:] for name in ("crea", "sod", "age", "sex", "ward")}
    folder = changed_table(tmp_path, outcome=labels, **gaps)
    dataset = load(folder, {"data.task": "multiclass", "data.labels": None})
    assert dataset.task.labels == ("b", "c")
    assert [dataset.task.labels[i] for i in dataset.target] == labels[3:]


def test_no_usable_row_is_told(tmp_path: Path) -> None:
    """A table in which every row lacks a modality cannot train a model that rejects such rows."""
    write_data(tmp_path)
    np.save(tmp_path / "signal.npy", np.full((120, 2), np.nan))
    with pytest.raises(DataError, match="no row of 120 has a value in every modality"):
        load(tmp_path, rich=True, missing="reject")


@pytest.mark.parametrize(
    ("values", "labels", "told"),
    [(["0", "1", "2"], ["alive", "dead"], r"expected 2 classes, found 3 \(0, 1, 2\)"),
     (["0", "1", "2"], None, r"expected 2 classes, found 3 \(0, 1, 2\)"),
     (["1"], None, r"expected 2 classes, found 1 \(1\)"),
     (["0", "1", None], None, "40 of 120 rows have no value"),
     (["0", "1", "NaN"], None, "40 of 120 rows have no value"),
     (["0", "1"], ["a", "b", "c"], r"expected 3 classes, found 2 \(0, 1\)")],
)  # fmt: skip
def test_a_binary_label_needs_two_classes_in_every_row(tmp_path: Path, values: list[Any], labels: Any, told: str) -> None:
    """One class, three classes, a row without a label: one line that says what was expected and found."""
    folder = changed_table(tmp_path, outcome=[values[i % len(values)] for i in range(120)])
    with pytest.raises(DataError, match=told):
        load(folder, {"data.labels": labels})


@pytest.mark.parametrize(
    ("values", "classes"),
    [(["1", "-1"], ("-1", "1")), (["10", "9"], ("9", "10")), (["2.5", "0.5"], ("0.5", "2.5")), (["0.0", "1"], ("0", "1")),
     (["yes", "no"], ("no", "yes")), (["True", "false"], ("false", "true")), (["--5", "a"], ("--5", "a"))],
)  # fmt: skip
def test_classes_are_sorted_as_values(tmp_path: Path, values: list[str], classes: tuple[str, str]) -> None:
    """Numbers in numeric order (the event of -1 and 1 is 1), words alphabetically."""
    dataset = load(changed_table(tmp_path, outcome=[values[i % 2] for i in range(120)]), {"data.labels": None})
    assert classes == dataset.task.labels
    assert dataset.target[0] == classes.index(values[0].lower().removesuffix(".0"))


def test_names_given_in_the_recipe_name_the_sorted_values_or_order_them(tmp_path: Path) -> None:
    """["alive", "dead"] names 0 and 1; ["yes", "no"] over yes and no makes "no" the event."""
    write_data(tmp_path)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.target, small_table()["outcome"].cast(pl.Int64).to_numpy())
    words = ["yes" if v == "1" else "no" for v in small_table()["outcome"]]
    reordered = load(changed_table(tmp_path, outcome=words), {"data.labels": ["yes", "no"]})
    np.testing.assert_array_equal(reordered.target, [int(w == "no") for w in words])


def test_a_multiclass_label_may_have_more_classes(tmp_path: Path) -> None:
    """Three classes make a task of three labels."""
    folder = changed_table(tmp_path, outcome=[str(i % 3) for i in range(120)])
    dataset = load(folder, {"data.task": "multiclass", "data.labels": None})
    assert (dataset.task.kind, dataset.task.labels) == ("multiclass", ("0", "1", "2"))
    np.testing.assert_array_equal(dataset.target, np.arange(120) % 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"data.labels": ["same", "same"]}, "a binary task has 2 distinct labels"),
     ({"data.risk_bands": [{"name": "low", "below": 0.5}]}, "risk bands must rise and end at 1.0")],
)  # fmt: skip
def test_task_settings_that_contradict_each_other_are_one_line(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Repeated class names and risk bands that do not end at 1 are mistakes of the recipe."""
    write_data(tmp_path)
    with pytest.raises(RecipeError, match=told) as error:
        load(tmp_path, changes)
    assert "\n" not in str(error.value)


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    """The message names column and row, and not what the cell holds."""
    values = small_table()["crea"].to_list()
    values[4] = "hemolysed"
    with pytest.raises(DataError, match="column crea: row 5 of 120 is not a finite number") as error:
        load(changed_table(tmp_path, crea=values))
    assert "hemolysed" not in str(error.value)


def test_every_column_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    """Two columns with words, one of them a date, are two lines, and what a number is stands beside them."""
    dates = ["2024-01-31"] * 120
    modalities = {"labs": {"numeric": ["crea", "sod"]}, "person": {"numeric": ["age"], "categorical": ["sex"]}}
    changed_table(tmp_path, crea=["<0.3"] * 120, age=dates)
    with pytest.raises(DataError) as error:
        load(tmp_path, {"data.modalities": modalities})
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["column crea", "column age"]
    assert all("holds numbers and empty cells alone, no date" in line for line in lines)
    assert "0.3" not in str(error.value)
    assert "2024" not in str(error.value)


def test_of_very_many_unreadable_columns_ten_are_told(tmp_path: Path) -> None:
    """A pattern may name hundreds: the last line says how many more there are."""
    write_data(tmp_path)
    names = [f"lab_{i:02}" for i in range(12)]
    small_table().with_columns(pl.lit("pending").alias(name) for name in names).write_csv(tmp_path / "table.csv")
    with pytest.raises(DataError) as error:
        load(tmp_path, {"data.modalities.labs": {"numeric": ["lab_*"]}})
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 2 more columns"


def test_categories_that_differ_in_case_or_spaces_alone_are_told(tmp_path: Path) -> None:
    """The note counts them and names the column, not what they are; they stay categories of their own."""
    wards = [["Cardiac ICU", "cardiac icu", "CARDIAC  ICU", "neuro"][i % 4] for i in range(120)]
    dataset = load(changed_table(tmp_path, ward=wards))
    (note,) = dataset.notes
    assert note.startswith("person.ward: 2 of its 4 categories differ from another in case or spaces alone")
    assert "cardiac" not in note.lower()
    person = dataset.schema.modalities[1]
    assert [len(f.vocabulary) for f in person.features if isinstance(f, CategoricalFeature) and f.name == "ward"] == [4]


def test_a_table_spelled_in_one_way_has_no_note(tmp_path: Path) -> None:
    """Nothing is told where nothing is odd."""
    write_data(tmp_path)
    assert load(tmp_path).notes == ()


def test_a_feature_without_a_value_in_the_training_rows_is_refused(tmp_path: Path) -> None:
    """Nothing can be fitted to an empty column."""
    with pytest.raises(DataError, match="modality labs: column crea has no value in the 72 training rows"):
        load(changed_table(tmp_path, crea=[None] * 120))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"codes": {"column": "codes", "min_count": 500}}, "no code is found in at least 500 training rows"),
     ({"text": {"column": "note", "min_count": 500}}, "no word is found in at least 500 training rows")],
)  # fmt: skip
def test_an_empty_vocabulary_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """min_count above every count leaves nothing to learn from."""
    write_data(tmp_path)
    with pytest.raises(DataError, match=told):
        load(tmp_path, {"data.modalities.papers": changes})


@pytest.mark.parametrize(
    ("feature", "told"),
    [({"codes": {"column": "x"}}, "must be a list of strings or one string, found a number"),
     ({"text": {"column": "x"}}, "must hold text in column x, found a number"),
     ({"categorical": ["when"]}, "modality other: a training row must be")],
)  # fmt: skip
def test_a_typed_column_of_the_wrong_kind_is_one_line(tmp_path: Path, feature: dict[str, Any], told: str) -> None:
    """Numbers where codes or text belong and dates where categories belong are told, not a traceback."""
    import datetime

    write_data(tmp_path)
    table = small_table().with_columns(pl.lit(3).alias("x"), pl.lit(datetime.date(2020, 1, 1)).alias("when"))
    table.write_parquet(tmp_path / "typed.parquet")
    with pytest.raises(DataError, match=told):
        load(tmp_path, {"data.path": "typed.parquet", "data.modalities.other": feature})


def test_codes_below_min_count_are_ignored(tmp_path: Path) -> None:
    """A code in fewer training rows than min_count is no column."""
    values = small_table()["codes"].to_list()
    values[:2] = ["I10|rare", "I10|rare"]
    dataset = load(changed_table(tmp_path, codes=values), rich=True)
    assert dataset.schema.modalities[2].features[0].vocabulary == ("0038", "I10")  # type: ignore[union-attr]


def test_numeric_features_keep_their_unit_and_training_range(tmp_path: Path) -> None:
    """The schema says mg/dL and the smallest and largest training value."""
    write_data(tmp_path)
    dataset = load(tmp_path)
    crea = dataset.schema.modalities[0].features[0]
    assert isinstance(crea, NumericFeature)
    train = dataset.part("train")[0]["labs"][:, 0]
    assert crea.unit == "mg/dL"
    np.testing.assert_allclose((crea.minimum, crea.maximum), (np.nanmin(train), np.nanmax(train)), rtol=1e-6)


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    """No file, no rows, a file of another kind."""
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path)
    small_table().head(0).write_csv(tmp_path / "table.csv")
    with pytest.raises(DataError, match="holds no rows"):
        load(tmp_path)
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"expected a file ending in .csv"):
        load(tmp_path, {"data.path": "table.xlsx"})


def test_a_binary_task_cannot_have_three_names(tmp_path: Path) -> None:
    """Three names for three values are a multiclass task."""
    folder = changed_table(tmp_path, outcome=[str(i % 3) for i in range(120)])
    with pytest.raises(RecipeError, match="a binary task has 2 distinct labels"):
        load(folder, {"data.labels": ["a", "b", "c"]})


def test_a_label_that_is_no_category_is_told(tmp_path: Path) -> None:
    """A date is no class."""
    write_data(tmp_path)
    dates = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 4, 29), eager=True).alias("outcome")
    small_table().with_columns(dates).write_parquet(tmp_path / "dated.parquet")
    with pytest.raises(DataError, match="label outcome: must be a") as error:
        load(tmp_path, {"data.path": "dated.parquet"})
    assert "2020" not in str(error.value)


def test_labels_that_never_vary_are_told(tmp_path: Path) -> None:
    """Several labels, each the same in all rows: no metric would be defined."""
    num_rows = small_table().height
    changed_table(tmp_path, one=[1] * num_rows, none=[0] * num_rows)
    changes = {"data.label": ["one", "none"], "data.task": "multilabel", "data.labels": []}
    with pytest.raises(DataError, match="no label is there in some rows and not in others"):
        load(tmp_path, changes)


def test_a_recipe_says_what_features_are_called_elsewhere(tmp_path: Path) -> None:
    """LOINC codes, units and what a number summarises stand in the schema, where the service's adapters find them."""
    write_data(tmp_path)
    labs = {
        "numeric": ["crea", "sod"],
        "units": {"crea": "mg/dL"},
        "loinc": {"crea": "2160-0", "sod": ["2951-2", "2947-0"]},
        "summaries": {"sod": "maximum"},
        "lookback_hours": 48,
    }
    schema = load(tmp_path, {"data.modalities.labs": labs}).schema
    crea, sod = schema.modalities[schema.names.index("labs")].features
    assert isinstance(crea, NumericFeature)
    assert isinstance(sod, NumericFeature)
    assert (crea.loinc, crea.unit, crea.summary, crea.lookback_hours) == (("2160-0",), "mg/dL", "last", 48)
    assert (sod.loinc, sod.summary) == (("2951-2", "2947-0"), "maximum")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("loinc", {"crea": "creatinine"}, "pattern"),
        ("loinc", {"age": "30525-0"}, r"\['age'\], which are not features of the modality"),
        ("summaries", {"age": "last"}, r"\['age'\], which are not numeric features of the modality"),
    ],
)
def test_names_elsewhere_must_be_of_features(tmp_path: Path, key: str, value: dict[str, str], why: str) -> None:
    """A misspelt column would otherwise never be noticed."""
    with pytest.raises(RecipeError, match=why):
        load(tmp_path, {"data.modalities.labs": {"numeric": ["crea", "sod"], key: value}})


def test_grouped_codes_are_counted_by_group(tmp_path: Path) -> None:
    """Two codes of a category, and codes of two editions, add up; a row counts once for a group."""
    codes = ["icd10:I50.1|icd10:I50.9" if row % 2 else "icd9:428.0" for row in range(small_table().height)]
    changed_table(tmp_path, dx=codes)
    modality = {"codes": {"column": "dx", "min_count": 2, "grouping": "icd"}}
    schema = load(tmp_path, {"data.modalities.papers": modality}).schema
    (feature,) = schema.modalities[schema.names.index("papers")].features
    assert isinstance(feature, CodesFeature)
    assert feature.vocabulary == ("chapter:circulatory", "charlson:heart_failure", "icd10:I50", "icd9:428")
