"""Reading MIMIC-IV at full size: synthetic tables in the official format, read in a process of its own.

    python -m benchmarks.mimic_iv --out DIR [--lab-rows 158374764] [--index last] [--cache]

The tables are as long as those of MIMIC-IV 3.1, in proportion to --lab-rows (by default all of them): patients, admissions,
codes, and laboratory results with all 16 columns, sorted by patient, three of four with their admission. Numbers are drawn, so
they say nothing of accuracy. Tables of as many rows that are in DIR already are read again. With --cache the reader makes its
parquet copies first, and is then run once more with them. Memory is the peak of the reading process (Linux). The last line is
JSON.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.data.mimic_iv.items import LABS

FULL = {
    "labevents": 158_374_764,
    "patients": 364_627,
    "admissions": 546_028,
    "diagnoses_icd": 6_364_488,
    "procedures_icd": 859_655,
}
GZIP = 31  # zlib's window bits for a gzip member
AT_ONCE = 1_000_000  # rows
YEARS = (2110, 2200)
OTHER_ITEMS = 700  # that the cohort's forty are chosen from
FIRST_SUBJECT, FIRST_ADMISSION = 10_000_000, 20_000_000
CODES = ["4280", "4019", "25000", "41401", "5849", "I509", "I10", "E119", "N179", "J449", "Z515", "F329"]
SPELLINGS = {  # UCUM's to MIMIC-IV's, where they differ
    "meq/L": "mEq/L", "[IU]/L": "IU/L", "u[IU]/mL": "uIU/mL", "10*3/uL": "K/uL", "10*6/uL": "m/uL", "s": "sec",
    "mm[Hg]": "mm Hg", "[pH]": "units",
}  # fmt: skip
Frame = pl.DataFrame

READ = r"""
import json, re, sys, time
from pathlib import Path
from training.data.mimic_iv import MimicOptions, read
started = time.perf_counter()
data = read(Path(sys.argv[1]), MimicOptions.model_validate_json(sys.argv[2]), ["one_year_mortality"])
seconds = time.perf_counter() - started
peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # of this process alone, in kB
print(json.dumps({"seconds": round(seconds, 1), "peak_mb": peak // 1024, "rows": data.frame.height,
                  "columns": data.frame.width, "notes": data.notes}))
