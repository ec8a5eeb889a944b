"""Training in several processes, as `torchrun` starts them: who this process is, and what the processes share.

    torchrun --nproc-per-node 2 -m training fit RECIPE.toml --out RUN

Each process holds the whole model and works on its slice of every batch; DistributedDataParallel averages gradients. The
first process alone validates, writes files and talks. A process that runs alone is the first of one, and nothing here does
anything. What depends on a batch as a whole (load-balancing losses, batch normalisation, `masking = "mean"`) sees the
process's own slice. torch's own gloo (CPU) and nccl (GPU) do the talking.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import RecipeError, RunError, TrainingError

T = TypeVar("T")

_NO_TROUBLE = (  # what DistributedDataParallel says of an axis of size 1, and of a model whose every parameter is used
    "Grad strides do not match bucket view strides",
    "find_unused_parameters=True was specified in DDP constructor",
)


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Within, the processes that torchrun started know each other; `device` is the recipe's. Raises `RecipeError`.

    An error leaves at once, without a farewell that the others may never answer: torchrun then ends them all.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    with_gpus = device != "cpu" and torch.cuda.is_available()
    if with_gpus:
        _take_gpu()
    dist.init_process_group("cpu:gloo,cuda:nccl" if with_gpus else "gloo")
    yield
    dist.destroy_process_group()


def _take_gpu() -> None:
    """From here on "cuda" is the GPU of this process."""
    own, num_gpus = dist.get_node_local_rank(), torch.cuda.device_count()
    if own >= num_gpus:
        raise RecipeError(
            f"train.device: expected a GPU for every process, found {num_gpus} for process {own + 1} of this machine"
        )
    torch.cuda.set_device(own)


def choose_device(wanted: str) -> torch.device:
    """`auto` is this process's GPU (alone: the first) if there is one, else the CPU. Raises `RecipeError`."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if num_processes() > 1 and ":" in name:
        raise RecipeError(f"train.device: expected auto, cuda or cpu for {num_processes()} processes, found {name!r}")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA asserts
        raise RecipeError(f"train.device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def refuse_several(command: str) -> None:
    """Raises `RunError` where torchrun started a command that one process does alone."""
    if dist.is_torchelastic_launched():
        raise RunError(f"{command}: expected one process, found one of torchrun's; only fit trains in several")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that validates, writes and talks."""
    return rank() == 0


def first_says(answer: Callable[[], T]) -> T:
    """What `answer` gives in the first process, in all of them; the others wait and do not call it.

    A `TrainingError` of the first process is raised in all.
    """
    if num_processes() == 1:
        return answer()
    told = [_answer_or_error(answer) if is_first() else None]
    dist.broadcast_object_list(told)
    if isinstance(told[0], TrainingError):
        raise told[0]
    return told[0]  # type: ignore[return-value]  # the first process's answer


def _answer_or_error(answer: Callable[[], T]) -> T | TrainingError:
    try:
        return answer()
    except TrainingError as error:
        return error


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors."""
    if num_processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def share_gradients(module: nn.Module) -> nn.Module:
    """`module`, whose backward pass leaves the mean of all processes' gradients; all start from the first one's weights.

    Recipes differ in which parameters a step reaches (a modality without numbers, an expert without tokens), so those
    that stay unused are looked for in every step.
    """
    if num_processes() == 1:
        return module
    for message in _NO_TROUBLE:
        warnings.filterwarnings("ignore", message)
    return DistributedDataParallel(module, find_unused_parameters=True)


def without_sharing(module: nn.Module) -> AbstractContextManager[None]:
    """Within, backward passes add to this process's own gradients, which the next pass outside shares."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
