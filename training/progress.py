"""Shows epochs as they end: a bar on a terminal, one line per epoch elsewhere."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from training.checkpoint import FIRST_STAGE
from training.train_config import TrainConfig
from training.trainer import EpochRecord

_SHOWN = ("auroc", "log_loss", "r2_contributions", "r2_sum")


def epoch_line(record: EpochRecord, config: TrainConfig, *, stage: str | None = None) -> str:
    """The losses and validation values of one epoch; of a stage after the first its one loss."""
    first = config.selection if config.selection in record.validation else next(iter(record.validation))
    shown = [name for name in dict.fromkeys((first, *_SHOWN)) if name in record.validation]
    validation = "  ".join(f"{name} {record.validation[name]:.4f}" for name in shown)
    losses = f"loss {record.loss:.4f}"
    if stage in (None, FIRST_STAGE):
        losses += f"  task {record.task_loss:.4f}"
        if record.interaction:
            losses += f"  interaction {sum(record.interaction.values()) / len(record.interaction):.4f}"
    return f"{losses}  validation {validation}"


def show_notes(notes: Iterable[str]) -> None:
    """What the data's reader noticed, a line each on standard error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)  # noqa: T201 - as progress


def show_progress(
    epochs: Iterator[EpochRecord], config: TrainConfig, *, first_epoch: int, silent: bool = False, stage: str | None = None
) -> None:
    """Run all epochs, telling each one on standard error, unless another process does. `stage` is named where given."""
    if silent:
        deque(epochs, maxlen=0)
        return
    if not sys.stderr.isatty():
        named = "" if stage is None else f"{stage}: "
        for record in epochs:
            line = epoch_line(record, config, stage=stage)
            print(f"{named}epoch {record.epoch + 1}/{config.epochs}  {line}", file=sys.stderr, flush=True)  # noqa: T201 - progress is for people
        return
    with tqdm(total=config.epochs, initial=first_epoch, unit="epoch", desc=stage) as bar:
        for record in epochs:
            bar.set_postfix_str(epoch_line(record, config, stage=stage))
            bar.update()
