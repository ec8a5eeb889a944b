"""Running a bundle's graph with ONNX Runtime."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from service.bundle import predictor as module
from service.bundle.errors import BundleError, InferenceError
from service.bundle.manifest import Answer
from service.bundle.output import OUTPUT_NAMES
from service.bundle.predictor import CPU, REPLAY_TOLERANCE, Predictor, num_cuda_devices
from service.bundle.store import MODEL_FILE, REFERENCE_FILE, Bundle, write_bundle
from tests.tiny_bundle import (
    EXAMPLE_RISK,
    POISON,
    tiny_answer,
    tiny_example,
    tiny_graph,
    tiny_manifest,
    tiny_output,
    tiny_reference,
    write_tiny_bundle,
)

without_gpu = pytest.mark.skipif(num_cuda_devices() > 0, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("predictor") / "bundle")


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle, provider="cpu")


def some_arrays(num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays with gaps for `num_rows` records."""
    rng = np.random.default_rng(seed)
    labs = rng.uniform([0.5, 110], [10, 170], (num_rows, 2)).astype(np.float32)
    history = np.stack([rng.uniform(18, 100, num_rows), rng.integers(0, 2, num_rows)], axis=1).astype(np.float32)
    labs[rng.random(labs.shape) < 0.2] = np.nan
    return {"labs": labs, "history": history}


def bundle_around(graph: onnx.ModelProto | bytes, folder: Path) -> Bundle:
    """A bundle with the tiny manifest and another graph."""

    def fill(staged: Path) -> None:
        (staged / MODEL_FILE).write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
        (staged / REFERENCE_FILE).write_text(json.dumps(tiny_reference()))

    return write_bundle(folder, fill=fill, manifest=tiny_manifest)


@pytest.mark.parametrize("num_rows", [1, 7, 64])
def test_any_number_of_records_is_answered(predictor: Predictor, num_rows: int) -> None:
    """The batch axis is dynamic, answers are those of the formulas, and experts add up to the mixture."""
    arrays = some_arrays(num_rows)
    found, expected = predictor.run(arrays), tiny_output(**arrays)
    for name in OUTPUT_NAMES:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
        assert getattr(found, name).dtype == np.float32
    mixed = (found.expert_weights[:, :, None] * found.expert_logits).sum(axis=1)
    np.testing.assert_allclose(mixed, found.logits, atol=1e-5)


def test_a_record_has_one_answer_in_any_batch(predictor: Predictor) -> None:
    """Neighbours in a batch change nothing."""
    arrays = some_arrays(7)
    together = predictor.run(arrays)
    for row in range(7):
        alone = predictor.run({name: array[row : row + 1] for name, array in arrays.items()})
        np.testing.assert_allclose(alone.prediction[0], together.prediction[row], atol=1e-6)


def test_the_example_gets_its_known_answer(predictor: Predictor) -> None:
    """The risk computed with a pencil is the risk served."""
    arrays = predictor.manifest.features.encode_many([tiny_example()])
    assert predictor.run(arrays).prediction[0, 1] == pytest.approx(EXAMPLE_RISK, abs=1e-6)
    assert predictor.replay_example() < 1e-6


@without_gpu
@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_a_machine_without_gpu_serves_on_the_cpu(bundle: Bundle, provider: module.ProviderChoice) -> None:
    """Without a GPU the CPU answers, and the predictor says so."""
    assert Predictor(bundle, provider=provider).provider == CPU


@without_gpu
def test_cuda_without_gpu_is_an_error(bundle: Bundle) -> None:
    """Who asks for CUDA never gets the CPU silently."""
    with pytest.raises(InferenceError, match=r"CUDA was asked for, but no GPU can be used \(0 devices seen\)"):
        Predictor(bundle, provider="cuda")


def test_devices_are_counted_by_the_driver() -> None:
    """Counting GPUs never fails, with or without a driver."""
    assert num_cuda_devices() >= 0


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"labs": np.zeros((1, 2), np.float32)},
        {"labs": np.zeros((1, 3), np.float32), "history": np.zeros((1, 2), np.float32)},
        {"labs": np.zeros((1, 2), np.float64), "history": np.zeros((1, 2), np.float32)},
        {"labs": np.zeros((2, 2), np.float32), "history": np.zeros((1, 2), np.float32), "x": np.zeros(1, np.float32)},
    ],
    ids=["nothing", "one input", "width", "dtype", "unknown input"],
)
def test_arrays_that_do_not_fit_are_an_error(predictor: Predictor, arrays: dict[str, np.ndarray]) -> None:
    """Arrays other than the schema's are one inference error, not ONNX Runtime's own."""
    with pytest.raises(InferenceError, match="the graph could not be run"):
        predictor.run(arrays)


