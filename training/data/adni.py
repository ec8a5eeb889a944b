"""ADNI as Flex-MoE's pipeline writes it and the released loader reads it: 2,380 subjects, four modalities, three diagnoses.

Layout of the folder:
    label.csv                       PTID, DIAGNOSIS (1, 2, 3)
    PTID_splits.json                {"training": [PTID], "validation": [...], "testing": [...]}
    image/ADNI_G.npy                (scans, grey-matter voxels); row i is line i of image/ADNI_subj.txt
    image/BLSA_SPGR+MPRAGE_averagetemplate_muse_seg_DS222.nii.gz    where those voxels lie, label 150
    genomic/genomic_merged.h5ad     PTID x 144,746 SNPs
    clinical/clinical_merged_mean.csv, biospecimen/biospecimen_merged_mean.csv    first column PTID

Differences from the released loader: a subject without a modality is a row of NaN and not of -2, and nothing is filled or
scaled here, since the released statistics are those of all subjects, test rows included. Its volumes reach its 3-D
network with the last axis first, as (91, 91, 109); here they keep the template's axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.h5ad import read_h5ad
from training.data.released import (
    ID,
    ReleasedData,
    align,
    assign_splits,
    check_numbers,
    find_file,
    library,
    read_rows,
    read_splits,
    unique_ids,
    without_infinities,
)
from training.data.rows import FloatArray, LazyRows, NpyRows, Positions, RowArray, absent_rows, map_npy
from training.errors import DataError

LABEL = "diagnosis"
CLASSES = ("CN", "MCI", "AD")  # DIAGNOSIS 1, 2, 3
MODALITIES = ("image", "genomic", "clinical", "biospecimen")  # the released loader's order

_GREY_MATTER = 150
_TEMPLATE = "image/BLSA_SPGR+MPRAGE_averagetemplate_muse_seg_DS222.nii.gz"
_DROPPED_PREFIXES = ("PTCOGBEG", "PTADDX", "PTADBEG")  # years of onset, as the released loader drops them
_NO_VALUE = ("", "NA", "NaN", "nan", "None", "null", "<NA>")

Rows = tuple[list[str], RowArray, tuple[str, ...]]  # PTIDs, one row of values each, notes


def read(root: Path, *, filled: bool = True, common_ids: bool = False) -> ReleasedData:
    """Read the folder. Raises `DataError`.

    `filled` reads the `_mean` tables, whose gaps Flex-MoE filled over all subjects; false reads those that keep the gaps.
    `common_ids` keeps only the subjects who have every modality, as the released scripts do.
    """
    frame, notes = _labels(root)
    suffix = "_mean" if filled else ""
    tables: dict[str, Rows] = {
        "image": _scans(root),
        "genomic": (*read_h5ad(find_file(root, "genomic/genomic_merged.h5ad")), ()),
        "clinical": _table(find_file(root, f"clinical/clinical_merged{suffix}.csv"), _DROPPED_PREFIXES),
        "biospecimen": _table(find_file(root, f"biospecimen/biospecimen_merged{suffix}.csv"), ()),
    }
    tables["genomic"] = (unique_ids(tables["genomic"][0], root / "genomic/genomic_merged.h5ad"), *tables["genomic"][1:])
    if common_ids:
        frame, dropped = _complete(frame, tables)
        notes += dropped
    wanted = frame[ID].to_list()
    arrays: dict[str, RowArray] = {name: align(values, ids, wanted) for name, (ids, values, _) in tables.items()}
    arrays, infinite = without_infinities(arrays)
    arrays["image"] = _volumes(arrays["image"], _grey_matter(root))
    for name, (ids, _, said) in tables.items():
        notes += (*said, *_coverage(name, ids, wanted))
    if filled:
        notes += ("clinical and biospecimen: gaps were filled over all subjects, test rows included, before these files",)
    return ReleasedData(frame, arrays, (*notes, *infinite))


def _labels(root: Path) -> tuple[pl.DataFrame, tuple[str, ...]]:
    path = find_file(root, "label.csv")
    table = read_rows(path, ["PTID", "DIAGNOSIS"])
    codes = table["DIAGNOSIS"].str.strip_chars().cast(pl.Float64, strict=False)
    classes = codes.replace_strict({1.0: CLASSES[0], 2.0: CLASSES[1], 3.0: CLASSES[2]}, default=None, return_dtype=pl.String)
    if num_bad := classes.null_count():
        raise DataError(f"{path}: expected DIAGNOSIS 1, 2 or 3 in every row, found {num_bad} of {table.height} rows with another")
    frame = pl.DataFrame({ID: unique_ids(table["PTID"].fill_null("").to_list(), path), LABEL: classes})
    splits = find_file(root, "PTID_splits.json")
    return assign_splits(frame, read_splits(splits), splits)


def _complete(frame: pl.DataFrame, tables: dict[str, Rows]) -> tuple[pl.DataFrame, tuple[str, ...]]:
    common = set.intersection(*(set(ids) for ids, _, _ in tables.values()))
    complete = frame.filter(pl.col(ID).is_in(list(common)))
    if complete.height == 0:
        raise DataError(f"expected subjects with all of {', '.join(tables)}, found none among {frame.height}")
    num_dropped = frame.height - complete.height
    return complete, (f"{num_dropped} of {frame.height} subjects dropped: they lack a modality (common_ids)",) * (num_dropped > 0)


def _coverage(name: str, ids: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """What to say of subjects without the modality, and of the modality's subjects who are not in the data set."""
    num_lacking, num_other = len(set(wanted) - set(ids)), len(set(ids) - set(wanted))
    notes = []
    if num_lacking:
        notes.append(f"{name}: {num_lacking} of {len(wanted)} subjects lack it")
    if num_other:
        notes.append(f"{name}: {num_other} of {len(ids)} subjects of its file ignored: they have no label or no split")
    return notes


