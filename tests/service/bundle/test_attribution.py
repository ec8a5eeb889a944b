import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.bundle.__main__ import main
from service.bundle.attribution import NUM_TOLD, Attribution, attribution_outputs, one_hot, tell_attribution, tell_attributions
from service.bundle.errors import BundleError, InferenceError
from service.bundle.features import ArrayFeature, CodesFeature, NumericFeature
from service.bundle.manifest import AttributionInfo
from service.bundle.predictor import Predictor
from service.bundle.schema import FeatureSchema, Modality
from service.bundle.store import ATTRIBUTION_FILE, Bundle, open_bundle
from tests.tiny_attribution import INFO, towards_dead, write_attributed_bundle
from tests.tiny_bundle import write_tiny_bundle

SCHEMA = FeatureSchema(
    modalities=(
        Modality(name="papers", features=(CodesFeature(name="dx", vocabulary=("I10", "I50", "E11")),)),
        Modality(
            name="signal",
            features=(ArrayFeature(name="wave", shape=(2,)), NumericFeature(name="rate", minimum=0, maximum=1)),
        ),
    )
)


def attribution(papers: list[float], signal: list[float], base: float = 0.5, gap: float = 0.01) -> Attribution:
    """Of one record and one expert."""
    columns = {"papers": np.array([[papers]], np.float32), "signal": np.array([[signal]], np.float32)}
    total = sum(papers) + sum(signal) + base + gap
    return Attribution(columns, *(np.array([[value]], np.float32) for value in (base, total, gap)))


def test_codes_are_told_one_by_one_and_arrays_as_a_whole() -> None:
    """A code by its name, an array by the sum of its cells, the largest first; what adds nothing is not told."""
    told = tell_attribution(attribution([0.0, -0.5, 0.25], [0.5, 0.25, 0.0]), 0, 0, SCHEMA)
    assert told.features == (("signal.wave", 0.75), ("papers.dx=I50", -0.5), ("papers.dx=E11", 0.25))
    assert (told.rest, told.base) == (0, 0.5)
    assert told.gap == pytest.approx(0.01)


def test_all_but_the_largest_are_one_sum() -> None:
    """Of many features as many as promised are named, and the rest makes the sum whole."""
    words = tuple(f"c{i}" for i in range(NUM_TOLD + 5))
    schema = FeatureSchema(modalities=(Modality(name="papers", features=(CodesFeature(name="dx", vocabulary=words),)),))
    values = np.arange(1, NUM_TOLD + 6, dtype=np.float32)
    found = Attribution({"papers": values[None, None]}, *np.zeros((3, 1, 1), np.float32))
    (told,) = tell_attributions(found, schema)[0]
    assert [name for name, _ in told.features] == [f"papers.dx=c{i}" for i in range(NUM_TOLD + 4, 4, -1)]
    assert told.rest == 1 + 2 + 3 + 4 + 5


