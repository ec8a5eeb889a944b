"""Graphs that ONNX Runtime really sees: whatever they are, their hashes in the manifest are right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.bundle.store import ATTRIBUTION_FILE, MANIFEST_FILE, MODEL_FILE, file_info
from tests.fuzz.bundles import write_rich_bundle
from tests.fuzz.mutations import Content, damaged, json_texts
from tests.fuzz.profile import check, fuzz
from tests.fuzz.worker import Worker
from tests.tiny_attribution import write_attributed_bundle

Change = Callable[[Callable[[Any], Any], onnx.ModelProto], None]
_SIZES = st.sampled_from((0, 1, 2, 3, 7, 1000, 1 << 31, 1 << 40, -1))
_OPERATORS = (
    "Neg",
    "Identity",
    "Loop",
    "If",
    "RandomNormal",
    "NoSuchOperator",
    "ConstantOfShape",
    "Transpose",
    "ReduceMean",
    "Tile",
)


def _set(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a bundle, and its hash."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][name] = file_info(folder / name).model_dump()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", [MODEL_FILE, ATTRIBUTION_FILE])
def test_any_damaged_graph_is_served_or_refused(worker: Worker, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """A graph that a disk has damaged before it was hashed answers what the manifest says, or is refused."""
    bundle = write_attributed_bundle(tmp_path_factory.mktemp("graphs") / "bundle")

    @fuzz()
    @given(content=damaged((bundle.path / name).read_bytes()))
    def holds(content: Content) -> None:
        _set(bundle.path, name, content)
        check(worker.read("serve", bundle.path), may_grow=True)

    holds()


def _external(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    tensor = draw(st.sampled_from(list(model.graph.initializer)))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = (
        "weights.bin",
        "reference.json",
        "../bundle/reference.json",
        "/etc/hostname",
        "/dev/zero",
        "",
        "x" * 300,
        "model.onnx",
    )
    entries = {
        "location": draw(st.sampled_from(places)),
        "offset": draw(st.sampled_from(("0", "-1", "9" * 30, "x"))),
        "length": "8",
    }
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _operator(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    node = draw(st.sampled_from(list(model.graph.node)))
    node.op_type = draw(st.sampled_from(_OPERATORS))
    node.domain = draw(st.sampled_from(("", "", "ai.onnx.ml", "com.microsoft", "no.such.domain")))


def _attribute(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    node = draw(st.sampled_from(list(model.graph.node)))
    value = draw(st.sampled_from((-(1 << 62), -1, 0, 1, 5, 1 << 62, 0.5, "x", [1, 2, 3])))
    name = draw(st.sampled_from(("axis", "keepdims", "start", "end", "perm", "no_such")))
    node.attribute.append(helper.make_attribute(name, value))


def _initial(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    tensor = draw(st.sampled_from(list(model.graph.initializer)))
    del tensor.dims[:]
    tensor.dims.extend(draw(st.lists(_SIZES, max_size=4)))


def _interface(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    tensor = draw(st.sampled_from([*model.graph.input, *model.graph.output]))
    match draw(st.sampled_from(("name", "type", "shape", "gone"))):
        case "name":
            tensor.name = draw(st.sampled_from(("labs", "prediction", "", "é" * 3000, "\n")))
        case "type":
            tensor.type.tensor_type.elem_type = draw(st.integers(0, 30))
        case "shape":
            del tensor.type.tensor_type.shape.dim[:]
            for size in draw(st.lists(_SIZES, max_size=4)):
                tensor.type.tensor_type.shape.dim.add(dim_value=size)
        case "gone":
            tensor.ClearField("type")


def _versions(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    model.ir_version = draw(st.sampled_from((0, 1, 9, 99, 1 << 62)))
    model.opset_import[0].version = draw(st.sampled_from((0, 1, 7, 17, 21, 99, 1 << 62)))


def _wires(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = draw(st.sampled_from(list(model.graph.node)))
    wires = draw(st.sampled_from((node.input, node.output)))
    if wires:
        wires[0] = draw(st.sampled_from((*names, "", "no_such")))


def _giant(draw: Callable[[Any], Any], model: onnx.ModelProto) -> None:
    """Something that is worked out before anybody asks: 2^40 zeros."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << draw(st.integers(20, 60))], np.int64), "size"))
    model.graph.node.insert(0, helper.make_node("ReduceSum", ["many"], ["few"], keepdims=1))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["many"]))
    first = next((node for node in model.graph.node if node.op_type == "Softmax"), model.graph.node[-1])
    model.graph.node.insert(list(model.graph.node).index(first), helper.make_node("Add", [first.input[0], "few"], ["wide"]))
    first.input[0] = "wide"


CHANGES: tuple[Change, ...] = (_external, _operator, _attribute, _initial, _interface, _versions, _wires, _giant)


@st.composite
def graphs(draw: Callable[[Any], Any], content: bytes) -> Content:
    """A graph with one or two changes of its structure."""
    model = onnx.load_model_from_string(content)
    for _ in range(draw(st.integers(1, 2))):
        draw(st.sampled_from(CHANGES))(draw, model)
    return Content(model.SerializeToString())


def test_any_graph_is_served_or_refused(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other operators, shapes, names and versions, weights elsewhere, giants: it answers as it must, or is refused."""
    bundle = write_attributed_bundle(tmp_path_factory.mktemp("structures") / "bundle")
    content = bundle.model_path.read_bytes()
    (bundle.path / "weights.bin").write_bytes(bytes(1 << 16))

    @fuzz()
    @given(content=graphs(content))
    def holds(content: Content) -> None:
        _set(bundle.path, MODEL_FILE, content)
        check(worker.read("serve", bundle.path), may_grow=True)

    holds()


@pytest.mark.parametrize("which", ["encoder", "tokenizer"])
def test_any_text_encoder_is_served_or_refused(worker: Worker, tmp_path_factory: pytest.TempPathFactory, which: str) -> None:
    """A text encoder's graph or tokenizer, whatever it is, embeds the example or is refused."""
    bundle = write_rich_bundle(tmp_path_factory.mktemp("encoders") / "bundle")
    (path,) = bundle.path.glob(f"{which}-*")
    content = path.read_bytes()
    manifest = json.loads((bundle.path / MANIFEST_FILE).read_text())
    (feature,) = (f for m in manifest["features"]["modalities"] for f in m["features"] if f["kind"] == "embedded_text")
    field = "graph_sha256" if which == "encoder" else "tokenizer_sha256"
    files = dict(manifest["files"])
    contents = damaged(content) if which == "encoder" else json_texts(json.loads(content))

    @fuzz()
    @given(content=contents)
    def holds(content: Content) -> None:
        path.write_bytes(content)
        info = file_info(path)
        name = f"{which}-{info.sha256[:16]}{path.suffix}"
        written = path.replace(path.with_name(name))
        feature[field] = info.sha256
        manifest["files"] = {k: v for k, v in files.items() if k != path.name} | {name: info.model_dump()}
        (bundle.path / MANIFEST_FILE).write_text(json.dumps(manifest))
        answer = worker.read("serve", bundle.path)
        written.unlink()
        check(answer)

    holds()
