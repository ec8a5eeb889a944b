import itertools
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from export.errors import GraphError
from export.graph import BATCH, OPSET, build_graph, check_graph, graph_info, save_graph
from export.verify import ATOL, draw_rows, hide
from service.bundle.output import OUTPUT_NAMES
from service.bundle.schema import FeatureSchema, Modality
from service.bundle.store import Bundle
from tests.training import small_model
from training.checkpoint import load_checkpoint
from training.inference import predict
from training.model.build import ModelConfig, build_model


@pytest.fixture(scope="module")
def graph(rich_bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(rich_bundle.model_path)


def copied(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def run(graph: onnx.ModelProto, inputs: dict[str, Any]) -> list[Any]:
    return ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"]).run(OUTPUT_NAMES, inputs)


def schema_of(bundle: Bundle) -> FeatureSchema:
    return bundle.manifest.features


def test_the_interface_is_the_contracts(graph: onnx.ModelProto, rich_bundle: Bundle) -> None:
    """One float32 (batch, columns) input per modality by its name, the four outputs in order, one opset."""
    info = graph_info(graph, target="cuda")
    widths = {"labs": 2, "person": 3, "papers": schema_of(rich_bundle).modalities[2].width, "signal": 6}
    assert [(t.name, t.shape) for t in info.inputs] == [(name, ("batch", width)) for name, width in widths.items()]
    assert [(t.name, t.shape) for t in info.outputs] == [
        ("prediction", ("batch", 2)),
        ("logits", ("batch", 2)),
        ("expert_weights", ("batch", 6)),
        ("expert_logits", ("batch", 6, 2)),
    ]
    assert {v.type.tensor_type.elem_type for v in (*graph.graph.input, *graph.graph.output)} == {TensorProto.FLOAT}
    assert (info.opset, info.target) == (OPSET, "cuda")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
def test_any_batch_size_is_answered(graph: onnx.ModelProto, rich_bundle: Bundle, rich_run: Path, size: int) -> None:
    """Sizes that were traced and sizes that never were, with missing values, as the model answers."""
    generator, schema = np.random.default_rng(size), schema_of(rich_bundle)
    arrays = hide(draw_rows(schema, size, generator), schema, 0.4, generator)
    wanted = predict(load_checkpoint(rich_run).model, schema, arrays)
    for name, found in zip(OUTPUT_NAMES, run(graph, arrays), strict=True):
        np.testing.assert_allclose(found, getattr(wanted, name), atol=1e-5, rtol=0)


def test_patch_encoders_and_models_without_tokens_are_exported_in_evaluation_mode() -> None:
    """Whatever mode the model is in, its graph holds no dropout; numbers, one-hot and flags of the patch encoder are inside."""
    encoders = {"default": {"kind": "patch"}, "signal": {"kind": "feature", "token_mlp": True, "embedding_dim": 3}}
    model = small_model.model({"encoders": encoders, "dropout": 0.9}, missing="reject").train()
    schema = small_model.schema(missing="reject")
    built = build_graph(model, schema)
    assert not {node.op_type for node in built.graph.node} & {"Dropout", "RandomNormal", "RandomNormalLike", "If", "Loop"}
    inputs = small_model.rows(5, missing_rate=0.4)
    arrays = {name: x.numpy() for name, x in zip(schema.names, inputs, strict=True)}
    np.testing.assert_allclose(run(built, arrays)[1], predict(model, schema, arrays).logits, atol=1e-5, rtol=0)


def test_the_file_tells_nothing_of_the_machine_that_wrote_it(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """No path, no source line, no Python stack in model.onnx, and one file alone."""
    save_graph(graph, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    for trace in (str(Path(__file__).parents[2]), sys.prefix, "site-packages", str(Path.home()), ".py", "Traceback"):
        assert trace.encode() not in content, trace
    assert not re.search(rb"/(home|work|usr|tmp|Users)/", content)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def with_node(graph: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    changed = copied(graph)
    changed.graph.node.append(node)
    return changed


@pytest.mark.parametrize(
    "node",
    [helper.make_node("RandomNormalLike", ["logits"], ["noise"]), helper.make_node("RandomUniform", [], ["noise"], shape=[2]),
     helper.make_node("Bernoulli", ["prediction"], ["noise"]), helper.make_node("Dropout", ["logits"], ["noise"]),
     helper.make_node("Multinomial", ["logits"], ["noise"])],
    ids=lambda node: node.op_type,
)  # fmt: skip
def test_random_operators_are_refused(graph: onnx.ModelProto, rich_bundle: Bundle, node: onnx.NodeProto) -> None:
    """An operator that may answer differently the next time is named and refused."""
    with pytest.raises(GraphError, match=f"the graph uses {node.op_type}: random and control-flow operators cannot be served"):
        check_graph(with_node(graph, node), schema_of(rich_bundle))


def test_control_flow_is_refused(graph: onnx.ModelProto, rich_bundle: Bundle) -> None:
    """So is a branch."""
    value = helper.make_tensor_value_info("constant", TensorProto.FLOAT, [1])
    constant = helper.make_node("Constant", [], ["constant"], value_floats=[1.0])
    branch = helper.make_graph([constant], "branch", [], [value])
    yes = helper.make_tensor("v", TensorProto.BOOL, [], [True])
    changed = with_node(graph, helper.make_node("Constant", [], ["yes"], value=yes))
    changed.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch))
    with pytest.raises(GraphError, match="the graph uses If"):
        check_graph(changed, schema_of(rich_bundle))


def test_operators_cannot_hide_in_a_function(graph: onnx.ModelProto, rich_bundle: Bundle) -> None:
    """A local function of the graph is searched too."""
    changed = copied(graph)
    noise = helper.make_node("RandomNormalLike", ["x"], ["y"])
    imports = [helper.make_opsetid("", OPSET)]
    changed.functions.append(helper.make_function("local", "Noise", ["x"], ["y"], [noise], imports))
    changed.opset_import.append(helper.make_opsetid("local", 1))
    changed.graph.node.append(helper.make_node("Noise", ["logits"], ["noise"], domain="local"))
    with pytest.raises(GraphError, match="the graph uses RandomNormalLike"):
        check_graph(changed, schema_of(rich_bundle))


def test_a_fixed_batch_is_refused(graph: onnx.ModelProto, rich_bundle: Bundle) -> None:
    """A graph for batches of 3 alone, at its inputs or at its outputs, is refused."""
    fixed = copied(graph)
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(GraphError, match=r"the graph's inputs are .*\[3, 2\]"):
        check_graph(fixed, schema_of(rich_bundle))
    shape = helper.make_node("Constant", [], ["fixed_shape"], value_ints=[3, 2])
    inner = copied(graph)
    for node in inner.graph.node:
        node.output[:] = ["raw_prediction" if name == "prediction" else name for name in node.output]
    inner.graph.node.extend([shape, helper.make_node("Reshape", ["raw_prediction", "fixed_shape"], ["prediction"])])
    with pytest.raises(GraphError, match=f"with a free {BATCH} axis"):
        check_graph(inner, schema_of(rich_bundle))


def test_wrong_names_are_refused(graph: onnx.ModelProto, rich_bundle: Bundle) -> None:
    """Inputs are the modalities in order, outputs the contract's four."""
    schema = schema_of(rich_bundle)
    with pytest.raises(GraphError, match=r"the graph's inputs are .*expected"):
        check_graph(graph, schema.model_copy(update={"modalities": schema.modalities[::-1]}))
    changed = copied(graph)
    del changed.graph.output[3]
    with pytest.raises(GraphError, match=r"the graph's outputs are .*expected"):
        check_graph(changed, schema_of(rich_bundle))


def test_what_is_no_onnx_is_refused(graph: onnx.ModelProto, rich_bundle: Bundle) -> None:
    """ONNX's own checker speaks first, in one line."""
    with pytest.raises(GraphError, match="the graph is not valid ONNX: ") as error:
        check_graph(with_node(graph, helper.make_node("Add", ["nowhere", "logits"], ["sum"])), schema_of(rich_bundle))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fusion", "num_modalities"),
    [*itertools.product(["transformer", "switchgate", "interpretcc", "moepp"], [2, 6]), ("mult", 2), ("mult", 3)],
)
def test_every_backbone_is_one_graph_for_any_number_of_modalities(fusion: str, num_modalities: int) -> None:
    """n + 2 experts in the graph, whose answers agree with the model's to 1e-5, with and without missing modalities."""
    modalities = [
        Modality(name=f"m{k}", features=(small_model.number("a"), small_model.number("b"))) for k in range(num_modalities)
    ]
    schema = FeatureSchema(modalities=tuple(modalities))
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate(small_model.TINY | {"fusion": fusion}), schema, small_model.TASK).eval()
    generator = np.random.default_rng(0)
    rows = hide(draw_rows(schema, 9, generator), schema, 0.4, generator)
    rows["m1"][:4] = np.nan
    found, wanted = run(build_graph(model, schema), rows), predict(model, schema, rows)
    assert found[2].shape == (9, num_modalities + 2)
    for name, values in zip(OUTPUT_NAMES, found, strict=True):
        np.testing.assert_allclose(values, getattr(wanted, name), atol=ATOL, rtol=0)
