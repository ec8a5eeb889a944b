"""The trained model as one ONNX graph: the clean pass, with everything a request needs inside it.

Inputs: one float32 (batch, columns) per modality, NaN = missing. Outputs: prediction, logits, expert_weights,
expert_logits. Normalisation, imputation, missing tokens and calibration are part of the graph.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.errors import GraphError
from export.experts import Target, lay_out
from service.bundle.manifest import GraphInfo, TensorInfo
from service.bundle.output import OUTPUT_NAMES
from service.bundle.schema import FeatureSchema
from training.model.mixture import I2MoE

OPSET = 23  # the first with Attention
BATCH = "batch"
_TRACED_BATCH = 3  # any size but 1, which the exporter would take for a constant

# A served graph answers the same question with the same answer, in one pass.
_FORBIDDEN_OPS = frozenset(
    {"Bernoulli", "Dropout", "If", "Loop", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike", "Scan", "SequenceMap"}
)


class _CleanPass(nn.Module):
    """The model with one positional tensor per modality and plain tensors out, as graphs have it, and its experts laid out."""

    def __init__(self, model: I2MoE, experts: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.experts = experts

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tokens_BnPD = self.model.embed(inputs)
        return tuple(self.model.combine(self.model.reweighting(tokens_BnPD), self.experts(tokens_BnPD)))


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter tells users about its own internals; what matters to ours is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def to_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], *, names: tuple[Sequence[str], Sequence[str]], dynamic_shapes: Any
) -> onnx.ModelProto:
    """The exporter's graph of a module, its inputs and outputs by `names`."""
    program = torch.onnx.export(
        module,
        inputs,
        input_names=list(names[0]),
        output_names=list(names[1]),
        dynamic_shapes=dynamic_shapes,
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def build_graph(model: I2MoE, schema: FeatureSchema, *, target: Target = "cpu", half: bool = False) -> onnx.ModelProto:
    """Trace the model's clean pass, its experts laid out for `target`, in float16 with `half`.

    Raises `GraphError` when the result breaks a rule of this module.
    """
    inputs = tuple(torch.zeros(_TRACED_BATCH, modality.width) for modality in schema.modalities)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with quiet_exporter():
        clean_pass = _CleanPass(model, lay_out(model.experts, target, half=half)).eval()
        graph = to_onnx(clean_pass, inputs, names=(schema.names, OUTPUT_NAMES), dynamic_shapes={"inputs": dynamic})
    tidy(graph)
    check_graph(graph, schema)
    return graph


def tidy(graph: onnx.ModelProto) -> None:
    """Name the batch axis, and remove what the exporter tells of itself."""
    _name_batch_axis(graph)
    _strip_traces(graph)


def _name_batch_axis(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del model.graph.value_info[:]  # they speak of the axis by its old name; shape inference writes them anew


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove where the exporter was called from: paths of this machine, and most of the file's size."""
    model.doc_string = ""
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def check_graph(model: onnx.ModelProto, schema: FeatureSchema) -> None:
    """ONNX's checker and strict shape inference, then this module's own rules. Raises `GraphError`."""
    check_rules(model, [(modality.name, [BATCH, modality.width]) for modality in schema.modalities], OUTPUT_NAMES)


def check_rules(
    model: onnx.ModelProto, wanted: Sequence[tuple[str, Sequence[int | str]]], wanted_outputs: tuple[str, ...]
) -> None:
    """The same for a graph of these inputs (name, shape) and outputs."""
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    operators = {node.op_type for part in (model.graph, *model.functions) for node in part.node}
    if forbidden := sorted(operators & _FORBIDDEN_OPS):
        raise GraphError(f"the graph uses {', '.join(forbidden)}: random and control-flow operators cannot be served")
    found = [(value.name, _shape(value)) for value in inferred.graph.input]
    if found != wanted:
        raise GraphError(f"the graph's inputs are {found}, expected {wanted}")
    names = tuple(value.name for value in inferred.graph.output)
    if names != wanted_outputs or any(_shape(value)[0] != BATCH for value in inferred.graph.output):
        raise GraphError(f"the graph's outputs are {names}, expected {wanted_outputs} with a free {BATCH} axis")


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def graph_info(model: onnx.ModelProto, *, target: str, precision: str = "fp32") -> GraphInfo:
    """The graph's interface, for the manifest."""
    return GraphInfo.model_validate(
        {
            "opset": next(opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"}),
            "precision": precision,
            "target": target,
            "inputs": tensor_infos(model.graph.input),
            "outputs": tensor_infos(model.graph.output),
        }
    )


def tensor_infos(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorInfo, ...]:
    """Names and shapes of inputs or outputs, for the manifest."""
    return tuple(TensorInfo(name=value.name, shape=tuple(_shape(value))) for value in values)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write one self-contained file."""
    onnx.save_model(model, path, save_as_external_data=False)
