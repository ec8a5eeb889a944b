"""The [train] section of a recipe."""

from typing import Literal

from pydantic import Field

from training.config import Config


class TrainConfig(Config):
    """How the weights are found."""

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=128, ge=1)  # rows of an optimiser step, over all processes and micro-batches
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)  # on matrices only, never on biases, norms and tokens
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up: to zero over `epochs`, or as it is
    warmup_epochs: float = Field(default=1.0, ge=0)  # linear
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.995, ge=0, lt=1)  # weight averaging; 0 evaluates the raw weights
    patience: int = Field(default=8, ge=1)  # stop after this many epochs without a better validation value
    selection: str | None = None  # the validation metric that chooses the epoch; the task's own choice if not given
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    device: str = "auto"  # auto: the first GPU (under torchrun each process's own), else the CPU
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the training passes (autocast); losses and all scoring are fp32
    workers: int = Field(default=0, ge=0)  # processes that read ahead what stays in files; arrays in memory need none
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches of an optimiser step. A step is still of `batch_size` rows, over all processes: each process cuts its
    slice of them into `accumulate` pieces, goes through one at a time and adds up the gradients. 4 needs a quarter of the
    memory and gives the same step, but for what depends on a batch as a whole (batch normalisation, load balancing)."""
    num_bootstraps: int = Field(default=1000, ge=0)  # for the metrics' confidence intervals
