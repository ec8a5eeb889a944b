"""The second graph of a bundle: which features drove every expert's contribution, as plain operators.

Smooth models get integrated gradients. ONNX has no gradients: the forward and the backward pass are traced into one list of
ATen operations, which is then exported like any other forward pass. Where that is impossible, does not add up, or a router
makes contributions jump, sampled Shapley values take their place, which need forward passes alone. Inputs: the modalities
as in model.onnx, and the label as a one-hot row. What neither can say is left out of the bundle with its reason: the
bundle still predicts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from export.errors import ExportError
from export.graph import BATCH, check_rules, quiet_exporter, tensor_infos, tidy, to_onnx
from export.verify import ATOL, Case, cases
from service.bundle.attribution import LABEL_INPUT, attribution_outputs, one_hot
from service.bundle.manifest import AttributionInfo, Completeness, Parity, TaskInfo
from service.bundle.predictor import Predictor
from service.bundle.schema import FeatureSchema
from training.attribution.base import BASELINE, Attribution
from training.attribution.gradients import IntegratedGradients
from training.attribution.shapley import SampledShapley
from training.model.fusion.base import Fusion
from training.model.mixture import I2MoE

Floats = NDArray[np.float32]

GAP_LIMIT = 0.05  # mean |gap| as a share of the mean |change|: beyond it features do not tell where a contribution is from
MAX_CELLS = 1 << 24  # rows x columns of one record: more would not fit a service's memory
_MAX_ROWS = 7  # of a compared case
_FIRST_BATCH = 7


def methods(model: I2MoE, schema: FeatureSchema, task: TaskInfo, *, num_points: int) -> Iterator[Attribution]:
    """How a model may be attributed, the best first; `num_points` are of the gradients' path."""
    if not any(isinstance(expert, Fusion) and expert.jumps for expert in model.experts):
        yield IntegratedGradients(model.eval(), task, num_points=num_points)
    yield SampledShapley(model.eval(), schema, task)


def build_attribution(module: Attribution, schema: FeatureSchema, task: TaskInfo) -> onnx.ModelProto:
    """Trace an attribution. Raises `ExportError` where that is impossible."""
    cells = module.num_rows * sum(modality.width for modality in schema.modalities)
    if cells > MAX_CELLS:
        raise ExportError(f"{module.method}: expected at most {MAX_CELLS} cells per record, found {cells}")
    try:
        graph = _export(module, schema, len(task.labels))
    except Exception as error:  # whatever the exporter stumbles over: it is not one of ours
        raise ExportError(f"{module.method} cannot be written as a graph ({type(error).__name__})") from error
    tidy(graph)
    wanted: list[tuple[str, Sequence[int | str]]] = [(modality.name, [BATCH, modality.width]) for modality in schema.modalities]
    check_rules(graph, [*wanted, (LABEL_INPUT, [BATCH, len(task.labels)])], attribution_outputs(schema))
    return graph


def _export(module: Attribution, schema: FeatureSchema, num_labels: int) -> onnx.ModelProto:
    widths = [*(modality.width for modality in schema.modalities), num_labels]
    # Sizes that are equal when traced are taken to be equal always: the batch must have a size of its own.
    size = next(n for n in range(_FIRST_BATCH, _FIRST_BATCH + len(widths) + 1) if n not in widths)
    inputs = [torch.zeros(size, width) for width in widths]
    with quiet_exporter():
        names, dynamic = (
            ((*schema.names, LABEL_INPUT), attribution_outputs(schema)),
            ({0: torch.export.Dim.DYNAMIC},) * len(inputs),
        )
        if isinstance(module, IntegratedGradients):
            return to_onnx(_trace(module, inputs), tuple(inputs), names=names, dynamic_shapes=dynamic)
        return to_onnx(module, tuple(inputs), names=names, dynamic_shapes={"inputs": dynamic})


def _trace(module: Attribution, inputs: list[Tensor]) -> GraphModule:
    """Forward and backward pass as one module of ATen operations, for a batch of any size."""

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        columns, *per_expert = module(*tensors)
        return (*columns, *per_expert)

    traced: Callable[..., Any] = make_fx(
        flat, tracing_mode="symbolic", decomposition_table=dict(core_aten_decompositions()), _allow_non_fake_inputs=True
    )
    graph: GraphModule = traced(*inputs)
    return graph


def attribution_info(graph: onnx.ModelProto, module: Attribution) -> AttributionInfo:
    """What the manifest tells of a graph that is not yet verified."""
    return AttributionInfo(
        method=module.method,
        num_points=module.num_points,
        baseline=BASELINE,
        inputs=tensor_infos(graph.graph.input),
        outputs=tensor_infos(graph.graph.output),
        completeness=Completeness(mean_gap=0, max_gap=0, mean_change=0, limit=GAP_LIMIT, num_rows=0),
        parity=Parity(atol=ATOL, max_abs_diff=0, cases=0),
    )


def verify_attribution(
    predictor: Predictor, info: AttributionInfo, module: Attribution, schema: FeatureSchema, task: TaskInfo
) -> AttributionInfo:
    """Compare graph and module, and see that attributions add up: `info` with what was found.

    Raises `ExportError` where they differ or do not add up.
    """
    worst, num_cases = 0.0, 0
    gaps: list[Floats] = []
    changes: list[Floats] = []
    for case in _small_cases(schema):
        label = one_hot(np.arange(case.batch_size) % len(task.labels), len(task.labels))
        found = predictor.attribute(case.arrays, label)
        wanted = module(*(torch.from_numpy(case.arrays[name]) for name in schema.names), torch.from_numpy(label))
        pairs = [
            *zip(found.columns.values(), wanted.columns, strict=True),
            (found.base, wanted.base_BE),
            (found.gap, wanted.gap_BE),
        ]
        scale = max(1.0, float(np.abs(found.contribution).max()))
        worst = max(worst, *(float(np.abs(a - b.numpy()).max()) / scale for a, b in pairs))
        gaps.append(np.abs(found.gap))
        changes.append(np.abs(found.contribution - found.base))
        num_cases += 1
    if not worst <= ATOL:
        raise ExportError(f"the attribution graph differs from the model by {worst:.2g} (limit {ATOL:g})")
    completeness = _completeness(np.concatenate(gaps), np.concatenate(changes), info.method)
    parity = Parity(atol=ATOL, max_abs_diff=worst, cases=num_cases)
    return info.model_copy(update={"completeness": completeness, "parity": parity})


def _small_cases(schema: FeatureSchema) -> Iterator[Case]:
    return (case for case in cases(schema) if case.batch_size <= _MAX_ROWS)


def _completeness(gap_BE: Floats, change_BE: Floats, method: str) -> Completeness:
    """Raises `ExportError` where the attributions do not add up."""
    mean_gap, mean_change = float(gap_BE.mean()), float(change_BE.mean())
    if not mean_gap <= GAP_LIMIT * mean_change + ATOL:
        raise ExportError(
            f"{method}: attributions leave {mean_gap / max(mean_change, ATOL):.0%} of the contributions' change untold "
            f"(limit {GAP_LIMIT:.0%}); more points help, unless a contribution jumps on the way"
        )
    return Completeness(
        mean_gap=mean_gap, max_gap=float(gap_BE.max()), mean_change=mean_change, limit=GAP_LIMIT, num_rows=len(gap_BE)
    )