def test_batches_can_be_taken_apart_and_put_together() -> None:
    """Rows of a batch and their join are the batch."""
    arrays = [np.arange(12, dtype=np.float32).reshape(2, 2, 3), np.arange(12, dtype=np.float32).reshape(2, 2, 3)]
    whole = Attribution.of(SCHEMA, [*arrays, *np.arange(12, dtype=np.float32).reshape(3, 2, 2)])
    assert len(whole) == 2
    joined = Attribution.join([whole.rows(slice(0, 1)), whole.rows(slice(1, 2))])
    for name in SCHEMA.names:
        np.testing.assert_array_equal(joined.columns[name], whole.columns[name])
    for name in ("base", "contribution", "gap"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


def test_outputs_are_named_after_modalities() -> None:
    """In the order of the schema, then the three sums."""
    assert attribution_outputs(SCHEMA) == ("attribution.papers", "attribution.signal", "base", "contribution", "gap")


def test_the_predictor_runs_the_second_graph(tmp_path: Path) -> None:
    """Towards each row's own label, as the tiny model's formula says."""
    predictor = Predictor(open_bundle(write_attributed_bundle(tmp_path / "bundle").path), provider="cpu")
    rows = np.array([[4, 140, 70, 1], [2, 130, 60, 0]], np.float32)
    found = predictor.attribute({"labs": rows[:, :2], "history": rows[:, 2:]}, one_hot(np.array([1, 0]), 2))
    np.testing.assert_allclose(found.contribution, towards_dead(rows) * [[1], [-1]], atol=1e-5)
    sums = sum(part.sum(axis=2) for part in found.columns.values())
    np.testing.assert_allclose(found.base + sums, found.contribution, atol=1e-5)


def test_a_graph_that_fails_or_is_not_there_is_an_inference_error(tmp_path: Path) -> None:
    """A bundle without the graph, inputs of another shape, an answer that is no number, a file that is no graph."""
    arrays = {"labs": np.array([[9.75, 1]], np.float32), "history": np.ones((1, 2), np.float32)}
    label = one_hot(np.array([0]), 2)
    with pytest.raises(InferenceError, match="has no attribution graph"):
        Predictor(write_tiny_bundle(tmp_path / "plain"), provider="cpu").attribute(arrays, label)
    poisoned = write_attributed_bundle(tmp_path / "poisoned", poisoned=True)
    with pytest.raises(InferenceError, match="not finite"):
        Predictor(poisoned, provider="cpu").attribute(arrays, label)
    with pytest.raises(InferenceError, match="could not be run"):
        Predictor(poisoned, provider="cpu").attribute(arrays, label[:, :1])
    predictor = Predictor(poisoned, provider="cpu")
    (poisoned.path / ATTRIBUTION_FILE).write_bytes(b"nothing")
    with pytest.raises(InferenceError, match="cannot load the graph"):
        predictor.attribute(arrays, label)


def test_the_file_is_checked_like_every_other(tmp_path: Path) -> None:
    """A damaged graph, and a manifest that describes one without naming its file, are refused."""
    bundle = write_attributed_bundle(tmp_path / "bundle")
    assert open_bundle(bundle.path).attribution_path == bundle.path / ATTRIBUTION_FILE
    with (bundle.path / ATTRIBUTION_FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"attribution\.onnx is damaged"):
        open_bundle(bundle.path)
    with pytest.raises(BundleError, match=r"the manifest names no attribution\.onnx"):
        write_attributed_bundle(tmp_path / "nameless", with_file=False)


@pytest.mark.parametrize("version", [1, 2])
def test_bundles_without_the_graph_still_open_and_answer(tmp_path: Path, version: int) -> None:
    """A manifest of either version that never heard of attribution."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    document = json.loads((bundle.path / "manifest.json").read_text())
    document = {k: v for k, v in document.items() if not k.startswith("attribution")} | {"format_version": version}
    (bundle.path / "manifest.json").write_text(json.dumps(document))
    opened = open_bundle(bundle.path)
    assert opened.attribution_path is None
    assert Predictor(opened, provider="cpu").replay_example() < 1e-5


def test_a_file_is_scored_with_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`predict --features`: every row's experts with theirs, a row whose attribution fails with a warning; else refused."""
    bundle = write_attributed_bundle(tmp_path / "bundle", poisoned=True).path
    rows = [{"labs": {"crea": value}} for value in (4.0, 9.75, 3.0, *[2.0] * 8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["predict", str(bundle), str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--provider", "cpu"]
    assert main([*command, "--features"]) == 0
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [bool(prediction["warnings"]) for prediction in told] == [False, True, *[False] * 9]
    assert "features" not in told[1]["explanation"]["experts"][0]
    values = [abs(told[i]["explanation"]["experts"][0]["features"][0]["attribution"]) for i in (0, 2, 10)]
    assert values == [pytest.approx(0.4 * change, abs=1e-5) for change in (3, 2, 1)]
    assert main(command) == 0
    assert "features" not in json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["explanation"]["experts"][0]
    command[1] = str(write_tiny_bundle(tmp_path / "plain").path)
    assert main([*command, "--features"]) == 1
    assert "has no graph that attributes contributions to features" in capsys.readouterr().err


def test_attributions_of_another_shape_are_an_error(tmp_path: Path) -> None:
    """A second graph that answers for other experts than the manifest names is found when it is asked, not told."""
    bundle = write_attributed_bundle(tmp_path / "bundle")
    experts = bundle.manifest.experts
    fewer = Bundle(bundle.path, bundle.manifest.model_copy(update={"experts": experts[:2]}))
    arrays = fewer.manifest.features.encode_many([fewer.manifest.example.record])
    with pytest.raises(InferenceError, match="arrays of other shapes"):
        Predictor(fewer, provider="cpu").attribute(arrays, one_hot(np.array([1]), 2))


def test_a_path_has_points() -> None:
    """Zero points would be divided by."""
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        AttributionInfo.model_validate(INFO.model_dump() | {"num_points": 0})
