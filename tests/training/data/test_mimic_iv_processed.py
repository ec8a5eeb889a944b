import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.data.hostile import HOSTILE, replace_in_zip, runs
from training.data import mimic_iv_processed
from training.errors import DataError

IDS = [10000032, 10000980, 10001217, 10001725, 10002013, 10002428, 10002495, 10002930]
SPLITS = {"training": IDS[4:], "validation": IDS[:2], "testing": IDS[2:4]}
WIDTHS = {"lab": 3, "note": 5, "code": 4}


def vectors() -> dict[str, np.ndarray[Any, Any]]:
    """One vector per row of labels.csv and modality; each value tells its row and column."""
    return {name: np.arange(len(IDS) * width, dtype=float).reshape(len(IDS), width) for name, width in WIDTHS.items()}


def write(folder: Path, arrays: dict[str, Any] | None = None, *, splits: Any = SPLITS, labels: str | None = None) -> Path:
    """The released folder."""
    rows = "".join(f"{one},{i % 2}\n" for i, one in enumerate(IDS))
    (folder / "labels.csv").write_text(labels if labels is not None else f"subject_id,one_year_mortality\n{rows}")
    (folder / "PTID_splits_mimic.json").write_text(json.dumps(splits))
    for name, array in (vectors() if arrays is None else arrays).items():
        torch.save(array, folder / f"{name}_x.pt")
    return folder


