"""What each of two processes does in the test of resuming: `torchrun ... -m tests.training.two_processes FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from training import distributed
from training.checkpoint import load_document
from training.data.dataset import load_dataset
from training.errors import RunError
from training.recipe import load_recipe
from training.run import make_trainer
from training.trainer import Trainer


def check(folder: Path) -> None:
    """Two epochs straight; one, a new trainer and one more; then compare, also between the processes."""
    recipe = load_recipe(folder / "recipe.toml")
    dataset = load_dataset(recipe.data, folder, seed=0)

    def start(name: str) -> Trainer:
        if distributed.is_first():
            (folder / name).mkdir(exist_ok=True)
        return make_trainer(recipe, dataset, folder / name)

    with distributed.process_group("cpu"):
        straight = start("straight")
        list(straight.epochs())
        next(start("stopped").epochs())
        resumed = start("stopped")
        resumed.resume()
        assert [record.epoch for record in resumed.epochs()] == [1]
        assert straight.state.history == resumed.state.history
        wanted, found = straight.state.model.state_dict(), resumed.state.model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        everyones = [wanted, wanted]
        dist.all_gather_object(everyones, wanted)
        assert all(torch.equal(everyones[0][name], everyones[1][name]) for name in wanted)
        try:
            distributed.first_says(lambda: load_document(folder / "absent.pt"))
        except RunError as error:
            sys.stdout.write(f"rank {distributed.rank()}: all as it should be, {error}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    check(Path(sys.argv[1]))
