import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle import export_bundle, run_material
from export.errors import ParityError
from export.verify import ATOL
from service.bundle.errors import BundleError
from service.bundle.output import OUTPUT_NAMES
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle, open_bundle
from tests.training.small_data import ALL_MODALITIES, recipe, records
from training.checkpoint import load_checkpoint
from training.data.dataset import load_dataset
from training.errors import RunError
from training.inference import predict


def test_a_bundle_opens_and_replays_its_example(rich_bundle: Bundle) -> None:
    """The written folder is whole, and its graph answers the example as recorded."""
    bundle = open_bundle(rich_bundle.path)
    assert {p.name for p in bundle.path.iterdir()} == {"model.onnx", "reference.json", "manifest.json"}
    assert Predictor(bundle, provider="cpu").replay_example() <= 1e-5
    assert bundle.manifest.example.record["papers"]["codes"] == ["I10"]


def test_the_manifest_tells_the_run(rich_run: Path, rich_bundle: Bundle) -> None:
    """Metrics with intervals, explanation of the test rows, calibration, card, provenance with recipe, parity, interface."""
    manifest, checkpoint = rich_bundle.manifest, load_checkpoint(rich_run)
    document = json.loads((rich_run / "metrics.json").read_text())
    for split in ("validation", "test"):
        for name, value in manifest.metrics[split].items():
            assert value.model_dump() == document["splits"][split]["metrics"][name]
            assert value.low is not None
            assert value.high is not None
    assert manifest.explanation is not None
    assert manifest.explanation.split == "test"
    assert manifest.explanation_validity is not None
    assert manifest.explanation_validity.model_dump(mode="json") == document["splits"]["test"]["validity"]
    assert [e.name for e in manifest.explanation.experts] == [e.name for e in manifest.experts]
    assert [e.name for e in manifest.experts][-3:] == ["unique:signal", "synergy", "redundancy"]
    np.testing.assert_array_equal(manifest.calibration.scale, checkpoint.model.calibration.scale)
    assert manifest.calibration.num_rows == 24
    assert manifest.model_card == checkpoint.recipe.model_card
    assert manifest.provenance["seed"] == 0
    assert manifest.provenance["num_rows"] == {"train": 72, "validation": 24, "test": 24}
    assert manifest.provenance["recipe"]["train"]["epochs"] == 2
    assert "torch" in manifest.provenance["versions"]
    assert (manifest.parity.atol, manifest.parity.cases) == (ATOL, 4 * (1 + 3 + 2 * 4))
    assert 0 <= manifest.parity.max_abs_diff <= ATOL
    assert manifest.features.model_dump() == checkpoint.schema.model_dump()
    assert (manifest.graph.precision, manifest.graph.target) == ("fp32", "cuda")
    assert json.loads((rich_bundle.path / "reference.json").read_text()) == document["reference"]


def test_the_graph_answers_as_the_model_on_real_rows(rich_run: Path, rich_bundle: Bundle) -> None:
    """Every row of the data, with its missing values, one by one and all at once."""
    checkpoint, predictor = load_checkpoint(rich_run), Predictor(rich_bundle, provider="cpu")
    dataset = load_dataset(recipe(modalities=ALL_MODALITIES).data, rich_run.parent, seed=0)
    assert any(np.isnan(array).any() for array in dataset.arrays.values())
    wanted = predict(checkpoint.model, checkpoint.schema, dataset.arrays)
    found = predictor.run(dict(dataset.arrays))
    for name in OUTPUT_NAMES:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-5, rtol=0)
    for row in range(10):
        alone = predictor.run({name: array[row : row + 1] for name, array in dataset.arrays.items()})
        np.testing.assert_allclose(alone.logits[0], wanted.logits[row], atol=1e-5, rtol=0)


def test_records_answer_as_in_training(rich_run: Path, rich_bundle: Bundle) -> None:
    """A record through the opened bundle's own schema and graph gets the probability training computed for it."""
    bundle = open_bundle(rich_bundle.path)
    dataset = load_dataset(recipe(modalities=ALL_MODALITIES).data, rich_run.parent, seed=0)
    sent = records(rich_run.parent, dataset.schema)[:30]
    found = Predictor(bundle, provider="cpu").run(bundle.manifest.features.encode_many(sent))
    checkpoint = load_checkpoint(rich_run)
    wanted = predict(checkpoint.model, checkpoint.schema, {name: array[:30] for name, array in dataset.arrays.items()})
    np.testing.assert_allclose(found.prediction, wanted.prediction, atol=1e-5, rtol=0)


def test_a_graph_that_differs_leaves_nothing(
    rich_run: Path, rich_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that changes after the graph was built: every failing comparison is listed and no file stays."""
    material, graph = run_material(rich_run), onnx.load(rich_bundle.model_path)
    with torch.no_grad():
        material.model.experts[0].head.bias.add_(0.1)  # type: ignore[operator, union-attr]
    monkeypatch.setattr("export.bundle.build_graph", lambda *_, **__: graph)
    with pytest.raises(ParityError) as error:
        export_bundle(material, tmp_path / "deep" / "bundle")
    failures = error.value.failures
    cases = {failure.split(":")[0] for failure in failures}
    assert {"batch 1, complete", "batch 64, 90% of values missing", "batch 7, only labs present"} <= cases
    assert len(cases) == 48
    assert any("expert_logits differs by 0.1" in failure for failure in failures)
    assert all(failure in str(error.value) for failure in failures)
    assert list((tmp_path / "deep").iterdir()) == []


def test_what_is_there_already_is_not_overwritten(rich_run: Path, rich_bundle: Bundle, tmp_path: Path) -> None:
    """An existing bundle or folder with content is refused and stays as it is."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="already exists; remove it or choose another name"):
        export_bundle(run_material(rich_run), tmp_path / "bundle")
    assert [p.name for p in tmp_path.rglob("*")] == ["bundle", "mine.txt"]


@pytest.mark.parametrize(
    "damage", ["absent", '{"splits": {}}', '{"splits": {"test": 3}}', '{"splits": {"test": {"metrics": {"a": 1}}}}']
)  # fmt: skip
def test_a_run_without_its_metrics_is_refused(rich_run: Path, tmp_path: Path, damage: str) -> None:
    """A checkpoint alone, or beside a metrics.json that holds something else, is one line."""
    shutil.copy(rich_run / "checkpoint.pt", tmp_path)
    if damage != "absent":
        (tmp_path / "metrics.json").write_text(damage)
    with pytest.raises(RunError, match="no such file" if damage == "absent" else "metrics.json: is damaged") as error:
        run_material(tmp_path)
    assert "\n" not in str(error.value)
