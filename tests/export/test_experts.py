"""Experts laid out for the CPU and for the GPU, in float32 and in float16: the same answers, other operators."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.__main__ import main
from export.bundle import export_bundle, run_material
from export.errors import ExportError
from export.experts import OneByOne, StackedTransformers, lay_out
from export.graph import build_graph
from export.verify import PRECISION_ATOL
from service.bundle.output import OUTPUT_NAMES
from service.bundle.predictor import Predictor
from service.bundle.store import Bundle, open_bundle
from tests.training import small_model

PRODUCTS = {"Gemm", "MatMul"}


def made_different(experts: nn.ModuleList) -> nn.ModuleList:
    """Experts start as copies; trained ones differ in every number."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return experts


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("residual", ["input", "released"])
def test_stacked_experts_say_what_each_would(num_layers: int, residual: str) -> None:
    """Every depth and both residuals, for one sample and for many."""
    model = small_model.model({"num_layers": num_layers, "fusion_options": {"residual": residual}})
    experts = made_different(model.experts)
    stacked = lay_out(experts, "cuda", half=False)
    assert isinstance(stacked, StackedTransformers)
    for num_rows in (1, 9):
        tokens = torch.randn(num_rows, 3, 2, 8)
        with torch.inference_mode():
            wanted = model.run_experts(tokens).logits
            torch.testing.assert_close(stacked(tokens), wanted, atol=1e-5, rtol=1e-5)
    assert wanted.std(dim=0).min() > 1e-3


def test_a_stacked_graph_has_a_product_where_the_other_has_one_per_expert() -> None:
    """The products of the experts, and with them kernels to start, are a fifth in number; encoders are as they were."""
    model, schema = small_model.model(), small_model.schema()
    made_different(model.experts)  # or the exporter would find that all are one
    counts = {}
    for target in ("cpu", "cuda"):
        graph = build_graph(model, schema, target=target)  # type: ignore[arg-type]  # both are targets
        counts[target] = Counter(node.op_type for node in graph.graph.node)
    assert (counts["cpu"]["Attention"], counts["cuda"]["Attention"]) == (len(model.experts), 1)
    products = {target: sum(found[kind] for kind in PRODUCTS) for target, found in counts.items()}
    assert products["cpu"] - products["cuda"] >= 5 * (len(model.experts) - 1)


@pytest.mark.parametrize(
    "changes",
    [{"fusion": "switchgate"}, {"fusion": "mult"}, {"experts": "single"}],
)
def test_what_cannot_be_stacked_stays_one_by_one(changes: dict[str, Any]) -> None:
    """Other backbones, and a single expert, are laid out for the GPU as for the CPU."""
    model = small_model.model(changes)
    assert isinstance(lay_out(model.experts, "cuda", half=False), OneByOne)
    assert isinstance(lay_out(model.experts, "cpu", half=False), OneByOne)


@pytest.fixture(scope="module")
def half_bundle(rich_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The run exported in float16."""
    out = tmp_path_factory.mktemp("half") / "bundle"
    return export_bundle(run_material(rich_run), out, target="cuda", precision="fp16")


def test_a_float16_graph_holds_half_experts_and_keeps_its_tolerance(rich_bundle: Bundle, half_bundle: Bundle) -> None:
    """The experts' weights are float16, inputs, outputs and the mixture's sum float32; the manifest tells the difference."""
    manifest = open_bundle(half_bundle.path).manifest
    assert (manifest.graph.precision, manifest.graph.target) == ("fp16", "cuda")
    assert manifest.graph.outputs == rich_bundle.manifest.graph.outputs
    assert manifest.parity.atol == PRECISION_ATOL["fp16"]
    assert 0 < manifest.parity.max_abs_diff <= manifest.parity.atol
    kinds = Counter(tensor.data_type for tensor in onnx.load(half_bundle.model_path).graph.initializer if len(tensor.dims) == 3)
    assert kinds[onnx.TensorProto.FLOAT16] >= 4
    predictor, exact = (Predictor(bundle, provider="cpu") for bundle in (half_bundle, rich_bundle))
    assert predictor.replay_example() <= 1e-3
    arrays = manifest.features.encode_many([manifest.example.record] * 3)
    found, wanted = predictor.run(arrays), exact.run(arrays)
    for name in OUTPUT_NAMES:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=0.01)
    mixed = np.einsum("be,bec->bc", found.expert_weights, found.expert_logits)
    np.testing.assert_allclose(mixed, found.logits, atol=1e-5)


@pytest.mark.parametrize("backbone", ["switchgate", "interpretcc", "moepp"])
def test_routers_are_not_rounded(backbone: str) -> None:
    """A token sent elsewhere changes an expert's mind at once, so float16 is refused."""
    model = small_model.model({"fusion": backbone})
    with pytest.raises(ExportError, match="expected experts without a router, found "):
        build_graph(model, small_model.schema(), target="cuda", half=True)


def test_mult_computes_in_float16() -> None:
    """A smooth backbone that is not stacked."""
    graph = build_graph(small_model.model({"fusion": "mult"}), small_model.schema(), target="cuda", half=True)
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in graph.graph.initializer}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--precision", "fp16"], "--precision fp16 needs --target cuda, found cpu"),
        (
            ["--precision", "int8", "--calibration", "rows.csv", "--target", "cuda"],
            "--precision int8 needs --target cpu, found cuda",
        ),
    ],
)
def test_a_precision_belongs_to_a_target(
    rich_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    """float16 on a CPU and int8 on a GPU would be slower than float32."""
    assert main([str(rich_run), "--out", str(tmp_path / "bundle"), *options]) == 1
    assert why in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
