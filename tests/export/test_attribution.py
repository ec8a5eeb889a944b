"""The second graph: exported, compared with the model, left out with its reason where it cannot be trusted."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import export.attribution
from export.__main__ import main
from export.attribution import build_attribution, methods
from export.bundle import export_bundle, run_material
from export.errors import ExportError
from export.verify import draw_rows, hide
from service.bundle.attribution import LABEL_INPUT, attribution_outputs, one_hot
from service.bundle.explanation import explain
from service.bundle.predictor import Predictor
from service.bundle.store import ATTRIBUTION_FILE, Bundle, open_bundle
from tests.training import small_model
from tests.training.small_data import records
from training.attribution.base import Attribution
from training.attribution.gradients import IntegratedGradients
from training.attribution.shapley import SampledShapley
from training.model.fusion import FUSIONS
from training.model.mixture import I2MoE

POINTS = 6
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def attributed(rich_run: Path) -> Bundle:
    """The run of every kind of feature, exported with its second graph."""
    out = rich_run.parent / "attributed" / "bundle"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main([str(rich_run), "--out", str(out), "--attribution-points", "12"]) == 0
    assert "attribution to features by integrated gradients, 12 points, leaves" in told.getvalue()
    return open_bundle(out)


def compare(graph: onnx.ModelProto, module: Attribution, sizes: tuple[int, ...]) -> None:
    """The graph answers as the module for batches of these sizes, values and modalities missing."""
    schema = small_model.schema()
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in sizes:
        generator = np.random.default_rng(size)
        rows = hide(draw_rows(schema, size, generator), schema, 0.3, generator)
        rows["labs"][0] = np.nan
        label = one_hot(np.arange(size) % 2, 2)
        found = session.run(attribution_outputs(schema), {**rows, LABEL_INPUT: label})
        wanted = module(*(torch.from_numpy(rows[name]) for name in schema.names), torch.from_numpy(label))
        assert (found[1][0] == 0).all()  # the missing modality's attributions
        for actual, expected in zip(found, (*wanted.columns, *wanted[1:]), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("fusion", "kind"), [("transformer", "patch"), ("late", "mlp")])
def test_gradients_become_a_graph(fusion: str, kind: str) -> None:
    """Backbones and encoders: any batch size, the rules of every served graph, the model's numbers."""
    encoder = {"kind": kind} if kind != "feature" else small_model.TINY["encoders"]["default"]
    model = small_model.model({"fusion": fusion, "encoders": {"default": encoder}})
    module = IntegratedGradients(model, small_model.TASK, num_points=POINTS)
    graph = build_attribution(module, small_model.schema(), small_model.TASK)
    assert tuple(value.name for value in graph.graph.output) == attribution_outputs(small_model.schema())
    compare(graph, module, (1, 2, 9))


def test_sampled_shapley_values_become_a_graph_where_a_router_jumps() -> None:
    """No gradient is needed."""
    module = SampledShapley(small_model.model({"fusion": "switchgate"}), small_model.schema(), small_model.TASK)
    compare(build_attribution(module, small_model.schema(), small_model.TASK), module, (1, 2, 9))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_are_for_models_that_do_not_jump(fusion: str) -> None:
    """They come first where they can be right; Shapley values are left for all others."""
    found = list(methods(small_model.model({"fusion": fusion}), small_model.schema(), small_model.TASK, num_points=POINTS))
    assert isinstance(found[-1], SampledShapley)
    assert [isinstance(one, IntegratedGradients) for one in found[:-1]] == ([] if FUSIONS[fusion].jumps else [True])


def test_the_bundle_holds_the_graph_and_tells_how_good_it_is(attributed: Bundle) -> None:
    """A file of its own, named with its hash; method, baseline, interface, gap and parity in the manifest."""
    info = attributed.manifest.attribution
    assert info is not None
    assert ATTRIBUTION_FILE in attributed.manifest.files
    assert attributed.manifest.attribution_left_out is None
    assert (info.method, info.num_points) == ("integrated gradients", 12)
    assert [t.name for t in info.inputs] == [*attributed.manifest.features.names, LABEL_INPUT]
    assert tuple(t.name for t in info.outputs) == attribution_outputs(attributed.manifest.features)
    assert 0 <= info.parity.max_abs_diff <= info.parity.atol
    assert 0 < info.completeness.mean_gap <= info.completeness.limit * info.completeness.mean_change
    assert info.completeness.mean_gap <= info.completeness.max_gap
    assert b"/" + b"work" not in (attributed.path / ATTRIBUTION_FILE).read_bytes()


