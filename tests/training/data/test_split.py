import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.config import SplitConfig
from training.data.split import CONFORMAL, SPLITS, split_rows
from training.errors import DataError

FRACTIONS = SplitConfig(validation=0.2, test=0.2)


def labelled(num_rows: int, *, share: float = 0.3, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    generator = np.random.default_rng(seed)
    frame = pl.DataFrame({"patient": [f"p{v}" for v in generator.integers(num_rows // 3, size=num_rows)]})
    return frame, (generator.random(num_rows) < share).astype(np.int64)


def test_every_row_falls_on_one_side() -> None:
    """Splits are disjoint, cover all rows and have the sizes asked for."""
    frame, target = labelled(1000)
    splits = split_rows(frame, target, FRACTIONS, group=None, seed=0)
    assert tuple(splits) == SPLITS
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(1000))
    assert [len(rows) for rows in splits.values()] == [600, 200, 200]


def test_splits_are_stratified() -> None:
    """Each split holds the classes in the proportion of the whole, to the row."""
    frame, target = labelled(1000, share=0.07)
    splits = split_rows(frame, target, FRACTIONS, group=None, seed=3)
    for rows in splits.values():
        assert abs(target[rows].sum() - target.mean() * len(rows)) <= 1


@settings(max_examples=20, deadline=None)
@given(num_rows=st.integers(150, 400), seed=st.integers(0, 1000))
def test_groups_are_never_divided(num_rows: int, seed: int) -> None:
    """All rows of one patient are in one split, whatever the seed and the sizes of the groups."""
    frame, target = labelled(num_rows, share=0.3, seed=seed)
    splits = split_rows(frame, target, FRACTIONS, group="patient", seed=seed)
    patients = [set(frame["patient"].gather(rows.tolist())) for rows in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert sum(map(len, splits.values())) == num_rows


def test_the_seed_decides_and_run_means_the_runs_seed() -> None:
    """A fixed split seed ignores the run's; "run" follows it."""
    frame, target = labelled(200)
    own = SplitConfig(validation=0.2, test=0.2, seed="run")

    def test_rows(config: SplitConfig, seed: int) -> list[int]:
        return split_rows(frame, target, config, group=None, seed=seed)["test"].tolist()

    assert test_rows(FRACTIONS, 0) == test_rows(FRACTIONS, 1) == test_rows(own, 0)
    assert test_rows(own, 0) != test_rows(own, 1)


def test_seeds_walk_through_the_folds_of_repeated_cross_validation() -> None:
    """Runs 0 to 4 test every row once, no patient is divided, and runs 5 to 9 do it again with another division."""
    frame, target = labelled(300)
    config = SplitConfig(validation=0.2, folds=5)
    runs = [split_rows(frame, target, config, group="patient", seed=seed) for seed in range(10)]
    for five in (runs[:5], runs[5:]):
        np.testing.assert_array_equal(np.sort(np.concatenate([splits["test"] for splits in five])), np.arange(300))
    for splits in runs:
        patients = [set(frame["patient"].gather(rows.tolist())) for rows in splits.values()]
        assert sum(map(len, patients)) == len(set.union(*patients))
        assert len(splits["validation"]) == pytest.approx(60, abs=12)
    tests = [splits["test"].tolist() for splits in runs]
    assert tests[0] not in tests[5:]
    moved = split_rows(frame, target, SplitConfig(validation=0.2, folds=5, seed=1), group="patient", seed=0)
    assert moved["test"].tolist() == tests[5]


def test_more_folds_than_rows_of_a_class_are_refused() -> None:
    """Every fold has every class."""
    frame = pl.DataFrame({"x": range(10)})
    with pytest.raises(DataError, match="split: 3 folds need as many groups of rows in every class, found 2"):
        split_rows(frame, np.array([0] * 8 + [1] * 2), SplitConfig(validation=0.2, folds=3), group=None, seed=0)


def test_a_column_may_say_where_rows_go() -> None:
    """The split column's train, validation and test are taken as they are."""
    splits = ["train", "test", "validation", "train", "test", "validation"]
    rows = split_rows(
        pl.DataFrame({"split": splits}), np.array([0, 0, 0, 1, 1, 1]), SplitConfig(column="split"), group=None, seed=0
    )
    assert {name: r.tolist() for name, r in rows.items()} == {"train": [0, 3], "validation": [2, 5], "test": [1, 4]}


@pytest.mark.parametrize(
    ("splits", "told"),
    [(["train", "dev", "test"], "split column split: expected train, validation, test, found 'dev'"),
     (["train", None, "test"], "found ''"),
     (["train", "Validation", "test"], "found 'Validation'"),
     (["train", "train", "test"], "split: validation is empty"),
     (["train", "validation", "test"], r"split: train \(1 rows\) holds no row of class \[1\]")],
)  # fmt: skip
def test_a_split_column_that_cannot_be_used_is_told(splits: list[str | None], told: str) -> None:
    """Unknown or missing words, an empty split and a split without a class are one line each."""
    with pytest.raises(DataError, match=told):
        split_rows(pl.DataFrame({"split": splits}), np.array([0, 1, 1]), SplitConfig(column="split"), group=None, seed=0)


def test_a_split_column_may_not_divide_a_group() -> None:
    """Where groups are named, a split column that puts one of them on two sides is refused."""
    frame = pl.DataFrame({"split": ["train", "validation", "test"] * 2, "patient": ["a", "b", "c", "d", "e", "a"]})
    with pytest.raises(DataError, match="puts 1 groups of patient into two splits"):
        split_rows(frame, np.array([0, 0, 0, 1, 1, 1]), SplitConfig(column="split"), group="patient", seed=0)
    kept = frame.with_columns(pl.Series("patient", ["a", "b", "c", "a", "e", "f"]))
    assert split_rows(kept, np.array([0, 0, 0, 1, 1, 1]), SplitConfig(column="split"), group="patient", seed=0)


def test_groups_without_a_value_are_told() -> None:
    """A row without a patient could be anyone's."""
    frame = pl.DataFrame({"patient": ["a", None, "b"]})
    with pytest.raises(DataError, match="group column patient: 1 of 3 rows have no value"):
        split_rows(frame, np.array([0, 1, 0]), FRACTIONS, group="patient", seed=0)


def test_too_few_rows_are_told() -> None:
    """A class of one row cannot be in three splits."""
    with pytest.raises(DataError, match=r"split: 5 groups of rows cannot be divided at 0.2"):
        split_rows(pl.DataFrame({"x": range(5)}), np.array([0, 0, 0, 0, 1]), FRACTIONS, group=None, seed=0)


WITH_CONFORMAL = FRACTIONS.model_copy(update={"conformal": 0.1})


@pytest.mark.parametrize("ways", [{"test": 0.2}, {"folds": 5}])
def test_conformal_rows_come_out_of_the_training_rows_alone(ways: dict[str, float]) -> None:
    """Validation and test rows are those of the same recipe without conformal rows, and no row is lost."""
    frame, target = labelled(1000)
    plain = split_rows(frame, target, SplitConfig(validation=0.2, **ways), group=None, seed=1)
    splits = split_rows(frame, target, SplitConfig(validation=0.2, conformal=0.1, **ways), group=None, seed=1)
    assert tuple(splits) == (*SPLITS, CONFORMAL)
    for name in ("validation", "test"):
        np.testing.assert_array_equal(splits[name], plain[name])
    both = np.concatenate([splits["train"], splits[CONFORMAL]])
    np.testing.assert_array_equal(np.sort(both), plain["train"])
    assert len(splits[CONFORMAL]) == 100
    assert abs(target[splits[CONFORMAL]].sum() - target.mean() * 100) <= 1


@settings(max_examples=20, deadline=None)
@given(num_rows=st.integers(150, 400), seed=st.integers(0, 1000))
def test_conformal_rows_are_one_of_each_group_that_is_nowhere_else(num_rows: int, seed: int) -> None:
    """No patient of the conformal rows is in another split or twice among them: one row of a new patient is like them."""
    frame, target = labelled(num_rows, share=0.3, seed=seed)
    splits = split_rows(frame, target, WITH_CONFORMAL, group="patient", seed=seed)
    patients = {name: frame["patient"].gather(rows.tolist()).to_list() for name, rows in splits.items()}
    assert len(set(patients[CONFORMAL])) == len(patients[CONFORMAL])
    assert not set(patients[CONFORMAL]) & {p for name in SPLITS for p in patients[name]}


def test_the_row_kept_of_a_group_is_drawn_at_random() -> None:
    """Neither always the first nor always the last row of a patient stands for it."""
    frame = pl.DataFrame({"patient": [f"p{i // 3}" for i in range(300)]})
    target = np.tile([0, 1, 0], 100)
    rows = split_rows(frame, target, WITH_CONFORMAL, group="patient", seed=0)[CONFORMAL]
    assert len(rows) == 10
    assert set((rows % 3).tolist()) == {0, 1, 2}


def test_a_column_may_mark_conformal_rows() -> None:
    """Rows marked conformal are a fourth split, which may lack a class; without the word there are three."""
    splits = ["train", "test", "validation", "train", "test", "validation", "conformal"]
    target = np.array([0, 0, 0, 1, 1, 1, 1])
    rows = split_rows(pl.DataFrame({"split": splits}), target, SplitConfig(column="split"), group=None, seed=0)
    assert rows[CONFORMAL].tolist() == [6]
    frame = pl.DataFrame({"split": splits, "patient": ["a", "b", "c", "d", "e", "f", "a"]})
    with pytest.raises(DataError, match="puts 1 groups of patient into two splits"):
        split_rows(frame, target, SplitConfig(column="split"), group="patient", seed=0)


@pytest.mark.parametrize(
    ("values", "told"),
    [({"column": "fold", "conformal": 0.1}, "mark rows conformal in fold"),
     ({"validation": 0.4, "test": 0.4, "conformal": 0.2}, "and test 0.4 and conformal 0.2 leave no training rows")],
)  # fmt: skip
def test_conformal_rows_that_cannot_be_had_are_told(values: dict[str, float | str], told: str) -> None:
    """A fraction beside a split column, and fractions that leave nothing to train on."""
    with pytest.raises(ValueError, match=told):
        SplitConfig.model_validate(values)