def test_an_answer_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    """NaN never leaves the predictor."""
    poisoned = Predictor(write_tiny_bundle(tmp_path / "bundle", poisoned=True), provider="cpu")
    poisoned.replay_example()
    with pytest.raises(InferenceError, match="not finite"):
        poisoned.run({"labs": np.float32([[POISON, 140]]), "history": np.float32([[60, 0]])})


@pytest.mark.parametrize("name", OUTPUT_NAMES)
def test_replaying_notices_an_altered_answer(tmp_path: Path, name: str) -> None:
    """A graph that answers its example differently from the export is not served."""
    answer = tiny_answer().model_dump()
    changed = np.array(answer[name])
    changed.flat[-1] += 0.01
    bundle = write_tiny_bundle(tmp_path / "bundle", answer=Answer.model_validate(answer | {name: changed.tolist()}))
    with pytest.raises(InferenceError, match=r"answers 0\.0\d+ away from its recorded answer \(limit 0\.0001\)"):
        Predictor(bundle, provider="cpu").replay_example()


def test_replaying_allows_for_the_graphs_precision(bundle: Bundle) -> None:
    """A half-precision graph may be off by what half precision is off by, and not by more."""
    logits = (0.0, tiny_answer().logits[1] * (1 + REPLAY_TOLERANCE["fp16"] / 2))
    example = bundle.manifest.example.model_copy(update={"answer": tiny_answer().model_copy(update={"logits": logits})})
    predictor = Predictor(bundle, provider="cpu")
    graph = bundle.manifest.graph.model_copy(update={"precision": "fp16"})
    predictor.manifest = bundle.manifest.model_copy(update={"example": example, "graph": graph})
    assert predictor.replay_example() == pytest.approx(REPLAY_TOLERANCE["fp16"] / 2, rel=0.01)
    predictor.manifest = bundle.manifest.model_copy(update={"example": example})
    with pytest.raises(InferenceError):
        predictor.replay_example()


def test_replaying_notices_another_shape(bundle: Bundle) -> None:
    """A graph with another number of experts than its manifest says is found before it is served."""
    answer = tiny_answer().model_copy(update={"expert_weights": (0.5, 0.5)})
    predictor = Predictor(bundle, provider="cpu")
    predictor.manifest = bundle.manifest.model_copy(
        update={"example": bundle.manifest.example.model_copy(update={"answer": answer})}
    )
    with pytest.raises(InferenceError, match=r"expected expert_weights of shape \(2,\) for the bundle's example, found \(4,\)"):
        predictor.replay_example()


@pytest.mark.parametrize("graph", [b"", b"not a graph", tiny_graph().SerializeToString()[:-200]], ids=["empty", "text", "cut"])
def test_a_damaged_graph_is_refused(tmp_path: Path, graph: bytes) -> None:
    """A graph that ONNX Runtime cannot load is one sentence."""
    with pytest.raises(BundleError, match="ONNX Runtime cannot load the graph") as caught:
        Predictor(bundle_around(graph, tmp_path / "bundle"), provider="cpu")
    assert "\n" not in str(caught.value)


def renamed_input(graph: onnx.ModelProto) -> None:
    """The graph reads `lab`."""
    graph.graph.input[0].name = "lab"
    for node in graph.graph.node:
        node.input[:] = ["lab" if name == "labs" else name for name in node.input]


def fixed_batch(graph: onnx.ModelProto) -> None:
    """The graph takes exactly one record."""
    for tensor in graph.graph.input:
        tensor.type.tensor_type.shape.dim[0].dim_value = 1


def free_width(graph: onnx.ModelProto) -> None:
    """The graph takes any number of columns."""
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "columns"


def unknown_shape(graph: onnx.ModelProto) -> None:
    """The graph takes a number instead of records."""
    tensor = graph.graph.input.add()
    tensor.CopyFrom(onnx.helper.make_tensor_value_info("extra", TensorProto.FLOAT, []))


def other_type(graph: onnx.ModelProto) -> None:
    """The graph also reads doubles."""
    tensor = graph.graph.input.add()
    tensor.CopyFrom(onnx.helper.make_tensor_value_info("extra", TensorProto.DOUBLE, ["batch", 2]))


def fewer_outputs(graph: onnx.ModelProto) -> None:
    """The graph keeps its expert logits to itself."""
    del graph.graph.output[3]