def test_attributions_of_records_add_up_to_the_contributions_of_the_first_graph(attributed: Bundle, rich_run: Path) -> None:
    """Both graphs tell of one model: contributions agree, codes and words of a record are attributed one by one."""
    predictor, manifest = Predictor(attributed, provider="cpu"), attributed.manifest
    arrays = manifest.features.encode_many(records(rich_run.parent, manifest.features)[:20])
    explanation = explain(predictor.run(arrays), manifest.task, manifest.calibration)
    found = predictor.attribute(arrays, one_hot(explanation.label, 2))
    np.testing.assert_allclose(found.contribution, explanation.contribution, atol=1e-5)
    for name, part in found.columns.items():
        assert (part[np.repeat(np.isnan(arrays[name])[:, None], part.shape[1], axis=1)] == 0).all()
    papers = found.columns["papers"]
    absent = np.repeat((arrays["papers"] == 0)[:, None], papers.shape[1], axis=1)
    assert (papers[absent] == 0).all()
    assert (papers[~absent] != 0).any()


def reuse(monkeypatch: pytest.MonkeyPatch, attributed: Bundle, *, change: Callable[[I2MoE], None] = lambda _: None) -> None:
    """Take the graphs that were built already, as building takes long. `change` happens to the model after the first."""
    graph = onnx.load(attributed.path / ATTRIBUTION_FILE)

    def build(module: Attribution, *_: object) -> onnx.ModelProto:
        assert isinstance(module.model, I2MoE)
        change(module.model)
        return graph

    monkeypatch.setattr("export.bundle.build_graph", lambda *_, **__: onnx.load(attributed.model_path))
    monkeypatch.setattr("export.bundle.build_attribution", build)


def test_attributions_that_do_not_add_up_leave_the_graph_out_with_the_reason(
    attributed: Bundle, rich_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is written and predicts; its manifest says what the attributions leave untold."""
    reuse(monkeypatch, attributed)
    monkeypatch.setattr(export.attribution, "GAP_LIMIT", -1.0)
    bundle = export_bundle(run_material(rich_run), tmp_path / "bundle", attribution_points=12)
    assert bundle.manifest.attribution is None
    assert "of the contributions' change untold" in str(bundle.manifest.attribution_left_out)
    assert {p.name for p in bundle.path.iterdir()} == {"model.onnx", "reference.json", "manifest.json"}
    assert Predictor(open_bundle(bundle.path), provider="cpu").replay_example() <= 1e-5


def test_what_cannot_be_written_as_a_graph_leaves_it_out_with_the_reason(
    attributed: Bundle, rich_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the exporter stumbles over, whichever the method: the bundle is written without the graph."""

    def stumble(*_: object) -> None:
        raise RuntimeError("no such operator at /some/path")

    reuse(monkeypatch, attributed)
    monkeypatch.setattr("export.bundle.build_attribution", build_attribution)
    monkeypatch.setattr(export.attribution, "_export", stumble)
    bundle = export_bundle(run_material(rich_run), tmp_path / "bundle", attribution_points=4)
    assert bundle.manifest.attribution_left_out == "; ".join(
        f"{method} cannot be written as a graph (RuntimeError)" for method in ("integrated gradients", "sampled Shapley values")
    )
    assert not (bundle.path / ATTRIBUTION_FILE).exists()


def test_shapley_values_take_the_place_of_gradients_that_cannot_be_traced(
    attributed: Bundle, rich_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle has its second graph by the other method, which leaves nothing untold."""

    def stumble(*_: object) -> None:
        raise RuntimeError

    reuse(monkeypatch, attributed)
    monkeypatch.setattr("export.bundle.build_attribution", build_attribution)
    monkeypatch.setattr(export.attribution, "_trace", stumble)
    bundle = export_bundle(run_material(rich_run), tmp_path / "bundle", attribution_points=4)
    info = open_bundle(bundle.path).manifest.attribution
    assert info is not None
    assert info.method == "sampled Shapley values"
    assert info.completeness.max_gap <= 1e-5
    assert info.records_at_once == min(8, max(1, 4096 // info.num_points))


def test_a_graph_of_another_model_is_found_out(
    attributed: Bundle, rich_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that the graph does not have: the graph is left out, with the difference."""

    def change(model: I2MoE) -> None:
        with torch.no_grad():
            model.experts[0].head.weight.mul_(1.1)  # type: ignore[operator, union-attr]

    reuse(monkeypatch, attributed, change=change)
    bundle = export_bundle(run_material(rich_run), tmp_path / "bundle", attribution_points=12)
    assert "the attribution graph differs from the model by" in str(bundle.manifest.attribution_left_out)


def test_inputs_too_wide_for_a_service_are_refused_before_tracing() -> None:
    """Rows times columns have a limit."""
    module = IntegratedGradients(small_model.model(), small_model.TASK, num_points=POINTS)
    module.num_rows = 1_000_000_000
    with pytest.raises(ExportError, match=r"integrated gradients: expected at most \d+ cells per record, found 11000000000"):
        build_attribution(module, small_model.schema(), small_model.TASK)
