import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse

from training.data import adni
from training.data.rows import whole
from training.errors import DataError

IDS = [f"{site:03}_S_{number:04}" for site, number in ((2, 295), (2, 413), (5, 221), (11, 3), (23, 42), (941, 1194))]
SPLITS = {"training": IDS[:3], "validation": IDS[3:4], "testing": IDS[4:]}
DIAGNOSES = (1, 2, 3, 2, 1, 3)
TEMPLATE = "image/BLSA_SPGR+MPRAGE_averagetemplate_muse_seg_DS222.nii.gz"

LABELS = np.zeros((3, 4, 2), np.int16)  # the template: label 150 on four voxels
LABELS[0, 1, 0] = LABELS[0, 1, 1] = LABELS[2, 0, 1] = LABELS[1, 3, 0] = 150
LABELS[1, 1, 1] = 51

SCANS = [  # subject, day, whether it counts
    (IDS[1], "2006-04-18", False),
    (IDS[0], "2011-10-02", True),
    (IDS[1], "2012-01-09", True),
    ("999_S_9999", "2012-01-09", True),
    (IDS[1], "2007-01-09", False),
    (IDS[5], "2008-02-29", True),
]


def write_nifti(path: Path, volume: np.ndarray[Any, Any]) -> None:
    """A NIfTI-1 file by hand: 348 bytes of header, 4 of padding, int16 voxels with the first axis fastest."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, volume.ndim, *volume.shape, *[1] * (7 - volume.ndim))
    struct.pack_into("<2h", header, 70, 4, 16)  # int16, 16 bits
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\x00"
    path.write_bytes(gzip.compress(bytes(header) + volume.astype("<i2").tobytes(order="F")))


def write_h5ad(path: Path, matrix: np.ndarray[Any, Any], ids: list[str], form: str = "dense") -> None:
    """AnnData as anndata writes it (dense, csr, csc), as it did before 0.7 (legacy), and with text that may be missing."""
    text, (num_rows, num_columns) = h5py.string_dtype(), matrix.shape
    with h5py.File(path, "w") as file:
        for name, names in (("obs", ids), ("var", [f"rs{i}" for i in range(num_columns)])):
            if form == "legacy csr":
                file[name] = np.array([(one.encode(),) for one in names], [("index", "S20")])
                continue
            group = file.create_group(name)
            group.attrs["_index"] = "PTID"
            if form == "nullable":
                group.create_group("PTID").create_dataset("values", data=names, dtype=text)
                group["PTID"]["mask"] = np.zeros(len(names), bool)
            else:
                group.create_dataset("PTID", data=names, dtype=text)
        if not form.endswith(("csr", "csc")):
            file["X"] = matrix
            return
        kind = form[-3:]
        packed = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[kind](matrix)
        x = file.create_group("X")
        x["data"], x["indices"], x["indptr"] = packed.data, packed.indices, packed.indptr
        shape = (num_rows, num_columns)
        x.attrs.update(
            {"h5sparse_format": kind, "h5sparse_shape": shape}
            if "legacy" in form
            else {"encoding-type": f"{kind}_matrix", "shape": shape}
        )


GENES = np.array([[0, 1, 2], [2, np.nan, 0], [0, 0, 1], [1, 1, 1]], np.float32)
GENE_IDS = [IDS[3], IDS[0], "999_S_0000", IDS[2]]


def write(folder: Path, *, genes: str = "dense") -> Path:
    """The released folder with six subjects, four voxels, three SNPs."""
    for name in ("image", "genomic", "clinical", "biospecimen"):
        (folder / name).mkdir()
    rows = "".join(f"{i},{one},{code}\n" for i, (one, code) in enumerate(zip(IDS, DIAGNOSES, strict=True)))
    (folder / "label.csv").write_text(",PTID,DIAGNOSIS\n" + rows)
    (folder / "PTID_splits.json").write_text(json.dumps(SPLITS))
    np.save(folder / "image" / "ADNI_G.npy", np.arange(len(SCANS) * 4, dtype=np.float64).reshape(-1, 4) + 1)
    (folder / "image" / "ADNI_subj.txt").write_text("".join(f"{one}_{day}\n" for one, day, _ in SCANS))
    write_nifti(folder / TEMPLATE, LABELS)
    write_h5ad(folder / "genomic" / "genomic_merged.h5ad", GENES, GENE_IDS, genes)
    clinical = "PTID,AGE,PTADDXYR,PTGENDER_1,PTCOGBEG_x\n" + "".join(
        f"{one},{i / 8},1999,True,2\n" for i, one in enumerate(IDS[::-1])
    )
    (folder / "clinical" / "clinical_merged_mean.csv").write_text(clinical)
    (folder / "biospecimen" / "biospecimen_merged_mean.csv").write_text(f",ABETA,TAU\n{IDS[4]},0.5,-1\n{IDS[0]},,0.25\n")
    return folder


def test_the_released_layout_is_read(tmp_path: Path) -> None:
    """Image, genomic, clinical, biospecimen in that order; labels CN, MCI, AD; splits by PTID; what was dropped is told."""
    data = adni.read(write(tmp_path))
    assert tuple(data.arrays) == adni.MODALITIES == ("image", "genomic", "clinical", "biospecimen")
    assert {name: array.shape for name, array in data.arrays.items()} == {
        "image": (6, 3, 4, 2), "genomic": (6, 3), "clinical": (6, 2), "biospecimen": (6, 2),
    }  # fmt: skip
    assert {whole(array).dtype for array in data.arrays.values()} == {np.dtype(np.float32)}
    assert data.frame["id"].to_list() == IDS
    assert data.frame["diagnosis"].to_list() == ["CN", "MCI", "AD", "MCI", "CN", "AD"]
    assert data.frame["split"].to_list() == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert data.notes == (
        "image: 2 of 6 scans ignored: the subject has a newer one",
        "image: 3 of 6 subjects lack it",
        "image: 1 of 4 subjects of its file ignored: they have no label or no split",
        "genomic: 3 of 6 subjects lack it",
        "genomic: 1 of 4 subjects of its file ignored: they have no label or no split",
        "clinical_merged_mean.csv: columns PTADDXYR, PTCOGBEG_x dropped, as in the released loader",
        "biospecimen: 4 of 6 subjects lack it",
        "clinical and biospecimen: gaps were filled over all subjects, test rows included, before these files",
    )


def test_the_newest_scan_lies_on_the_grey_matter(tmp_path: Path) -> None:
    """Voxel values go to label 150 in the template's order, 0 elsewhere; a subject without a scan is NaN throughout."""
    volumes = whole(adni.read(write(tmp_path)).arrays["image"])
    np.testing.assert_array_equal(volumes[0].ravel()[(LABELS == 150).ravel()], [5, 6, 7, 8])  # the second scan of the list
    np.testing.assert_array_equal(volumes[1].ravel()[(LABELS == 150).ravel()], [9, 10, 11, 12])
    assert volumes[0][0, 1, 0] == 5
    assert volumes[0][2, 0, 1] == 8
    assert (volumes[0][LABELS != 150] == 0).all()
    assert np.isnan(volumes[[2, 3, 4]]).all()
    assert not np.isnan(volumes[[0, 1, 5]]).any()