def other_output_type(graph: onnx.ModelProto) -> None:
    """The graph answers doubles."""
    graph.graph.node.append(onnx.helper.make_node("Cast", ["scores"], ["as_double"], to=TensorProto.DOUBLE))
    graph.graph.node[-2].output[0] = "unused"
    graph.graph.node.append(onnx.helper.make_node("Identity", ["as_double"], ["prediction"]))
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed_input, r"expected a graph that reads .*'labs': .*found .*'lab': "),
        (fixed_batch, r"reads .*\['batch', 2\].*found .*\[1, 2\]"),
        (free_width, r"found .*\['batch', 'columns'\]"),
        (unknown_shape, r"found .*'extra': 'tensor\(float\) \[\]'"),
        (other_type, r"found .*'extra': \"tensor\(double\)"),
        (fewer_outputs, "expected a graph that answers .*prediction, logits, expert_weights, expert_logits; found"),
        (other_output_type, r"found .*'prediction': 'tensor\(double\)'"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    """Names, types, widths and the dynamic batch are compared with the manifest before anything is served."""
    graph = tiny_graph()
    change(graph)
    with pytest.raises(BundleError, match=words):
        Predictor(bundle_around(graph, tmp_path / "bundle"), provider="cpu")


def test_threads_share_a_predictor(predictor: Predictor) -> None:
    """Concurrent callers get their own answers."""
    batches = [some_arrays(1 + seed % 5, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(predictor.run, batches))
    for arrays, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer.prediction, tiny_output(**arrays).prediction, atol=1e-5)


class FakeDriver:
    """A CUDA driver that sees one GPU, or fails."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's name
        return self.status

    def cuDeviceGetCount(self, count: "module.ctypes._CArgObject") -> int:  # noqa: N802 - the driver's name
        count._obj.value = 1
        return 0


@pytest.mark.parametrize(("status", "expected"), [(0, 1), (100, 0)])
def test_the_drivers_word_counts(monkeypatch: pytest.MonkeyPatch, status: int, expected: int) -> None:
    """A driver that cannot start has no GPUs, whatever ONNX Runtime was built for."""
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: FakeDriver(status))
    assert num_cuda_devices() == expected


@without_gpu
def test_an_unusable_gpu_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where there is a GPU but not its libraries, "auto" serves on the CPU with a warning and "cuda" is an error."""
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: FakeDriver(0))
    with caplog.at_level(logging.WARNING, "i2moe.predictor"):
        assert Predictor(bundle, provider="auto").provider == CPU
    assert "cannot load its CUDA libraries" in caplog.text
    with pytest.raises(InferenceError, match="1 devices seen"):
        Predictor(bundle, provider="cuda")


def test_importing_the_predictor_turns_telemetry_off() -> None:
    """ONNX Runtime is told not to report usage before it is imported, in whatever process imports the predictor."""
    program = "import os; import service.bundle.predictor; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


class Stopwatch:
    """Seconds that one thread, rows shared and operators shared are said to take for 1, 2, 4, ... rows."""

    def __init__(self, *seconds: tuple[float, float, float]) -> None:
        self.seconds = [second for told in seconds for second in told]

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        return self.seconds.pop(0)


def tuned(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *seconds: tuple[float, float, float]) -> Predictor:
    stopwatch = Stopwatch(*seconds)
    monkeypatch.setattr(module, "_fastest_s", stopwatch)
    predictor = Predictor(bundle, provider="cpu", num_threads=3)
    predictor.tune(6)
    assert not stopwatch.seconds
    return predictor


def test_batches_are_run_the_way_that_is_fastest(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each size its own, beyond those that were tried the last; answers are those of one session, whichever ran."""
    predictor = tuned(bundle, monkeypatch, (1, 2, 3), (2, 3, 1), (3, 1, 2))
    assert predictor.ways == [module.ALONE, module.TOGETHER, module.ROWS]
    plain = Predictor(bundle, provider="cpu", num_threads=1)
    for size in (1, 2, 3, 4, 8):
        for name in OUTPUT_NAMES:
            found, wanted = (getattr(p.run(some_arrays(size)), name) for p in (predictor, plain))
            np.testing.assert_allclose(found, wanted, atol=1e-6)


class Echo:
    """A session that answers its rows, and remembers how many it was given at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, names: Sequence[str], arrays: Mapping[str, Any]) -> list[Any]:
        self.sizes.append(len(arrays["x"]))
        if -1 in arrays["x"]:
            raise ValueError("a bad row")
        return [arrays["x"] + i for i, _ in enumerate(names)]


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (8, [2, 3, 3]), (64, [21, 21, 22])])
def test_rows_are_shared_evenly_and_stay_in_order(rows: int, sizes: list[int]) -> None:
    """No more threads than rows, and shares that differ by one row at most."""
    echo = Echo()
    parallel = module.RowParallel(echo, 3)
    x = np.arange(rows, dtype=np.float32)
    first, second = parallel.run(["a", "b"], {"x": x})
    assert (first == x).all()
    assert (second == x + 1).all()
    assert sorted(echo.sizes) == sizes