def test_the_released_layout_is_read(tmp_path: Path) -> None:
    """Lab, note, code in that order; row i of a file is row i of labels.csv; splits by subject; no notes."""
    data = mimic_iv_processed.read(write(tmp_path))
    assert tuple(data.arrays) == mimic_iv_processed.MODALITIES == ("lab", "note", "code")
    for name, array in data.arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, vectors()[name])
    assert data.frame["id"].to_list() == [str(one) for one in IDS]
    assert data.frame["one_year_mortality"].to_list() == [0, 1] * 4
    assert data.frame["split"].to_list() == ["validation"] * 2 + ["test"] * 2 + ["train"] * 4
    assert data.frame.columns == ["id", "one_year_mortality", "split"]
    assert data.notes == ()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8, bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_number_are_read(tmp_path: Path, dtype: Any, order: Any) -> None:
    """Whatever numbers and memory order an array was saved with, its values come as float32."""
    arrays = {name: np.asarray(array, dtype, order=order) for name, array in vectors().items()}
    data = mimic_iv_processed.read(write(tmp_path, arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(data.arrays[name], array.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_tensors_are_accepted_too(tmp_path: Path, dtype: torch.dtype) -> None:
    """A .pt file that holds a tensor is read as the array would be."""
    tensors = {name: torch.from_numpy(array).to(dtype) for name, array in vectors().items()}
    data = mimic_iv_processed.read(write(tmp_path, tensors))
    np.testing.assert_array_equal(data.arrays["note"], vectors()["note"])


def test_files_of_old_torch_and_numpy_are_read(tmp_path: Path) -> None:
    """The format before zip files, and the module names of numpy 1, hold the same arrays."""
    write(tmp_path)
    torch.save(vectors()["lab"], tmp_path / "lab_x.pt", _use_new_zipfile_serialization=False)
    replaced = pickle.dumps(vectors()["note"], protocol=2).replace(b"numpy._core.", b"numpy.core.")
    replace_in_zip(tmp_path / "note_x.pt", "data.pkl", replaced)
    data = mimic_iv_processed.read(tmp_path)
    np.testing.assert_array_equal(data.arrays["lab"], vectors()["lab"])
    np.testing.assert_array_equal(data.arrays["note"], vectors()["note"])


@pytest.mark.parametrize("spelling", ["{}", "{}.0", " {} "])
@pytest.mark.parametrize("in_json", [int, str, float])
def test_ids_match_however_they_are_written(tmp_path: Path, spelling: str, in_json: Callable[[int], Any]) -> None:
    """Numbers in the JSON and text in the csv, or the other way round, lose no patient."""
    rows = "".join(f"{spelling.format(one)},1\n" for one in IDS)
    splits = {split: [in_json(one) for one in ids] for split, ids in SPLITS.items()}
    data = mimic_iv_processed.read(write(tmp_path, splits=splits, labels=f"subject_id,one_year_mortality\n{rows}"))
    assert (data.frame.height, data.notes) == (8, ())


def test_rows_in_no_split_are_dropped_and_told(tmp_path: Path) -> None:
    """Patients without a split leave arrays and frame together; split ids without a label are counted."""
    splits = SPLITS | {"training": [*IDS[5:], 1, 2, 3]}
    data = mimic_iv_processed.read(write(tmp_path, splits=splits))
    assert data.frame["id"].to_list() == [str(one) for one in IDS if one != IDS[4]]
    np.testing.assert_array_equal(data.arrays["lab"], np.delete(vectors()["lab"], 4, axis=0))
    assert data.notes == (
        "1 of 8 labelled rows dropped: PTID_splits_mimic.json puts them in no split",
        "3 of 10 ids of PTID_splits_mimic.json ignored: they have no label",
    )


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    """NaN is not filled, infinity becomes NaN with a note, and a shorter file leaves its last patients without the modality."""
    arrays = vectors()
    arrays["lab"][0, 1] = np.nan
    arrays["note"][2, 2] = np.inf
    arrays["code"] = arrays["code"][:6]
    data = mimic_iv_processed.read(write(tmp_path, arrays))
    assert np.argwhere(np.isnan(data.arrays["lab"])).tolist() == [[0, 1]]
    assert np.argwhere(np.isnan(data.arrays["note"])).tolist() == [[2, 2]]
    np.testing.assert_array_equal(np.isnan(data.arrays["code"]).all(axis=1), [False] * 6 + [True] * 2)
    assert data.notes == (
        "code_x.pt: holds 6 rows; the last 2 of labels.csv lack the modality",
        "note: 1 of 40 values read as missing: they are infinite",
    )


LABELS = "subject_id,one_year_mortality\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "subject_id,died\n1,0\n"}, "labels.csv: expected columns subject_id, one_year_mortality, found no one_year"),
        ({"labels": LABELS}, "labels.csv: expected at least one row, found none"),
        ({"labels": LABELS + "1,0\n2,2\n3,\n"}, "expected one_year_mortality 0 or 1 in every row, found 2 of 3 rows"),
        ({"labels": LABELS + "1,0\n2,0\n1.0,1\n"}, r"labels.csv: expected every id once, found 1 of them .*\(first: 1\)"),
        ({"labels": LABELS + "1,0\n,0\n"}, "labels.csv: expected an id in every row, found 1 of 2 rows"),
        ({"labels": LABELS + "1,0\n2,0\n"}, "no id is that of a labelled row; expected ids like 1, found 10002013"),
        ({"splits": {"train": IDS}}, "expected lists of ids under training, validation, testing, found train"),
        ({"splits": [1, 2]}, "expected lists of ids under training, validation, testing, found list"),
        ({"splits": SPLITS | {"testing": IDS[:1]}}, "each id in one split, found 10000032 in validation and test"),
        ({"splits": SPLITS | {"testing": []}}, "expected labelled rows in every split, found none in test"),
        ({"arrays": vectors() | {"lab": np.zeros((9, 2))}}, "lab_x.pt: expected at most the 8 rows of labels.csv, found 9"),
        ({"arrays": vectors() | {"note": np.zeros((8, 2, 2))}}, r"note_x.pt: .* shape \(any, any\), found float64 \(8, 2, 2\)"),
        ({"arrays": vectors() | {"code": np.zeros((8, 0))}}, r"code_x.pt: expected .* found float64 \(8, 0\)"),
        ({"arrays": vectors() | {"code": np.full((8, 2), "x")}}, r"code_x.pt: expected numbers .* found <U1"),
        ({"arrays": vectors() | {"lab": {"x": torch.zeros(2)}}}, "lab_x.pt: expected one numpy array or tensor .*: holds a dict"),
        ({"arrays": vectors() | {"lab": [np.zeros(2)]}}, "lab_x.pt: expected one numpy array or tensor .*: holds a list"),
        ({"arrays": vectors() | {"lab": Path("x")}}, "lab_x.pt: expected one numpy array or tensor .*: names pathlib.PosixPath$"),
    ],
)  # fmt: skip
def test_another_content_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """What does not fit is told with the file, what was expected and what was found."""
    with pytest.raises(DataError, match=message) as error:
        mimic_iv_processed.read(write(tmp_path, **changes))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["labels.csv", "PTID_splits_mimic.json", "lab_x.pt", "note_x.pt", "code_x.pt"])
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    """The path that was tried is in the message."""
    (write(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file; expected {name} of the released layout"):
        mimic_iv_processed.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", b""), ("labels.csv", b"a,b\n1,2,3\n"), ("PTID_splits_mimic.json", b"{"),
        ("lab_x.pt", b"PK"), ("lab_x.pt", b""),
    ],
)  # fmt: skip
def test_a_damaged_file_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    """Bytes that are no table, no JSON and no torch file are one line naming the file."""
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataError, match=name) as error:
        mimic_iv_processed.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("form", ["zip", "before zip", "bare pickle"])
def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path, hostile: Any, form: str) -> None:
    """A .pt file that would create a file when unpickled is refused, and the file is not there."""
    path, marker = write(tmp_path) / "note_x.pt", tmp_path / "ran"
    bomb = pickle.dumps(hostile(marker), protocol=2)
    if form == "zip":
        replace_in_zip(path, "data.pkl", bomb)
    elif form == "before zip":
        torch.save(hostile(marker), path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(bomb)
    with pytest.raises(
        DataError, match=r"note_x\.pt: expected one numpy array or tensor .*nothing in it was run\), found: "
    ) as error:
        mimic_iv_processed.read(tmp_path)
    assert not marker.exists()
    assert "allow" not in str(error.value)
    (tmp_path / "bomb").write_bytes(bomb)
    assert runs(tmp_path / "bomb", marker)  # so it was malicious


def test_reading_leaves_no_permission_behind(tmp_path: Path) -> None:
    """What is allowed for these files is not allowed to torch.load elsewhere afterwards."""
    before = set(torch.serialization.get_safe_globals())
    mimic_iv_processed.read(write(tmp_path))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "lab_x.pt", weights_only=True)