@pytest.mark.parametrize("genes", ["dense", "csr", "csc", "legacy csr", "nullable"])
def test_genes_are_read_in_every_anndata_encoding(tmp_path: Path, genes: str) -> None:
    """Rows follow the labels' PTIDs, NaN stays NaN, and a subject who is not in the file is a row of NaN."""
    data = adni.read(write(tmp_path, genes=genes))
    nothing = [np.nan] * 3
    np.testing.assert_array_equal(data.arrays["genomic"], [GENES[1], nothing, GENES[3], GENES[0], nothing, nothing])


def test_tables_keep_their_gaps(tmp_path: Path) -> None:
    """Cells are numbers, True and False are 1 and 0, an empty cell and an absent subject are NaN; nothing is scaled."""
    data = adni.read(write(tmp_path))
    np.testing.assert_array_equal(data.arrays["clinical"], [[i / 8, 1] for i in range(5, -1, -1)])
    gone = [np.nan, np.nan]
    np.testing.assert_array_equal(data.arrays["biospecimen"], [[np.nan, 0.25], gone, gone, gone, [0.5, -1], gone])


def test_unfilled_tables_are_an_option(tmp_path: Path) -> None:
    """filled = False reads the tables whose gaps nobody filled, and does not warn of filling."""
    write(tmp_path)
    for name in ("clinical", "biospecimen"):
        (tmp_path / name / f"{name}_merged_mean.csv").unlink()
        (tmp_path / name / f"{name}_merged.csv").write_text(f"PTID,X\n{IDS[1]},nan\n{IDS[2]},NA\n{IDS[3]},7\n")
    data = adni.read(tmp_path, filled=False)
    np.testing.assert_array_equal(data.arrays["clinical"][:, 0], [np.nan, np.nan, np.nan, 7, np.nan, np.nan])
    assert not any("filled" in note for note in data.notes)
    with pytest.raises(DataError, match=r"clinical_merged_mean\.csv: no such file"):
        adni.read(tmp_path)


