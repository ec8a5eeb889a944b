"""`python -m service.bundle`: look at a bundle, score a file."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import __main__ as module
from service.bundle import prediction_files
from service.bundle.__main__ import main, read_jsonl
from service.bundle.prediction_files import write_predictions
from service.bundle.predictor import num_cuda_devices
from service.bundle.store import MANIFEST_FILE, Bundle
from tests.tiny_bundle import EXAMPLE_RISK, EXPERTS, POISON, TINY_UNCERTAINTY, tiny_example, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("main") / "bundle")


RECORDS: list[dict[str, Any]] = [tiny_example(), {"id": 2, "labs": {"crea": "x"}}, {"labs": [1.0, None]}]


def write_jsonl(path: Path, records: list[Any]) -> Path:
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of an answer file of any kind."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return (pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)).to_dicts()


def predict(bundle: Bundle, source: Path, out: Path) -> int:
    """Run the command in this process."""
    return main(["predict", str(bundle.path), str(source), "--out", str(out), "--provider", "cpu"])


def test_show_tells_a_screenful(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """What is predicted from what, how well, by which experts, and for whom."""
    assert main(["show", str(bundle.path)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "tiny 1.0.0",
        "death within one year (binary: alive, dead)",
        "labs: 2 features, 2 columns",
        "test         auroc 0.800 (0.750 to 0.850)",
        "unique:history           weight 0.300  share of contribution 0.206  dominant in 0 %",
        "parity       1.0e-07 over 3 cases (limit 0.0001)",
        "intended_use tests",
    ):
        assert words in shown


def test_show_does_without_what_a_bundle_may_lack(bundle: Bundle) -> None:
    """Experts are named also without a dataset explanation, and a metric may have no interval."""
    manifest = bundle.manifest
    metric = manifest.metrics["test"]["auroc"].model_copy(update={"low": None})
    bare = manifest.model_copy(update={"explanation": None, "metrics": {"test": {"auroc": metric}}})
    shown = module.describe(Bundle(bundle.path, bare)).splitlines()
    assert [line.split()[-1] for line in shown if line.startswith("  expert")] == list(EXPERTS)
    assert "  test         auroc 0.800" in shown


def test_show_json_is_the_manifest(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs, the manifest as it is on disk."""
    assert main(["show", str(bundle.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((bundle.path / MANIFEST_FILE).read_text())


def test_jsonl_is_scored_with_explanations(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Good rows are answered in order, a bad row says why, and the command says how many of each."""
    out = tmp_path / "out.jsonl"
    assert predict(bundle, write_jsonl(tmp_path / "in.jsonl", RECORDS), out) == 0
    first, second, third = read_answers(out)
    assert (first["id"], first["probability"], len(first["explanation"]["experts"])) == ("stay-1", EXAMPLE_RISK, 4)
    assert second["error"]["message"] == "labs.crea: must be a number, found a string"
    assert (second["id"], second["status"]) == ("2", "error")
    assert (third["id"], third["status"], third["missing"]) == (None, "ok", ["labs.sod", "history"])
    assert capsys.readouterr().out == f"3 rows written to {out}: 2 predictions, 1 errors\n"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_answers_have_one_flat_row_each(bundle: Bundle, tmp_path: Path, suffix: str) -> None:
    """Answers as a table, bad rows among them, the first included."""
    out = tmp_path / f"out.{suffix}"
    assert predict(bundle, write_jsonl(tmp_path / "in.ndjson", RECORDS[::-1][1:]), out) == 0
    bad, good = read_answers(out)
    assert (bad["status"], bad["error"], bad["label"]) == ("error", "labs.crea: must be a number, found a string", None)
    assert (good["id"], good["status"], good["label"], good["risk_band"]) == ("stay-1", "ok", "dead", "high")
    assert good["probability"] == EXAMPLE_RISK
    assert [good[f"weight {name}"] for name in EXPERTS] == [0.4, 0.3, 0.2, 0.1]
    assert [good[f"contribution {name}"] for name in EXPERTS] == [0.8, 0.6, 0.6, 0.1]
    assert good["summary"].startswith("Risk of death within one year: 51 % (high); ")


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_tables_are_scored(bundle: Bundle, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A table is scored row by row; absent columns are told and a junk cell spoils its row only."""
    import gzip

    source, out = tmp_path / f"in.{suffix}", tmp_path / "out.jsonl"
    text = "id,labs.crea,age,sex\n007,4,70,male\n8,hemolyzed,70,male\n9,,,\n"
    if suffix == "parquet":
        frame = pl.read_csv(text.encode(), infer_schema=False)
        frame.write_parquet(source)
    else:
        source.write_bytes(gzip.compress(text.encode()) if suffix == "csv.gz" else text.encode())
    assert predict(bundle, source, out) == 0
    good, junk, empty = read_answers(out)
    assert (good["id"], good["probability"], good["missing"]) == ("007", EXAMPLE_RISK, ["labs.sod"])
    assert [problem["loc"] for problem in junk["error"]["detail"]] == [["labs", "crea"]]
    assert empty["error"]["detail"][0]["type"] == "missing"
    assert capsys.readouterr().err == f"{source}: no column for labs.sod: treated as missing\n"


def test_a_table_without_ids_is_scored(bundle: Bundle, tmp_path: Path) -> None:
    """Ids are the caller's choice; numbers become text."""
    (tmp_path / "in.csv").write_text("crea,sod,age,sex\n4,140,70,male\n")
    assert predict(bundle, tmp_path / "in.csv", tmp_path / "out.jsonl") == 0
    assert read_answers(tmp_path / "out.jsonl")[0]["id"] is None
    pl.DataFrame({"id": [7], "crea": [4.0], "sod": [140], "age": [70], "sex": ["male"]}).write_parquet(tmp_path / "in.parquet")
    assert predict(bundle, tmp_path / "in.parquet", tmp_path / "out.jsonl") == 0
    assert read_answers(tmp_path / "out.jsonl")[0]["id"] == "7"


def test_long_files_are_scored_in_batches(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order survives batches, bad rows and blank lines."""
    monkeypatch.setattr(module, "_BATCH_SIZE", 3)
    records = [{"id": i, "labs": {"crea": 1.0 + i}} if i % 4 else {"id": i} for i in range(10)]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    source.write_text("\n" + source.read_text().replace("\n", "\n \n"))
    assert predict(bundle, source, tmp_path / "out.jsonl") == 0
    answers = read_answers(tmp_path / "out.jsonl")
    assert [answer["id"] for answer in answers] == [str(i) for i in range(10)]
    assert [answer["status"] == "ok" for answer in answers] == [i % 4 > 0 for i in range(10)]
    risks = [answer["probability"] for answer in answers if answer["status"] == "ok"]
    assert risks == sorted(risks)


@pytest.mark.parametrize(("suffix", "content"), [("jsonl", ""), ("csv", "crea\n")])
@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
def test_a_file_without_rows_has_no_answers(bundle: Bundle, tmp_path: Path, suffix: str, content: str, out: str) -> None:
    """No rows in, no rows out."""
    source = tmp_path / f"in.{suffix}"
    source.write_text(content)
    assert predict(bundle, source, tmp_path / out) == 0
    assert (tmp_path / out).exists()


def test_one_record_that_breaks_the_graph_fails_alone(tmp_path: Path) -> None:
    """A number that makes the graph answer NaN is its row's error, and its neighbours are answered."""
    poisoned = write_tiny_bundle(tmp_path / "bundle", poisoned=True)
    records = [{"id": i, "labs": {"crea": crea}} for i, crea in enumerate([1.0, POISON, 2.0])]
    assert predict(poisoned, write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl") == 0
    answers = read_answers(tmp_path / "out.jsonl")
    assert [answer["status"] for answer in answers] == ["ok", "error", "ok"]
    assert answers[1]["error"]["code"] == "INFERENCE_FAILED"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 2 is not a JSON object"),
        (b"[1]", "line 2 is not a JSON object"),
        (b"\xff\xfe{}", "line 2 is not a JSON object"),
        (b"[" * 100_000, "line 2 is not a JSON object"),
        (b"9" * 5000, "line 2 is not a JSON object"),
    ],
    ids=["cut", "list", "binary", "nested", "long number"],
)
def test_a_line_that_is_no_record_ends_in_an_error(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes, words: str
) -> None:
    """A damaged file is one line of error, exit status 1, and no answer file, not even a part of one."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"labs": {"crea": 1}}\n' + line + b"\n")
    assert predict(bundle, source, tmp_path / "out.jsonl") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {source}: {words}\n")
    assert list(tmp_path.iterdir()) == [source]


def test_a_failed_run_keeps_the_answers_of_the_last_one(bundle: Bundle, tmp_path: Path) -> None:
    """Only a whole file replaces a file."""
    out = tmp_path / "out.jsonl"
    out.write_text("last week's\n")
    source = tmp_path / "in.jsonl"
    source.write_text("{\n")
    assert predict(bundle, source, out) == 1
    assert out.read_text() == "last week's\n"


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    """Files of Windows editors begin with a mark."""
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"labs": {}}\n')
    assert list(read_jsonl(tmp_path / "in.jsonl")) == [{"labs": {}}]


@pytest.mark.parametrize(
    "case",
    [
        ("none.jsonl", "out.jsonl", "none.jsonl: no such file"),
        ("none.csv", "out.jsonl", "none.csv: no such file"),
        ("in.txt", "out.jsonl", "in.txt: expected a file ending in .jsonl, .ndjson, .csv, .csv.gz, .parquet"),
        ("in.jsonl", "out.txt", "out.txt: expected a file ending in .jsonl, .ndjson, .csv, .parquet"),
        ("in.jsonl", "out.csv.gz", "out.csv.gz: expected a file ending in"),
        ("in.jsonl", "none/out.jsonl", "No such file or directory"),
        ("in.jsonl", "folder.jsonl", "directory"),
        ("in.jsonl", "in.jsonl", "is the file to score; expected another to write"),
    ],
    ids=lambda case: f"{case[0]} to {case[1]}",
)
def test_a_wrong_path_ends_in_an_error(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: tuple[str, str, str]
) -> None:
    """A wrong file name is one line of error and exit status 1, and nothing new is left."""
    source, out, words = case
    write_jsonl(tmp_path / "in.jsonl", RECORDS)
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(tmp_path.iterdir())
    assert predict(bundle, tmp_path / source, tmp_path / out) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert before == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["show"], ["predict", "in.jsonl", "--out", "out.jsonl"]], ids=["show", "predict"])
def test_a_bad_bundle_ends_in_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    """What is no bundle is one line of error and exit status 1."""
    assert main([command[0], str(tmp_path), *command[1:]]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: has no manifest.json")
    assert error.count("\n") == 1


@pytest.mark.skipif(num_cuda_devices() > 0, reason="this machine has a GPU")
def test_cuda_without_gpu_ends_in_an_error(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who asks for CUDA is told that there is none."""
    source = write_jsonl(tmp_path / "in.jsonl", RECORDS)
    command = ["predict", str(bundle.path), str(source), "--out", str(tmp_path / "out.jsonl"), "--provider", "cuda"]
    assert main(command) == 1
    assert "CUDA was asked for" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_files_are_not_patterns(bundle: Bundle, tmp_path: Path, suffix: str) -> None:
    """A star or brackets in a name are letters: no neighbour's rows, and no lost run."""
    for name, crea in ((f"q*.{suffix}", 4.0), (f"q[1].{suffix}", 2.0), (f"q2.{suffix}", 1.0)):
        frame = pl.DataFrame({"id": [name], "crea": [crea]})
        frame.write_csv(tmp_path / name) if suffix == "csv" else frame.write_parquet(tmp_path / name)
    for source in (f"q*.{suffix}", f"q[1].{suffix}"):
        out = tmp_path / f"out[{suffix}].{suffix}"
        assert predict(bundle, tmp_path / source, out) == 0
        (answer,) = (pl.read_csv(out, glob=False) if suffix == "csv" else pl.read_parquet(out, glob=False)).to_dicts()
        assert answer["id"] == source


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
def test_half_a_character_spoils_its_id_only(bundle: Bundle, tmp_path: Path, out: str) -> None:
    """JSON may hold what no text can."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "labs": {"crea": 1}}\n{"id": "\\ud800b", "labs": {"crea": 1}}\n')
    assert predict(bundle, source, tmp_path / out) == 0
    assert [answer["id"] for answer in read_answers(tmp_path / out)] == ["a", "?b"]


@pytest.mark.parametrize("option", ["--threads", "--ray"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_numbers_of_workers_are_checked(bundle: Bundle, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    """At least one."""
    with pytest.raises(SystemExit):
        main(["predict", str(bundle.path), "in.jsonl", "--out", "out.jsonl", f"{option}={value}"])
    assert "expected a whole number from 1 on" in capsys.readouterr().err


EXTREMES = [0.0, -0.0, 1.0, 0.1, 1e-4, 1e-5, 1.23e-5, 9.9e-5, 1e-6, 1.5e-7, 1e15, 1e16, 1.5e22, 1 / 3, 5e-324]


@settings(deadline=None, max_examples=200)
@given(
    numbers=st.lists(
        st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES), min_size=4, max_size=4
    ),
    text=st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=4),
    flag=st.none() | st.booleans(),
)
def test_answers_in_csv_are_spelled_as_polars_spells_them(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float | None], text: str | None, flag: bool | None
) -> None:
    """Shortest numbers, true and false, quotes only where they are needed: who reads the files sees no difference."""
    uncertainty = dict(zip(("entropy", "disagreement"), numbers, strict=False)) | {"abstain": flag}
    expert = {"weight": numbers[2], "contribution": numbers[3]}
    answer = {"id": text, "status": "ok", "uncertainty": uncertainty, "explanation": {"experts": [expert], "summary": text}}
    folder = tmp_path_factory.mktemp("csv")
    for suffix in ("csv", "parquet"):
        assert write_predictions([[answer]], folder / f"out.{suffix}", ["unique:labs"]) == 1
    assert (folder / "out.csv").read_text() == pl.read_parquet(folder / "out.parquet").write_csv()


def test_answers_in_parquet_have_the_same_types_as_ever(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, numbers and flags, whether or not there is anything in a column; row groups of some size, in order, compressed."""
    monkeypatch.setattr(prediction_files, "_ROWS_IN_GROUP", 300)
    records = [{"id": i, "labs": {"crea": 1.0}} for i in range(1000)]
    for name, rows in (("in.jsonl", records), ("none.jsonl", [])):
        assert predict(bundle, write_jsonl(tmp_path / name, rows), tmp_path / f"{name}.parquet") == 0
    full, empty = pl.read_parquet(tmp_path / "in.jsonl.parquet"), pl.read_parquet(tmp_path / "none.jsonl.parquet")
    flags = {"abstain", "experts_disagree"}
    texts = {"id", "status", "label", "risk_band", "error", "missing", "warnings", "set", "dominant", "summary"}
    assert full.schema == empty.schema
    assert {name: type_ for name, type_ in full.schema.items() if type_ != pl.Float64} == {
        **dict.fromkeys(texts, pl.String),
        **dict.fromkeys(flags, pl.Boolean),
    }
    assert full["id"].to_list() == [str(i) for i in range(1000)]
    metadata = pq.read_metadata(tmp_path / "in.jsonl.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [384, 384, 232]
    assert metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, out: str) -> None:
    """Ctrl-C in the middle leaves no half file."""

    def interrupted() -> Iterator[list[dict[str, Any]]]:
        yield [{"id": "1", "status": "ok"}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(interrupted(), tmp_path / out, ())
    assert list(tmp_path.iterdir()) == []


def test_the_command_runs_in_its_own_process(bundle: Bundle, tmp_path: Path) -> None:
    """`python -m service.bundle` is the command; it needs neither torch nor onnx nor polars."""
    code = (
        "import sys; from service.bundle.__main__ import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'onnx', 'sklearn', 'bentoml', 'polars', 'pandas'} & set(sys.modules); sys.exit(status)"
    )
    source, out = write_jsonl(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    arguments = ["predict", str(bundle.path), str(source), "--out", str(out), "--provider", "cpu"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)
    assert len(read_answers(out)) == 3
    shown = subprocess.run(
        [sys.executable, "-m", "service.bundle", "show", str(bundle.path)], check=True, timeout=60, capture_output=True, text=True
    )
    assert shown.stdout.startswith("tiny 1.0.0")
    assert shown.stderr == ""


def test_a_file_of_another_table_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no row can be scored the exit status says so, and the file says why of each row."""
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "in.csv").write_text("colour\nblue\ngreen\n")
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(tmp_path / "bundle"), str(tmp_path / "in.csv"), "--out", str(out)]) == 1
    assert "none of 2 rows could be scored" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 2


def test_tables_of_answers_tell_how_sure_they_are(tmp_path: Path) -> None:
    """Set, entropy, disagreement and both flags have columns, empty where a record was refused or a bundle does not say."""
    source, out = write_jsonl(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.csv"
    bundle = write_tiny_bundle(tmp_path / "sure", uncertainty=TINY_UNCERTAINTY)
    assert predict(bundle, source, out) == 0
    first, second, _ = read_answers(out)
    assert (first["set"], first["abstain"], first["experts_disagree"]) == ("alive; dead", True, False)
    assert (first["entropy"], first["disagreement"], first["interval_low"]) == (pytest.approx(0.999549, abs=1e-6), 0.0, None)
    assert (second["set"], second["abstain"]) == (None, None)
    assert "uncertainty  class-conditional sets, coverage 0.9 (exact, 40 rows)" in module.describe(bundle)
    assert predict(write_tiny_bundle(tmp_path / "silent"), source, out) == 0
    assert [row["abstain"] for row in read_answers(out)] == [None] * 3


def test_flat_rows_keep_warnings_and_what_is_missing(tmp_path: Path) -> None:
    """Someone who scores to csv reads the same warnings as a client of the service."""
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "in.jsonl").write_text('{"labs": {"crea": 1e6}}\n')
    out = tmp_path / "out.csv"
    assert main(["predict", str(tmp_path / "bundle"), str(tmp_path / "in.jsonl"), "--out", str(out)]) == 0
    text = out.read_text()
    assert "outside the range seen in training" in text
    assert "history" in text