def _table(path: Path, dropped_prefixes: tuple[str, ...]) -> Rows:
    """A csv of numbers whose first column is the PTID."""
    table = read_rows(path)
    first, *columns = table.columns
    ids = unique_ids(table[first].fill_null("").to_list(), path)
    dropped = [column for column in columns if column.startswith(dropped_prefixes)] if dropped_prefixes else []
    columns = [column for column in columns if column not in dropped]
    if not columns:
        raise DataError(f"{path}: expected columns of numbers beside {first}, found none")
    notes = (f"{path.name}: columns {', '.join(dropped)} dropped, as in the released loader",) if dropped else ()
    return ids, _numbers(table.select(columns), path), notes


def _numbers(table: pl.DataFrame, path: Path) -> FloatArray:
    """Cells as float32, NaN where empty; one-hot columns may be spelled True and False."""
    spelled = dict.fromkeys(_NO_VALUE) | {"True": "1", "False": "0"}
    texts = table.select(pl.all().str.strip_chars().replace(spelled))
    values = texts.select(pl.all().cast(pl.Float64, strict=False))
    for column in values.columns:
        if num_bad := values[column].null_count() - texts[column].null_count():
            raise DataError(f"{path}: expected numbers in column {column}, found {num_bad} of {table.height} cells that are none")
    return values.fill_null(np.nan).to_numpy().astype(np.float32)


def _scans(root: Path) -> Rows:
    """Grey-matter vectors of each subject's newest scan."""
    path, list_path = find_file(root, "image/ADNI_G.npy"), find_file(root, "image/ADNI_subj.txt")
    voxels = map_npy(path)
    scans = [_scan(line, list_path) for line in list_path.read_text(encoding="utf-8").splitlines() if line.strip()]
    check_numbers(voxels, str(path), shape=(len(scans), None))
    newest: dict[str, int] = {}
    for row, (subject, day) in enumerate(scans):
        if subject not in newest or day > scans[newest[subject]][1]:  # of two scans on one day the first
            newest[subject] = row
    num_older = len(scans) - len(newest)
    notes = (f"image: {num_older} of {len(scans)} scans ignored: the subject has a newer one",) if num_older else ()
    return list(newest), NpyRows(path, voxels.shape).take(np.array(list(newest.values()), np.intp)), notes


def _scan(line: str, path: Path) -> tuple[str, date]:
    """Subject and day of a line such as 002_S_0295_2006-04-18."""
    *subject, day = line.strip().split("_")
    for read_day in (datetime.fromisoformat, lambda text: datetime.strptime(text, "%m/%d/%Y")):
        try:
            if len(subject) >= 3:
                return "_".join(subject[:3]), read_day(day).date()
        except ValueError:
            continue
    raise DataError(f"{path}: expected lines such as 002_S_0295_2006-04-18, found {line.strip()!r}")


def _grey_matter(root: Path) -> NDArray[np.bool_]:
    """Which voxels of the template are grey matter."""
    path, nibabel = find_file(root, _TEMPLATE), library("nibabel")
    try:
        labels = np.asanyarray(nibabel.load(path).dataobj)
    except Exception as error:  # nibabel has error classes of its own, and gzip and struct theirs
        raise DataError(f"{path}: cannot be read as NIfTI ({str(error) or type(error).__name__})") from error
    if labels.ndim != 3:
        raise DataError(f"{path}: expected a volume of 3 axes, found {labels.shape}")
    return labels == _GREY_MATTER


@dataclass(frozen=True, slots=True)
class _Volumes(LazyRows):
    """Vectors (N, voxels) scattered into volumes (N, 91, 109, 91): 0 outside grey matter, NaN where there is no scan.

    The released set makes 2,380 volumes of 3.6 MB, 8.6 GB in all, so each is made when asked for.
    """

    voxels: RowArray
    grey_matter: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, and the template's axes)."""
        return (len(self.voxels), *self.grey_matter.shape)

    def __getitem__(self, rows: Positions) -> FloatArray:
        voxels = self.voxels[rows]
        volumes = np.zeros((len(rows), *self.grey_matter.shape), np.float32)
        volumes[:, self.grey_matter] = voxels
        volumes[np.isnan(voxels).all(axis=1)] = np.nan
        return volumes

    def absent(self) -> NDArray[np.bool_]:
        """As the vectors have it."""
        return absent_rows(self.voxels)


def _volumes(voxels: RowArray, grey_matter: NDArray[np.bool_]) -> LazyRows:
    """The volumes of vectors (N, voxels). Raises `DataError` when the template has another number of voxels."""
    width, num_voxels = voxels.shape[1], int(grey_matter.sum())
    if num_voxels != width:
        raise DataError(f"{_TEMPLATE}: expected label {_GREY_MATTER} on {width} voxels, as in ADNI_G.npy, found {num_voxels}")
    return _Volumes(voxels, grey_matter)