def test_complete_subjects_only_is_an_option(tmp_path: Path) -> None:
    """common_ids keeps the subjects who have all four modalities, as the released scripts do."""
    data = adni.read(write(tmp_path), common_ids=True)
    assert data.frame["id"].to_list() == [IDS[0]]
    assert [len(array) for array in data.arrays.values()] == [1, 1, 1, 1]
    assert data.notes[0] == "5 of 6 subjects dropped: they lack a modality (common_ids)"
    (tmp_path / "biospecimen" / "biospecimen_merged_mean.csv").write_text("PTID,X\n1,1\n")
    with pytest.raises(DataError, match=r"expected subjects with all of image, genomic, .* found none among 6"):
        adni.read(tmp_path, common_ids=True)


@pytest.mark.parametrize("day", ["20060418", "2006-04-18 10:30:00", "04/18/2006"])
def test_days_come_in_many_spellings(tmp_path: Path, day: str) -> None:
    """A scan of April 2006 is older than one of 2012, however its day is written."""
    lines = write(tmp_path).joinpath("image/ADNI_subj.txt")
    lines.write_text(lines.read_text().replace("2006-04-18", day))
    assert whole(adni.read(tmp_path).arrays["image"])[1].max() == 12


def test_infinite_values_are_missing(tmp_path: Path) -> None:
    """An infinite voxel becomes NaN with a note."""
    voxels = np.ones((6, 4))
    voxels[1, 2] = np.inf
    np.save(write(tmp_path) / "image" / "ADNI_G.npy", voxels)
    data = adni.read(tmp_path)
    assert np.isnan(whole(data.arrays["image"])[0]).sum() == 1
    assert data.notes[-1] == "image: 1 of 24 values read as missing: they are infinite"


