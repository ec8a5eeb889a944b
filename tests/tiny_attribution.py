"""The tiny bundle with a second graph, whose every attribution can be checked with a pencil.

The tiny model (tests/tiny_bundle.py) is linear and its weights are constant, so that integrated gradients are exact: with
m_e(c) the logits of expert e, what column j adds to the contribution towards label c is

    weight_e x d(m_e(c) - m_e(other))/dx_j x (x_j - fill_j)

and the base is the contribution of a record of which nothing is known. The example towards dead: unique:labs gets
0.4 x (4 - 1) = 1.2 from crea and has the base 0.4 x (1 - 2) = -0.4; synergy 0.2 x 3 = 0.6 from crea, 0.2 x 1 from age and
-0.2 as its base.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle.attribution import LABEL_INPUT, attribution_outputs
from service.bundle.manifest import AttributionInfo, Completeness, FileInfo, Manifest, Parity, TensorInfo, UncertaintyInfo
from service.bundle.store import ATTRIBUTION_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, write_bundle
from tests.tiny_bundle import POISON, WEIGHTS, tiny_graph, tiny_manifest, tiny_output, tiny_reference, tiny_schema

_FILL = np.array([1.0, 140.0, 60.0, 0.0], np.float32)


def towards_dead(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Contributions (B, E) of rows (crea, sod, age, sex), from the tiny model itself."""
    logits_BEC = tiny_output(rows[:, :2], rows[:, 2:]).expert_logits
    return np.asarray(WEIGHTS, np.float32) * (logits_BEC[:, :, 1] - logits_BEC[:, :, 0])


def _slopes() -> NDArray[np.float32]:
    """What one unit of each column adds to each contribution: (E, 4)."""
    return towards_dead(_FILL + np.eye(4, dtype=np.float32)).T - towards_dead(_FILL[None]).T


def attribution_graph(*, poisoned: bool = False) -> onnx.ModelProto:
    """The graph of this module's formula. Poisoned: NaN where creatinine is exactly `POISON`."""
    nodes = [
        helper.make_node("Concat", ["labs", "history"], ["columns"], axis=1),
        helper.make_node("IsNaN", ["columns"], ["missing"]),
        helper.make_node("Where", ["missing", "fill", "columns"], ["filled"]),
        helper.make_node("Equal", ["columns", "poison"], ["is_poison"]),
        helper.make_node("Where", ["is_poison", "poisoned_value", "filled"], ["poisoned"]),
        helper.make_node("Sub", ["poisoned", "fill"], ["change"]),
        helper.make_node("MatMul", [LABEL_INPUT, "signs"], ["sign_B1"]),
        helper.make_node("Mul", ["change", "sign_B1"], ["signed"]),
        helper.make_node("Unsqueeze", ["signed", "one"], ["signed_B14"]),
        helper.make_node("Mul", ["signed_B14", "slopes"], ["attribution"]),
        helper.make_node("Split", ["attribution"], ["attribution.labs", "attribution.history"], axis=2, num_outputs=2),
        helper.make_node("Mul", ["sign_B1", "base_1E"], ["base"]),
        helper.make_node("ReduceSum", ["attribution", "two"], ["sum"], keepdims=0),
        helper.make_node("Add", ["base", "sum"], ["contribution"]),
        helper.make_node("Sub", ["contribution", "contribution"], ["gap"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "fill": _FILL,
        "poison": np.array([POISON], np.float32),
        "poisoned_value": np.array(np.nan if poisoned else POISON, np.float32),
        "signs": np.array([[-1], [1]], np.float32),
        "slopes": _slopes()[None],
        "base_1E": towards_dead(_FILL[None]),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "tiny_attribution",
        [_tensor(info) for info in _INPUTS],
        [_tensor(info) for info in _OUTPUTS],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


_INPUTS = tuple(TensorInfo(name=name, shape=("batch", 2)) for name in ("labs", "history", LABEL_INPUT))
_OUTPUTS = tuple(
    TensorInfo(name=name, shape=("batch", 4, 2) if name.startswith("attribution.") else ("batch", 4))
    for name in attribution_outputs(tiny_schema())
)


def _tensor(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, TensorProto.FLOAT, list(info.shape))


INFO = AttributionInfo(
    method="exact",
    num_points=2,
    baseline="nothing known",
    inputs=_INPUTS,
    outputs=_OUTPUTS,
    completeness=Completeness(mean_gap=0, max_gap=0, mean_change=1, limit=0.05, num_rows=1),
    parity=Parity(atol=1e-5, max_abs_diff=0, cases=1),
)


def write_attributed_bundle(
    folder: Path, *, poisoned: bool = False, with_file: bool = True, uncertainty: UncertaintyInfo | None = None
) -> Bundle:
    """Write the tiny bundle with its second graph. `poisoned`: that graph, and it alone, fails on one creatinine."""

    def fill(staged: Path) -> None:
        onnx.save(tiny_graph(), staged / MODEL_FILE)
        (staged / REFERENCE_FILE).write_text(json.dumps(tiny_reference()))
        if with_file:
            onnx.save(attribution_graph(poisoned=poisoned), staged / ATTRIBUTION_FILE)

    def manifest(files: dict[str, FileInfo]) -> Manifest:
        return tiny_manifest(files, uncertainty=uncertainty).model_copy(update={"attribution": INFO})

    return write_bundle(folder, fill=fill, manifest=manifest)
