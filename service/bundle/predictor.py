"""Runs a bundle's graph with ONNX Runtime: the only module that knows onnxruntime.

Chooses the execution provider by asking the driver first, because ONNX Runtime lists CUDA as available on machines
that have none and silently falls back to the CPU.
"""

import ctypes
import logging
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle.errors import BundleError, InferenceError
from service.bundle.output import OUTPUT_NAMES, Output
from service.bundle.store import Bundle

logger = logging.getLogger("i2moe.predictor")

FloatArray = NDArray[np.float32]
ProviderChoice = Literal["auto", "cuda", "cpu"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# The answer recorded at export may come from another machine: float32 kernels differ in the last bits, TF32 is off.
REPLAY_ATOL = 1e-4


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
    options.log_severity_level = 3
    return options


def _cuda_session(model: str, options: ort.SessionOptions) -> ort.InferenceSession | None:
    if CUDA not in ort.get_available_providers() or num_cuda_devices() == 0:
        return None
    ort.preload_dlls()
    cuda_options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    session = ort.InferenceSession(model, options, providers=[(CUDA, cuda_options), CPU])
    return session if session.get_providers()[0] == CUDA else None


class Predictor:
    """A bundle's graph, loaded and ready. `run` may be called from several threads."""

    def __init__(self, bundle: Bundle, *, provider: ProviderChoice = "auto", num_threads: int = 1) -> None:
        """Load the graph on the GPU if wanted and possible, else on the CPU.

        Raises `BundleError` when the graph cannot be loaded or differs from the manifest, and `InferenceError` when
        `provider` is "cuda" and no GPU can be used.
        """
        self.manifest = bundle.manifest
        self._session = self._open_session(bundle, provider, _session_options(num_threads))
        self._session.disable_fallback()  # a GPU failure must be an error, not a silent rebuild on the CPU
        self._check_interface()

    @staticmethod
    def _open_session(bundle: Bundle, provider: ProviderChoice, options: ort.SessionOptions) -> ort.InferenceSession:
        model = str(bundle.model_path)
        try:
            session = _cuda_session(model, options) if provider != "cpu" else None
            if session is None and provider == "cuda":
                raise InferenceError(f"CUDA was asked for, but no GPU can be used ({num_cuda_devices()} devices seen)")
            return session or ort.InferenceSession(model, options, providers=[CPU])
        except InferenceError:
            raise
        except Exception as error:
            raise BundleError(f"{model}: ONNX Runtime cannot load the graph ({type(error).__name__})") from error

    def _check_interface(self) -> None:
        found_inputs = {tensor.name: tensor.shape[-1] for tensor in self._session.get_inputs()}
        wanted_inputs = {modality.name: modality.width for modality in self.manifest.features.modalities}
        found_outputs = {tensor.name for tensor in self._session.get_outputs()}
        if found_inputs != wanted_inputs or not found_outputs.issuperset(OUTPUT_NAMES):
            raise BundleError(
                f"the graph reads {found_inputs} and answers {sorted(found_outputs)}; "
                f"the manifest promises {wanted_inputs} and {sorted(OUTPUT_NAMES)}"
            )

    @property
    def provider(self) -> str:
        """The execution provider in use, by ONNX Runtime's name."""
        provider: str = self._session.get_providers()[0]
        return provider

    def run(self, arrays: dict[str, FloatArray]) -> Output:
        """One pass over (B, columns) float32 arrays, one per modality. Raises `InferenceError`."""
        try:
            output = Output(*self._session.run(OUTPUT_NAMES, arrays))
        except Exception as error:
            raise InferenceError(f"the graph could not be run ({type(error).__name__})") from error
        if not np.isfinite(output.prediction).all():
            raise InferenceError("the graph answered with a number that is not finite")
        return output

    def replay_example(self) -> float:
        """Score the manifest's example and compare with its recorded answer.

        Answers the largest absolute difference; raises `InferenceError` when it exceeds `REPLAY_ATOL`.
        """
        example = self.manifest.example
        output = self.run(self.manifest.features.encode_many([example.record]))
        differences = [
            np.abs(getattr(output, name)[0] - np.asarray(getattr(example.answer, name), np.float32)).max()
            for name in OUTPUT_NAMES
        ]
        worst = float(max(differences))
        if worst > REPLAY_ATOL:
            raise InferenceError(
                f"the bundle's example answers {worst:.2g} away from its recorded answer (limit {REPLAY_ATOL:g})"
            )
        return worst