FILES = [
    "label.csv", "PTID_splits.json", "image/ADNI_G.npy", "image/ADNI_subj.txt", TEMPLATE, "genomic/genomic_merged.h5ad",
    "clinical/clinical_merged_mean.csv", "biospecimen/biospecimen_merged_mean.csv",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    """The path that was tried is in the message."""
    (write(tmp_path) / name).unlink()
    with pytest.raises(DataError) as error:
        adni.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}: no such file; expected {name} of the released layout")


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(("csv", "txt"))])
@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_file_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    """Bytes of another format are one line naming the file."""
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        adni.read(tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def genes(matrix: Any, ids: list[str]) -> Callable[[Path], None]:
    return lambda folder: write_h5ad(folder / "genomic" / "genomic_merged.h5ad", np.array(matrix, np.float32), ids)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def h5ad(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        write_h5ad(folder / "genomic" / "genomic_merged.h5ad", GENES, GENE_IDS, "csr")
        with h5py.File(folder / "genomic" / "genomic_merged.h5ad", "a") as file:
            change(file)

    return apply


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no diagnosis": (text("label.csv", "PTID,DX\n1,1\n"), "label.csv: expected columns PTID, DIAGNOSIS, found no DIAGNOSIS"),
    "diagnosis 4": (text("label.csv", "PTID,DIAGNOSIS\n1,4\n2,1\n3,\n"), "DIAGNOSIS 1, 2 or 3 in every row, found 2 of 3"),
    "labelled twice": (text("label.csv", "PTID,DIAGNOSIS\n1,1\n1,2\n"), r"label.csv: expected every id once, .*\(first: 1\)"),
    "other ids": (text("label.csv", "PTID,DIAGNOSIS\n1,1\n"), "labelled row; expected ids like 1, found 002_S_0295"),
    "splits": (text("PTID_splits.json", '{"training": []}'), "expected lists of ids under training, validation"),
    "day": (text("image/ADNI_subj.txt", "002_S_0295_baseline\n"), "lines such as 002_S_0295_2006-04-18, found '002_S_0295_b"),
    "subject": (text("image/ADNI_subj.txt", "0295_2006-04-18\n"), "expected lines such as 002_S_0295_2006-04-18"),
    "fewer lines": (text("image/ADNI_subj.txt", "002_S_0295_2006-04-18\n"), r"ADNI_G.npy: .*\(1, any\), found float64 \(6, 4\)"),
    "flat voxels": (lambda f: np.save(f / "image/ADNI_G.npy", np.zeros(6)), r"ADNI_G.npy: expected .* found float64 \(6,\)"),
    "more voxels": (lambda f: np.save(f / "image/ADNI_G.npy", np.zeros((6, 5))), "label 150 on 5 voxels, .* found 4"),
    "pickled voxels": (lambda f: np.save(f / "image/ADNI_G.npy", np.array([{}])), "ADNI_G.npy: cannot be read as a .npy array"),
    "flat template": (lambda f: write_nifti(f / TEMPLATE, LABELS[0]), r"expected a volume of 3 axes, found \(4, 2\)"),
    "text": (text("clinical/clinical_merged_mean.csv", "PTID,A,B\n1,2,x\n"), "numbers in column B, found 1 of 1 cells"),
    "no column": (text("clinical/clinical_merged_mean.csv", "PTID,PTADDX\n1,2\n"), "columns of numbers beside PTID, found none"),
    "twice": (text("biospecimen/biospecimen_merged_mean.csv", "PTID,A\n1,2\n1,3\n"), "biospecimen_merged_mean.csv: .* id once"),
    "genes twice": (genes([[1], [2]], [IDS[0], IDS[0]]), "genomic_merged.h5ad: expected every id once"),
    "genes short": (h5ad(lambda f: (f.pop("X"), f.create_dataset("X", data=GENES[:2]))), r"by obs and var, found \(2, 3\)"),
    "no X": (h5ad(lambda f: f.pop("X")), "expected an AnnData file with obs, var and X"),
    "no obs": (h5ad(lambda f: f.pop("obs")), "expected an AnnData file with obs, var and X"),
    "other X": (h5ad(lambda f: f["X"].attrs.update({"encoding-type": "array3"})), "X is array3 of shape"),
    "other shape": (h5ad(lambda f: f["X"].attrs.update({"shape": (9, 9)})), r"X is csr_matrix of shape \(9, 9\) beside 4 rows"),
    "forged columns": (h5ad(lambda f: f["X/indices"].write_direct(np.full(8, 99, np.int32))), "expected an AnnData file"),
    "forged rows": (h5ad(lambda f: f["X/indptr"].write_direct(np.full(5, 99, np.int32))), "expected an AnnData file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_another_content_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """What does not fit is told with the file, what was expected and what was found."""
    change, message = BAD[name]
    change(write(tmp_path))
    with pytest.raises(DataError, match=message) as error:
        adni.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_library_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra, the message says which library is needed and how to get it."""
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(DataError, match=r"needs nibabel: pip install 'i2moe-service\[datasets\]'"):
        adni.read(write(tmp_path))
