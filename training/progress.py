"""Shows epochs as they end: a bar on a terminal, one line per epoch elsewhere."""

import sys
from collections import deque
from collections.abc import Iterator

from tqdm import tqdm

from training.train_config import TrainConfig
from training.trainer import EpochRecord

_SHOWN = ("auroc", "log_loss")


def epoch_line(record: EpochRecord, config: TrainConfig) -> str:
    """The losses and validation values of one epoch."""
    first = config.selection or next(iter(record.validation))
    shown = [name for name in dict.fromkeys((first, *_SHOWN)) if name in record.validation]
    validation = "  ".join(f"{name} {record.validation[name]:.4f}" for name in shown)
    losses = f"loss {record.loss:.4f}  task {record.task_loss:.4f}"
    if record.interaction:
        losses += f"  interaction {sum(record.interaction.values()) / len(record.interaction):.4f}"
    return f"{losses}  validation {validation}"


def show_progress(epochs: Iterator[EpochRecord], config: TrainConfig, *, first_epoch: int, silent: bool = False) -> None:
    """Run all epochs, telling each one on standard error, unless another process does."""
    if silent:
        deque(epochs, maxlen=0)
        return
    if not sys.stderr.isatty():
        for record in epochs:
            print(f"epoch {record.epoch + 1}/{config.epochs}  {epoch_line(record, config)}", file=sys.stderr, flush=True)  # noqa: T201 - progress is for people
        return
    with tqdm(total=config.epochs, initial=first_epoch, unit="epoch") as bar:
        for record in epochs:
            bar.set_postfix_str(epoch_line(record, config))
            bar.update()