def test_a_share_that_fails_fails_the_batch() -> None:
    """In whichever thread."""
    for position in (0, 5):
        x = np.zeros(6, np.float32)
        x[position] = -1
        with pytest.raises(ValueError, match="a bad row"):
            module.RowParallel(Echo(), 3).run(["a"], {"x": x})


def test_nothing_is_tuned_where_there_is_nothing_to_choose(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread anyway, or a graph too large to be opened twice."""
    monkeypatch.setattr(module, "_fastest_s", pytest.fail)
    Predictor(bundle, provider="cpu", num_threads=1).tune(64)
    monkeypatch.setattr(module, "_LARGEST_TWICE", 10)
    Predictor(bundle, provider="cpu", num_threads=2).tune(64)


def test_timing_takes_the_fastest_call() -> None:
    """After one that warms up."""
    calls = []
    assert module._fastest_s(lambda: calls.append(1)) >= 0
    assert len(calls) == module._NUM_TIMED + 1


def external(graph: onnx.ModelProto) -> None:
    """The graph's weights are in a file beside it."""
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == "mix")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": REFERENCE_FILE, "offset": "0", "length": "128"}.items():
        tensor.external_data.add(key=key, value=value)


def test_weights_beside_a_graph_are_refused(tmp_path: Path) -> None:
    """The manifest's hash of the graph does not cover them."""
    graph = tiny_graph()
    external(graph)
    with pytest.raises(BundleError, match="ONNX Runtime cannot load the graph"):
        Predictor(bundle_around(graph, tmp_path / "bundle"), provider="cpu")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A name of a graph whose bytes are damaged is told as a graph that cannot be loaded."""
    damaged = tiny_graph().SerializeToString().replace(b"Z\x1b\n\x04labs", b"Z\x1b\n\x04l\xffbs")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load the graph"):
        Predictor(bundle_around(damaged, tmp_path / "bundle"), provider="cpu")


def scalar_prediction(graph: onnx.ModelProto) -> None:
    """The graph answers one number for a whole batch."""
    graph.graph.node.append(onnx.helper.make_node("ReduceSum", ["prediction"], ["total"], keepdims=0))
    graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
    graph.graph.node[-2].output[0], graph.graph.node[-1].input[0], graph.graph.node[-1].output[0] = "p", "p", "prediction"
    graph.graph.output[0].name = "prediction"


def test_an_answer_of_another_shape_is_an_error(tmp_path: Path) -> None:
    """Rows of an answer that are not the records' never reach anybody."""
    graph = tiny_graph()
    scalar_prediction(graph)
    predictor = Predictor(bundle_around(graph, tmp_path / "bundle"), provider="cpu")
    with pytest.raises(InferenceError, match=r"answers arrays of shapes \[\(3, 2\).*found \[\(\)"):
        predictor.run(some_arrays(3))
    with pytest.raises(InferenceError, match="shapes"):
        predictor.replay_example()


@pytest.mark.parametrize("recorded", [1e39, -1e300])
def test_replaying_notices_an_answer_that_no_float32_is(tmp_path: Path, recorded: float) -> None:
    """Such a number is infinite as float32, and compared as that would be away from nothing."""
    answer = tiny_answer().model_copy(update={"logits": (0.0, recorded)})
    predictor = Predictor(write_tiny_bundle(tmp_path / "bundle", answer=answer), provider="cpu")
    with pytest.raises(InferenceError, match="away from its recorded answer"):
        predictor.replay_example()


def test_a_graph_that_fails_on_several_rows_is_told(tmp_path: Path) -> None:
    """It answers its example, and fails when it is timed with more rows than that."""
    graph = tiny_graph()
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2]), "one_row"))
    node = next(node for node in graph.graph.node if node.op_type == "Softmax")
    node.output[0] = "every_row"
    graph.graph.node.append(onnx.helper.make_node("Reshape", ["every_row", "one_row"], ["prediction"]))
    predictor = Predictor(bundle_around(graph, tmp_path / "bundle"), provider="cpu", num_threads=2)
    predictor.replay_example()
    with pytest.raises(InferenceError, match="could not be run with several rows"):
        predictor.tune(4)
