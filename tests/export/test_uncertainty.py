"""From held-out rows to the answer over HTTP: what a run measures is what its bundle promises and its service tells."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest

from export.bundle import export_bundle, run_material
from service.bundle.__main__ import describe
from service.bundle.store import Bundle, open_bundle
from tests.service.api.in_process import serving
from tests.training.small_data import recipe, small_table
from training.checkpoint import load_checkpoint
from training.data.dataset import load_dataset
from training.inference import predict
from training.run import fit

SPLIT = {"validation": 0.2, "test": 0.2, "conformal": 0.15}
KINDS: dict[str, dict[str, Any]] = {
    "binary": {"data.labels": ["alive", "dead"]},
    "multiclass": {"data.task": "multiclass", "data.label": "stage", "data.labels": None},
    "multilabel": {"data.task": "multilabel", "data.label": ["high", "died"], "data.labels": None},
    "regression": {"data.task": "regression", "data.label": "days", "data.labels": None},
}
SINGLE = {"model.experts": "single", "objective.interaction_weight": 0.0}


def made(folder: Path, changes: dict[str, Any]) -> None:
    """A short run of 300 rows and its bundle."""
    table = small_table(num_rows=300)
    crea = table.get_column("crea").cast(pl.Float64).fill_null(1.0)
    dead = table.get_column("outcome").cast(pl.Int64)
    stage = (crea > 0.8).cast(pl.Int64) + (crea > 1.3).cast(pl.Int64)
    days, high = 40 - 12 * crea.log() + 3 * dead, (crea > 1.2).cast(pl.Int64)
    labels = (days.alias("days"), stage.alias("stage"), high.alias("high"), dead.alias("died"))
    table.with_columns(*labels).write_csv(folder / "table.csv")
    learn = {"train.epochs": 3, "train.learning_rate": 0.02, "train.ema_decay": 0.9, "uncertainty.coverage": 0.8}
    fit(recipe(learn | changes), folder, folder / "run")
    export_bundle(run_material(folder / "run"), folder / "bundle")


def read(folder: Path) -> tuple[dict[str, Any], str, Bundle]:
    """What metrics.json (which holds no NaN) says of uncertainty, the report, and the bundle."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads((folder / "run" / "metrics.json").read_text(), parse_constant=refuse)
    report = (folder / "run" / "report.html").read_text()
    return document["uncertainty"], report, open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a binary run whose recipe sets conformal rows aside. Not to be written to."""
    folder = tmp_path_factory.mktemp("binary")
    made(folder, KINDS["binary"] | {"data.split": SPLIT})
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_tells_how_sure_it_is(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    """Run, report, manifest, command line and HTTP answer agree, and the answer is as documented."""
    folder = request.getfixturevalue("binary") if kind == "binary" else tmp_path
    if kind != "binary":
        made(folder, KINDS[kind] | {"data.split": SPLIT})
    found, report, bundle = read(folder)
    info = bundle.manifest.uncertainty
    assert info is not None
    assert info.model_dump(mode="json") == found["conformal"]
    assert (info.coverage, info.guarantee, info.num_rows) == (0.8, "exact", 45)
    assert info.measured is not None
    assert info.measured.num_rows == 60
    assert f"uncertainty  {info.method}" in describe(bundle)
    assert '<section id="uncertainty">' in report
    assert "were used for nothing else" in " ".join(report.split())
    assert (found["arbitration"] is not None) == (kind in {"binary", "multiclass"})
    with serving(bundle.path) as client:
        answer = client.predict({"instances": [bundle.manifest.example.record, {"person": {"age": 50}}]})
        document, page = client.get("/docs.json").json(), client.get("/model").json()
    schema = {"$ref": "#/components/schemas/PredictResponse", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(answer)
    assert page["uncertainty"] == found["conformal"]
    for prediction in answer["predictions"]:
        told = prediction["uncertainty"]
        assert told["coverage"] == 0.8
        assert told["abstain"] == ("Caution: the model" in prediction["explanation"]["summary"]) or kind == "multilabel"
        if kind == "regression":
            half_width = info.thresholds[0]
            assert half_width is not None
            ends = [prediction["probability"] - half_width, prediction["probability"] + half_width]
            assert told["interval"] == pytest.approx(ends, abs=1e-5)
        elif kind != "multilabel":
            assert prediction["label"] in told["set"]
            assert told["abstain"] == (len(told["set"]) > 1)


def test_exact_thresholds_are_those_of_the_conformal_rows(binary: Path) -> None:
    """By hand, from the model's probabilities on exactly those rows."""
    checkpoint = load_checkpoint(binary / "run")
    dataset = load_dataset(checkpoint.recipe.data, binary, seed=0)
    arrays, target = dataset.part("conformal")
    prediction = predict(checkpoint.model, checkpoint.schema, arrays).prediction
    info = open_bundle(binary / "bundle").manifest.uncertainty
    assert info is not None
    for c, threshold in enumerate(info.thresholds):
        scores = np.sort(1 - prediction[target == c, c].astype(np.float64))
        assert threshold == scores[int(np.ceil(0.8 * (len(scores) + 1))) - 1]


def test_a_run_of_an_earlier_version_is_exported_without(binary: Path, tmp_path: Path) -> None:
    """metrics.json without the section: a bundle that does not say."""
    shutil.copytree(binary / "run", tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    document = json.loads(path.read_text())
    del document["uncertainty"]
    path.write_text(json.dumps(document))
    assert run_material(tmp_path / "run").uncertainty is None


def test_a_single_network_tells_how_sure_it_is_without_experts(tmp_path: Path) -> None:
    """The baseline has sets but nobody to disagree with; without rows of their own, thresholds are approximate."""
    made(tmp_path, KINDS["binary"] | SINGLE)
    found, report, bundle = read(tmp_path)
    info = bundle.manifest.uncertainty
    assert info is not None
    assert (info.guarantee, info.num_rows, info.disagreement_limit) == ("approximate", 60, None)
    assert "The promise is approximate" in report
    assert sum(info.rows_by_class.values()) == 60
    assert f"(approximate, 60 rows, {', '.join(f'{name} {n}' for name, n in info.rows_by_class.items())})" in describe(bundle)
    assert (found["arbitration"], found["disputed"]) == (None, None)
    assert set(found["selective"]) == {"confidence", "entropy", "random"}
    assert "Where experts differ" not in report
    with serving(bundle.path) as client:
        (prediction,) = client.predict({"instances": [bundle.manifest.example.record]})["predictions"]
    assert prediction["uncertainty"]["disagreement"] is None
    assert prediction["uncertainty"]["experts_disagree"] is None


def test_too_few_rows_are_told_as_json_can(tmp_path: Path) -> None:
    """A coverage that 60 rows cannot promise leaves no threshold: null in every file, and an answer that abstains."""
    made(tmp_path, KINDS["regression"] | SINGLE | {"uncertainty.coverage": 0.99})
    found, report, bundle = read(tmp_path)
    assert found["conformal"]["thresholds"] == [None]
    assert set(found["selective"]) == {"random"}
    assert "none: too few rows" in report
    with serving(bundle.path) as client:
        (prediction,) = client.predict({"instances": [bundle.manifest.example.record]})["predictions"]
    assert prediction["uncertainty"]["interval"] == [None, None]
    assert prediction["uncertainty"]["abstain"] is True
