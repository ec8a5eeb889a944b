"""An int8 graph for the CPU: the large matrix products of a verified float32 graph, with scales fixed at export.

Scales of activations are measured once, on calibration rows, and then are constants (static quantisation, Jacob et al. 2018,
CVPR): with scales taken from each batch, as dynamic quantisation does, a patient's answer would depend on who else asked.
Weights are int8 per output column, activations uint8 per tensor, sums exact in int32 (the predictor asks for that on CPUs without
VNNI, too). Small products, such as every expert's head, and everything else stay float32.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from export.errors import ExportError
from service.bundle.encoding import encode_table
from service.bundle.schema import FeatureSchema
from service.bundle.table_files import read_table
from service.bundle.tables import absent_columns

Arrays = dict[str, NDArray[np.float32]]
NUM_ROWS, FEWEST_ROWS = 1024, 32  # of calibration
_BATCH_SIZE = 64
_NARROWEST = 16  # a product with fewer inputs or outputs gains nothing


def calibration_rows(path: Path, schema: FeatureSchema) -> Arrays:
    """Up to `NUM_ROWS` rows of a table, drawn at random.

    Raises `TableError`, and `ExportError` where a feature has no column, since its values would meet scales that were measured
    without them, or where too few rows are good.
    """
    table = read_table(path)
    if absent := absent_columns(table, schema):
        raise ExportError(f"{path}: expected a column for every feature, found none for {', '.join(absent)}")
    drawn = np.random.default_rng(0).permutation(table.num_rows)[:NUM_ROWS].tolist()
    arrays = encode_table(pa.concat_tables(table.slice(row, 1) for row in drawn), schema).arrays
    num_good = len(next(iter(arrays.values())))
    if num_good < FEWEST_ROWS:
        raise ExportError(f"{path}: expected at least {FEWEST_ROWS} rows that the model can read, found {num_good}")
    return arrays


def quantise(graph: onnx.ModelProto, rows: Arrays) -> onnx.ModelProto:
    """The graph with its large products in int8. Raises `ExportError` where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        prepared = _columns_first(_folded(graph, Path(folder)))
        products = _large_products(prepared)
        if not products:
            raise ExportError(f"no matrix product of this model is as large as {_NARROWEST} by {_NARROWEST}; export it as fp32")
        onnx.save_model(prepared, plain)
        with _quiet():
            quantize_static(
                plain,
                quantised,
                _Batches(rows),
                quant_format=QuantFormat.QDQ,  # ONNX's own operators; ONNX Runtime fuses them
                op_types_to_quantize=["Gemm", "MatMul"],
                nodes_to_quantize=products,
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        return onnx.load_model(quantised)


class _quiet:  # noqa: N801 - reads as a statement
    """Without the quantiser's advice to preprocess the graph, which is done already."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)


def _folded(graph: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph with constants computed: slices of weights become weights, which can be quantised per column."""
    source, folded = folder / "source.onnx", folder / "folded.onnx"
    onnx.save_model(graph, source)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return onnx.load_model(folded)


def _columns_first(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as (inputs, outputs): ONNX Runtime packs those before it serves, and no others."""
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    turned: set[str] = set()
    for node in graph.graph.node:
        flag = next((a for a in node.attribute if a.name == "transB" and a.i == 1), None)
        if node.op_type != "Gemm" or flag is None or node.input[1] not in weights:
            continue
        name = f"{node.input[1]}.T"
        if name not in turned:
            matrix = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[1]]).T)
            graph.graph.initializer.append(numpy_helper.from_array(matrix, name))
            turned.add(name)
        node.input[1], flag.i = name, 0
    _drop_unused(graph)
    return graph


def _drop_unused(graph: onnx.ModelProto) -> None:
    used = {name for node in graph.graph.node for name in node.input}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)


def _large_products(graph: onnx.ModelProto) -> list[str]:
    """The names of products with a constant matrix, of which every axis is large enough; nodes without a name get one."""
    shapes: Mapping[str, Any] = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    names = []
    for position, node in enumerate(graph.graph.node):
        if node.op_type in {"Gemm", "MatMul"} and min(shapes.get(node.input[1], (0,))) >= _NARROWEST:
            node.name = node.name or f"product_{position}"
            names.append(node.name)
    return names


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Rows as the quantiser asks for them."""

    def __init__(self, rows: Arrays) -> None:
        self._batches: Iterator[Arrays] = (
            {name: x[start : start + _BATCH_SIZE] for name, x in rows.items()}
            for start in range(0, len(next(iter(rows.values()))), _BATCH_SIZE)
        )

    def get_next(self) -> Arrays | None:
        """The next batch, or None."""
        return next(self._batches, None)
