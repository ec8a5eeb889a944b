"""Runs a bundle's graph with ONNX Runtime: the only module that knows onnxruntime.

Chooses the execution provider by asking the driver first, because ONNX Runtime lists CUDA as available on machines
that have none and silently falls back to the CPU.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

# ONNX Runtime's builds report usage to their maker unless told not to before the import. A hospital's must not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle.attribution import LABEL_INPUT, Attribution, attribution_outputs
from service.bundle.embedding import load_encoders
from service.bundle.errors import BundleError, InferenceError
from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.store import Bundle

logger = logging.getLogger("i2moe.predictor")

FloatArray = NDArray[np.float32]
ProviderChoice = Literal["auto", "cuda", "cpu"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ALONE, ROWS, TOGETHER = "one thread", "rows shared by threads", "operators shared by threads"
_FLOAT32 = "tensor(float)"
_LARGEST_TWICE = 64 << 20  # bytes of a graph that is opened once more, with one thread
_NUM_TIMED = 5

# How far the example's answer may lie from the one recorded at export, as a share of max(1, |recorded|), by precision.
# Another machine has other kernels: float32 differs in the last bits (TF32 is off), float16 holds 3 digits, and a quantised
# graph turns a last bit into a whole step.
REPLAY_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2}
TEXT_TOLERANCE = REPLAY_TOLERANCE["int8"]  # where the example holds a text to embed: its encoder may be an int8 graph


def num_cuda_devices() -> int:
    """GPUs the CUDA driver sees on this machine; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _session_options(num_threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # Idle worker threads must sleep: spinning takes cores from the event loop that feeds this session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # batch sizes vary
    # Of an int8 graph: without this a CPU that has no VNNI adds pairs of products in 16 bits, which may overflow.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options


def _check_readable(session: ort.InferenceSession) -> None:
    """Look at all names once: bytes of a graph that are no text make ONNX Runtime fail whenever they are asked for."""
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        _ = tensor.name, tensor.type, tensor.shape


def text_session(graph: bytes) -> ort.InferenceSession:
    """The graph of a text encoder, on the CPU and on one thread, which leaves no sum to chance.

    Taken from memory, so that it is the very bytes that were checked; weights in a file beside it are refused.
    Raises `BundleError`.
    """
    try:
        session = ort.InferenceSession(graph, _session_options(1), providers=[CPU])
        _check_readable(session)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise BundleError(f"ONNX Runtime cannot load the text encoder's graph ({reason})") from error
    return session


def _cuda_session(model: bytes, options: ort.SessionOptions) -> ort.InferenceSession | None:
    if CUDA not in ort.get_available_providers() or num_cuda_devices() == 0:
        return None
    ort.preload_dlls()
    # TF32 keeps ten bits of a product, and answers must be those that export verified. Trying every convolution, as EXHAUSTIVE
    # does, would hold up the first request of each batch size. An arena that doubles would take what other processes on the GPU
    # need. Not used, since not yet measured on a GPU: I/O binding (a row is some kB in and less out, copied once each way) and
    # CUDA graphs, which want batches of a few fixed sizes.
    cuda_options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    session = ort.InferenceSession(model, options, providers=[(CUDA, cuda_options), CPU])
    on_gpu = session.get_providers()[0] == CUDA
    if not on_gpu:  # pragma: no branch - the other way needs a GPU
        logger.warning("this machine has a GPU, but ONNX Runtime cannot load its CUDA libraries")
    return session if on_gpu else None


def _interface(tensor: Any) -> str:
    """A graph input's type and shape; a batch axis that takes any size reads "batch"."""
    axes = ["batch" if i == 0 and not isinstance(size, int) else size for i, size in enumerate(tensor.shape)]
    return f"{tensor.type} {axes}"


def _num_rows(arrays: Mapping[str, FloatArray]) -> int:
    return len(next(iter(arrays.values())))


class Runner(Protocol):
    """Runs the graph: an ONNX Runtime session, or `RowParallel`."""

    def run(self, names: Sequence[str], arrays: Mapping[str, FloatArray], /) -> list[FloatArray]:
        """The outputs of these names for (B, columns) arrays."""


class RowParallel:
    """A session of one thread that runs in several at once, each with a share of the rows.

    Threads that share the rows need each other once a batch; threads that share every operator, as ONNX Runtime's do, wait for
    each other at every one of hundreds of small ones.
    """

    def __init__(self, session: Runner, num_threads: int) -> None:
        self._session, self._num_threads = session, num_threads
        self._pool = ThreadPoolExecutor(num_threads - 1, thread_name_prefix="rows")

    def run(self, names: Sequence[str], arrays: Mapping[str, FloatArray]) -> list[FloatArray]:
        """As a session does; the first share is run by the caller's thread."""
        num_rows = _num_rows(arrays)
        num_parts = min(num_rows, self._num_threads)
        limits = [num_rows * i // num_parts for i in range(num_parts + 1)]
        first, *others = ({name: x[i:j] for name, x in arrays.items()} for i, j in pairwise(limits))
        running = [self._pool.submit(self._session.run, names, part) for part in others]
        parts = [self._session.run(names, first), *(future.result() for future in running)]
        return [np.concatenate(output) for output in zip(*parts, strict=True)]


def _doubling(largest: int) -> Iterator[int]:
    """1, 2, 4, ... up to `largest`."""
    return (1 << power for power in range(largest.bit_length()))


def _fastest(runners: Mapping[str, Runner], arrays: Mapping[str, FloatArray]) -> str:
    """The name of the one that takes the least time."""
    return min(runners, key=lambda name: _fastest_s(partial(runners[name].run, OUTPUT_NAMES, arrays)))


def _fastest_s(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, after one to warm up."""
    run()
    times = []
    for _ in range(_NUM_TIMED):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


class Predictor:
    """A bundle's graph, loaded and ready. `run` may be called from several threads."""

    def __init__(self, bundle: Bundle, *, provider: ProviderChoice = "auto", num_threads: int = 1) -> None:
        """Load the graph on the GPU if wanted and possible, else on the CPU.

        Raises `BundleError` when the graph cannot be loaded or differs from the manifest, and `InferenceError` when
        `provider` is "cuda" and no GPU can be used.
        """
        self.manifest = bundle.manifest
        self._bundle, self._num_threads = bundle, num_threads
        self._session = self._open_session(bundle.model_path, provider, _session_options(num_threads))
        self._check_interface()
        self._runners: dict[str, Runner] = {TOGETHER: self._session}
        self.ways: list[str] = [TOGETHER]  # by which of them batches of up to 1, 2, 4, ... rows are run, and larger ones
        self._attribution_session: ort.InferenceSession | None = None
        self._opening = threading.Lock()

    @staticmethod
    def _open_session(path: Path, provider: ProviderChoice, options: ort.SessionOptions) -> ort.InferenceSession:
        """Taken from memory, so that weights in files beside it, which no hash in the manifest covers, are refused."""
        try:
            model = path.read_bytes()
            session = _cuda_session(model, options) if provider != "cpu" else None
            if session is None and provider == "cuda":
                raise InferenceError(f"CUDA was asked for, but no GPU can be used ({num_cuda_devices()} devices seen)")
            session = session or ort.InferenceSession(model, options, providers=[CPU])
            _check_readable(session)
            session.disable_fallback()  # a GPU failure must be an error, not a silent rebuild on the CPU
        except InferenceError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise BundleError(f"{path}: ONNX Runtime cannot load the graph ({reason})") from error
        return session

    def _check_interface(self) -> None:
        found = {tensor.name: _interface(tensor) for tensor in self._session.get_inputs()}
        expected = {m.name: f"{_FLOAT32} {['batch', m.width]}" for m in self.manifest.features.modalities}
        if found != expected:
            raise BundleError(f"expected a graph that reads {expected}, found {found}")
        outputs = {tensor.name: tensor.type for tensor in self._session.get_outputs()}
        if any(outputs.get(name) != _FLOAT32 for name in OUTPUT_NAMES):
            raise BundleError(f"expected a graph that answers {_FLOAT32} {', '.join(OUTPUT_NAMES)}; found {outputs}")

    @property
    def provider(self) -> str:
        """The execution provider in use, by ONNX Runtime's name."""
        provider: str = self._session.get_providers()[0]
        return provider

    def run(self, arrays: dict[str, FloatArray]) -> Output:
        """One pass over (B, columns) float32 arrays, one per modality. Raises `InferenceError`."""
        try:
            way = self.ways[min((_num_rows(arrays) - 1).bit_length(), len(self.ways) - 1)]
            output = Output(*self._runners[way].run(OUTPUT_NAMES, arrays))
        except Exception as error:
            raise InferenceError(f"the graph could not be run ({type(error).__name__})") from error
        found, expected = [array.shape for array in output.arrays], self._shapes(_num_rows(arrays))
        if found != expected:
            raise InferenceError(f"expected a graph that answers arrays of shapes {expected}, found {found}")
        if not all(np.isfinite(array).all() for array in output.arrays):
            raise InferenceError("the graph answered with a number that is not finite")
        return output

    def _shapes(self, num_rows: int) -> list[tuple[int, ...]]:
        num_experts, num_labels = len(self.manifest.experts), len(self.manifest.task.labels)
        return [(num_rows, num_labels), (num_rows, num_labels), (num_rows, num_experts), (num_rows, num_experts, num_labels)]

    def tune(self, largest: int) -> None:
        """Find how batches of 1, 2, 4, ... up to `largest` rows are run fastest, and run them so from now on.

        All threads at one operator suit large graphs; a share of the rows for each thread suits many rows; a single row of a
        small graph is fastest alone, since waking threads costs more than they bring. Takes well under a second; does nothing
        on a GPU, where there is one thread anyway, and where weights are too large to be held twice. Raises `InferenceError`.
        """
        size = self._bundle.model_path.stat().st_size
        if self.provider != CPU or self._num_threads == 1 or size > _LARGEST_TWICE:
            return
        single = self._open_session(self._bundle.model_path, "cpu", _session_options(1))
        runners = {ALONE: single, ROWS: RowParallel(single, self._num_threads), TOGETHER: self._session}
        row = self.manifest.features.encode(self.manifest.example.record).arrays
        batches = (self.manifest.features.stack([row] * num_rows) for num_rows in _doubling(largest))
        try:
            ways = [_fastest(runners, arrays) for arrays in batches]
        except Exception as error:
            raise InferenceError(f"the graph could not be run with several rows ({type(error).__name__})") from error
        self._runners, self.ways = runners, ways

    def attribute(self, arrays: Mapping[str, FloatArray], label: FloatArray) -> Attribution:
        """Which features drove each expert on (B, columns) arrays, towards the label of each row, one-hot (B, C).

        The first call loads the bundle's second graph. Raises `InferenceError`, also where the bundle has none.
        """
        session, schema = self._open_attribution(), self.manifest.features
        try:
            found = session.run(attribution_outputs(schema), {**arrays, LABEL_INPUT: label})
        except Exception as error:
            raise InferenceError(f"the attribution graph could not be run ({type(error).__name__})") from error
        attribution = Attribution.of(schema, found)
        if not attribution.fits(schema, num_rows=_num_rows(arrays), num_experts=len(self.manifest.experts)):
            raise InferenceError("the attribution graph answered with arrays of other shapes than the schema's")
        if not attribution.is_finite():
            raise InferenceError("the attribution graph answered with a number that is not finite")
        return attribution

    def _open_attribution(self) -> ort.InferenceSession:
        with self._opening:
            if self._attribution_session is None:
                path = self._bundle.attribution_path
                if path is None:
                    raise InferenceError("this bundle has no attribution graph")
                provider: ProviderChoice = "cpu" if self.provider == CPU else "cuda"
                try:
                    self._attribution_session = self._open_session(path, provider, _session_options(self._num_threads))
                except BundleError as error:
                    raise InferenceError(str(error)) from error
            return self._attribution_session

    def replay_example(self) -> float:
        """Score the manifest's example and compare with its recorded answer.

        Loads the encoders of texts first. Answers the largest difference, as a share of the recorded number where that is
        above 1; raises `InferenceError` when it exceeds the `REPLAY_TOLERANCE` of the graph's precision or a shape differs.
        """
        manifest = self.manifest
        load_encoders(manifest.features)
        output = self.run(manifest.features.encode_many([manifest.example.record]))
        answer = manifest.example.answer
        worst = max(_difference(name, getattr(output, name)[0], getattr(answer, name)) for name in OUTPUT_NAMES)
        limit = max(REPLAY_TOLERANCE[manifest.graph.precision], TEXT_TOLERANCE if manifest.features.embedded else 0)
        if not worst <= limit:  # NaN too
            raise InferenceError(f"the bundle's example answers {worst:.2g} away from its recorded answer (limit {limit:g})")
        return worst


def _difference(name: str, found: FloatArray, recorded: Sequence[Any]) -> float:
    expected = np.asarray(recorded, np.float64)
    if found.shape != expected.shape:
        raise InferenceError(f"expected {name} of shape {expected.shape} for the bundle's example, found {found.shape}")
    return float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())