"""


def times(seconds: np.ndarray[Any, Any]) -> pl.Series:
    """Seconds since 1970 as MIMIC-IV writes times."""
    return pl.Series(seconds.astype(np.int64) * 1_000_000).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S")


def patients_and_admissions(num_patients: int, num_admissions: int, rng: np.random.Generator) -> tuple[Frame, Frame]:
    """The two small tables; every patient has at least one admission."""
    subjects = np.arange(num_patients) + FIRST_SUBJECT
    more = subjects[np.floor(num_patients * rng.random(num_admissions - num_patients) ** 2).astype(int)]
    subject = np.sort(np.concatenate([subjects, more]))
    admitted = rng.integers(*[int((year - 1970) * 365.25 * 86400) for year in YEARS], num_admissions)
    left = admitted + (rng.gamma(1.5, 3.0, num_admissions) * 86400 + 3600).astype(np.int64)
    died = rng.random(num_admissions) < 0.02
    admissions = Frame(
        {
            "subject_id": subject,
            "hadm_id": np.arange(num_admissions) + FIRST_ADMISSION,
            "admittime": times(admitted),
            "dischtime": times(left),
            "deathtime": times(left).set(pl.Series(~died), None),
            "admission_type": pl.Series(["EW EMER.", "URGENT", "ELECTIVE"]).gather(rng.integers(0, 3, num_admissions)),
            "admit_provider_id": "P03YMR",
            "admission_location": "EMERGENCY ROOM",
            "discharge_location": "HOME",
            "insurance": "Medicare",
            "language": "English",
            "marital_status": "MARRIED",
            "race": "UNKNOWN",
            "edregtime": times(admitted - 3600 * 4),
            "edouttime": times(admitted),
            "hospital_expire_flag": died.astype(int),
        }
    )
    last = admissions.group_by("subject_id", maintain_order=True).agg(pl.col("dischtime").max(), pl.col("admittime").min())
    days = pl.Series(rng.integers(1, 365 * 4, num_patients))  # after the last discharge; kept where at most a year
    dod = last["dischtime"].str.to_datetime().dt.date().dt.offset_by(days.cast(pl.String) + "d")
    patients = Frame(
        {
            "subject_id": subjects,
            "gender": pl.Series(["F", "M"]).gather(rng.integers(0, 2, num_patients)),
            "anchor_age": rng.integers(18, 92, num_patients),
            "anchor_year": last["admittime"].str.slice(0, 4),
            "anchor_year_group": "2008 - 2010",
            "dod": dod.set(days > 365, None),
        }
    )
    return patients, admissions


def codes(num_rows: int, admissions: Frame, rng: np.random.Generator) -> Frame:
    """Codes of both editions."""
    which = rng.integers(0, len(CODES), num_rows)
    rows = admissions.select("subject_id", "hadm_id")[np.sort(rng.integers(0, admissions.height, num_rows))]
    version_of = pl.Series(["9", "10"]).gather((which >= 5).astype(np.uint32))
    return rows.with_columns(seq_num=pl.lit(1), icd_code=pl.Series(CODES).gather(which), icd_version=version_of)


def labevents(num_rows: int, admissions: Frame, rng: np.random.Generator) -> Iterator[Frame]:
    """The rows in the order of their patients, some at a time."""
    items = np.concatenate([[quantity.items[0] for quantity in LABS], np.arange(OTHER_ITEMS) + 53_000])
    units = pl.Series([SPELLINGS.get(str(q.unit), q.unit) for q in LABS] + ["mg/dL"] * OTHER_ITEMS)
    lower = np.array([quantity.lower for quantity in LABS] + [0.0] * OTHER_ITEMS, float)
    upper = np.array([quantity.upper for quantity in LABS] + [1.0] * OTHER_ITEMS, float)
    weights = 1 / (np.arange(len(items)) + 10.0)
    begins, ends = (admissions[column].str.to_datetime().dt.epoch("s").to_numpy() for column in ("admittime", "dischtime"))
    subjects, stays = admissions["subject_id"].to_numpy(), admissions["hadm_id"].to_numpy()
    for start in range(0, num_rows, AT_ONCE):
        size = min(AT_ONCE, num_rows - start)
        place = np.sort(rng.integers(start * len(stays) // num_rows, max(1, (start + size) * len(stays) // num_rows), size))
        at = begins[place] + (ends - begins)[place] * rng.random(size)
        at = at - (rng.random(size) < 0.2) * 86400.0 * rng.integers(1, 300, size)  # some between the admissions
        item = rng.choice(len(items), size, p=weights / weights.sum())
        number = pl.Series(np.round(lower[item] + (upper - lower)[item] * rng.beta(2, 6, size), 2))
        yield Frame(
            {
                "labevent_id": np.arange(start, start + size),
                "subject_id": subjects[place],
                "hadm_id": pl.Series(stays[place]).set(pl.Series(rng.random(size) < 0.26), None),
                "specimen_id": rng.integers(0, 99_999_999, size),
                "itemid": items[item],
                "order_provider_id": "P28Z0X",
                "charttime": times(at),
                "storetime": times(at + 1800),
                "value": number.cast(pl.String),
                "valuenum": number.set(pl.Series(rng.random(size) < 0.12), None),
                "valueuom": units.gather(item),
                "ref_range_lower": 0.4,
                "ref_range_upper": 1.1,
                "flag": pl.Series([None, "abnormal"]).gather((rng.random(size) < 0.3).astype(np.uint32)),
                "priority": "ROUTINE",
                "comments": pl.Series([None, "IF FASTING, 70-100 NORMAL, >125 PROVISIONAL DIABETES"]).gather(
                    (rng.random(size) < 0.1).astype(np.uint32)
                ),
            }
        )


def gzipped(frame: Frame, *, header: bool) -> bytes:
    """A csv as one gzip member; members after one another are one file."""
    packer = zlib.compressobj(1, zlib.DEFLATED, GZIP)
    return packer.compress(frame.write_csv(include_header=header).encode()) + packer.flush()


def write(path: Path, frames: Iterator[Frame]) -> None:
    """Write a csv.gz, a few parts being packed at a time."""
    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        pending: list[Any] = []
        for number, frame in enumerate(frames):
            pending.append(pool.submit(gzipped, frame, header=number == 0))
            if len(pending) > (os.cpu_count() or 1):
                file.write(pending.pop(0).result())
        for part in pending:
            file.write(part.result())


def generate(root: Path, lab_rows: int) -> None:
    """Write all tables below `root`, unless a marker says that they are there."""
    marker = root / f"{lab_rows}.rows"
    if marker.is_file():
        return
    shutil.rmtree(root, ignore_errors=True)
    (hosp := root / "hosp").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = {name: max(10, size * lab_rows // FULL["labevents"]) for name, size in FULL.items()}
    patients, admissions = patients_and_admissions(sizes["patients"], sizes["admissions"], rng)
    items = Frame({"itemid": [50912], "label": ["Creatinine"], "fluid": ["Blood"], "category": ["Chemistry"]})
    small = {"patients": patients, "admissions": admissions, "d_labitems": items}
    small |= {name: codes(sizes[name], admissions, rng) for name in ("diagnoses_icd", "procedures_icd")}
    for name, frame in small.items():
        write(hosp / f"{name}.csv.gz", iter([frame]))
    write(hosp / "labevents.csv.gz", labevents(lab_rows, admissions, rng))
    marker.touch()


def read_once(root: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One run of the reader in a fresh process."""
    command = [sys.executable, "-c", READ, str(root), json.dumps(options)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    print("\n".join(found.pop("notes")), file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mimic_iv", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lab-rows", type=int, default=FULL["labevents"])
    parser.add_argument("--index", choices=["last", "first", "all"], default="last")
    parser.add_argument("--cache", action="store_true")
    args = parser.parse_args()
    root = args.out.absolute() / "mimiciv"
    started = time.perf_counter()
    generate(root, args.lab_rows)
    print(f"tables: {time.perf_counter() - started:.0f} s")
    table = root / "hosp" / "labevents.csv.gz"
    options: dict[str, Any] = {"index": args.index}
    document: dict[str, Any] = {
        "benchmark": "mimic_iv",
        "lab_rows": args.lab_rows,
        "gz_mb": table.stat().st_size >> 20,
        **options,
    }
    if args.cache:
        options["cache"] = str(args.out.absolute() / "cache")
        shutil.rmtree(options["cache"], ignore_errors=True)
        document["making the cache"] = read_once(root, options)
        document["from the cache"] = read_once(root, options)
    else:
        document["read"] = read_once(root, options)
    for name in [key for key in document if isinstance(document[key], dict)]:
        run = document[name]
        print(f"{name}: {run['seconds']} s, peak {run['peak_mb']} MB, {run['rows']} rows of {run['columns']} columns")
    document |= {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(document | {"versions": {name: version(name) for name in ("polars", "numpy")}}))


if __name__ == "__main__":
    main()
