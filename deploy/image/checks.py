"""What an image promises, held against what was found in its container. Every broken promise is one sentence."""

from collections.abc import Iterator, Mapping
from typing import Any

from deploy.image.engine import Image

USER = 10001
MAX_MB = {"cpu": 700.0, "cuda": 4000.0}
MAX_STOP_S = 15.0  # I2MOE_TIMEOUT_S and BentoML's 5 s
SECCOMP_FILTER = 2
CUDA_DRIVER = "libcuda.so.1"  # the machine's, never the image's
WRITABLE = {"/tmp", "/dev/shm", "/dev/mqueue"}  # the last two are the engine's, in memory, and unused
LABELS = ("title", "description", "version", "revision", "licenses")


def problems(image: Image, found: Mapping[str, Any]) -> list[str]:
    """Every promise that does not hold; empty for an image that is as it should be."""
    checks = (
        _described(image),
        _answered(found["answers"]),
        _scored(found["files"]),
        _confined(found["processes"]),
        _mounted(found),
        _packed(image, found),
    )
    return [problem for check in checks for problem in check]


def stopped(status: int, seconds: float) -> list[str]:
    """The same of the way it ended at SIGTERM."""
    late = [f"stopping took {seconds:.1f} s, expected {MAX_STOP_S:g} s at most"] if seconds > MAX_STOP_S else []
    return late + ([f"the exit status at SIGTERM was {status}, expected 0"] if status else [])


def _described(image: Image) -> Iterator[str]:
    if image.user.partition(":")[0] != str(USER):
        yield f"the image's user is {image.user!r}, expected {USER}"
    if image.stop_signal != "SIGTERM":
        yield f"the image is stopped by {image.stop_signal!r}, expected SIGTERM"
    if not image.health:
        yield "the image has no health check (podman and buildah need --format docker)"
    absent = [name for name in LABELS if not image.labels.get(f"org.opencontainers.image.{name}")]
    if absent:
        yield f"labels are absent: {', '.join(absent)}"


def _answered(answers: Mapping[str, Any]) -> Iterator[str]:
    paths = ("/livez", "/readyz", "/model", "/predict", "/metrics")
    yield from (f"{path} answered {answers[path]['status']}, expected 200" for path in paths if answers[path]["status"] != 200)
    if answers["/predict"]["status"] == 200:
        prediction, example = answers["/predict"]["body"]["predictions"][0], answers["/model"]["body"]["example"]
        yield from _predicted(prediction, example)
    if not answers["num_series"]:
        yield "/metrics has no series i2moe_*"


def _predicted(prediction: Mapping[str, Any], example: Mapping[str, Any]) -> Iterator[str]:
    """Answers are rounded to 4 places; the example's answer is the exporter's own."""
    if prediction["status"] != "ok":
        yield f"/predict answered the bundle's example with status {prediction['status']!r}"
    elif "probabilities" in prediction:
        pairs = zip(prediction["probabilities"].values(), example["answer"]["prediction"], strict=True)
        furthest = max(abs(found - expected) for found, expected in pairs)
        if furthest > 1e-3:
            yield f"/predict is {furthest:.4f} from the bundle's own answer, expected 0.001 at most"


def _scored(files: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"scoring a file into {kind} gave {told!r}, expected 1 row" for kind, told in files.items() if told != 1)


def _confined(processes: list[Mapping[str, Any]]) -> Iterator[str]:
    for process in processes:
        name = process["command"]
        if process["uids"] != [USER]:
            yield f"{name!r} runs as {process['uids']}, expected {USER}"
        held = [kind for kind, bits in process["capabilities"].items() if bits]
        if held:
            yield f"{name!r} has capabilities in {', '.join(held)}, expected none"
        if process["no_new_privs"] != 1:
            yield f"{name!r} may gain privileges"
        if process["seccomp"] != SECCOMP_FILTER:
            yield f"{name!r} runs without a seccomp filter"


def _mounted(found: Mapping[str, Any]) -> Iterator[str]:
    for path, mount in found["mounts"].items():
        if path == "/tmp" and not mount["noexec"]:
            yield "programs can be started from /tmp"
        elif path != "/tmp" and not mount["read_only"]:
            yield f"{path} can be written"
    if found["runs_from_tmp"]:
        yield "a program in /tmp was started"
    surplus = sorted(path for path in found["writable"] if path not in WRITABLE and not path.startswith("/tmp/"))
    if surplus:
        yield f"the user can write {', '.join(surplus[:5])} ({len(surplus)} in all), expected /tmp alone"


def _packed(image: Image, found: Mapping[str, Any]) -> Iterator[str]:
    most = MAX_MB[image.labels.get("org.i2moe.accelerator", "cpu")]
    if found["size_mb"] > most:
        yield f"the image has {found['size_mb']:.0f} MB unpacked, expected {most:.0f} at most"
    if found["setuid"]:
        yield f"files run as another user: {', '.join(found['setuid'])}"
    if found["tools"]:
        yield f"tools are in the image: {', '.join(found['tools'])}"
    if found["unresolved_cuda"] and CUDA_DRIVER not in found["unresolved_cuda"]:
        yield f"ONNX Runtime's CUDA part cannot be loaded: {found['unresolved_cuda']}; only {CUDA_DRIVER} may be absent"
    if found["num_uncompiled"]:
        yield f"{found['num_uncompiled']} modules would be compiled at every start, expected none"
