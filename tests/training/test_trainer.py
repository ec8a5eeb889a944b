import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from service.bundle.features import NumericFeature
from service.bundle.schema import FeatureSchema, Modality
from tests.training import small_model
from tests.training.small_data import TINY_ENCODER, recipe, write_data
from training import distributed
from training.batches import micro_batches
from training.checkpoint import STATE_FILE, load_document, save_atomically
from training.data.dataset import Dataset, load_dataset
from training.errors import RecipeError, RunError
from training.inference import predict
from training.model.fusion import FUSIONS
from training.run import make_trainer
from training.trainer import Trainer, hide_modalities, parameter_groups


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(recipe().data, write_data(tmp_path_factory.mktemp("data")), seed=0)


def trainer(dataset: Dataset, run: Path, changes: dict[str, Any] | None = None) -> Trainer:
    run.mkdir(exist_ok=True)
    return make_trainer(recipe(changes), dataset, run)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.state.model.state_dict()


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_run_continues_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    """Four epochs straight, or two, a new process and two more: the same weights, average and history."""
    changes = {"train.epochs": 4, "model.modality_dropout": 0.2}
    straight = trainer(dataset, tmp_path / "straight", changes)
    records = list(straight.epochs())
    stopped = trainer(dataset, tmp_path / "stopped", changes)
    epochs = stopped.epochs()
    next(epochs), next(epochs)
    epochs.close()
    torch.rand(7)  # whatever happens in between
    resumed = trainer(dataset, tmp_path / "stopped", changes)
    resumed.resume()
    assert [record.epoch for record in resumed.epochs()] == [2, 3]
    assert equal(weights(straight), weights(resumed))
    assert equal(straight.best_model().state_dict(), resumed.best_model().state_dict())
    assert equal(straight.state.average.state_dict(), resumed.state.average.state_dict())
    assert straight.state.history == resumed.state.history
    assert straight.state.best_epoch == resumed.state.best_epoch
    assert [entry["epoch"] for entry in straight.state.history] == [r.epoch for r in records] == [0, 1, 2, 3]


def test_resume_without_a_state_starts_anew(dataset: Dataset, tmp_path: Path) -> None:
    """A run that never finished an epoch has nothing to continue from."""
    fresh = trainer(dataset, tmp_path)
    fresh.resume()
    assert fresh.state.next_epoch == 0


def test_the_seed_decides_everything(dataset: Dataset, tmp_path: Path) -> None:
    """The same seed gives the same weights, another seed others."""
    first, again, other = (trainer(dataset, tmp_path / str(i), {"train.seed": seed}) for i, seed in enumerate((5, 5, 6)))
    for each in (first, again, other):
        next(each.epochs())
    assert equal(weights(first), weights(again))
    assert not equal(weights(first), weights(other))


@pytest.mark.parametrize("how", ["another model", "no optimizer", "no history", "not a state"])
def test_a_state_that_does_not_fit_is_told(dataset: Dataset, tmp_path: Path, how: str) -> None:
    """A training state of another model, or damaged, is refused in one line."""
    first = trainer(dataset, tmp_path, {"model.hidden_dim": 4} if how == "another model" else None)
    next(first.epochs())
    document = load_document(tmp_path / STATE_FILE)
    if how.startswith("no "):
        del document[how.removeprefix("no ")]
        save_atomically(document, tmp_path / STATE_FILE)
    elif how == "not a state":
        (tmp_path / STATE_FILE).write_bytes(b"lost")
    with pytest.raises(RunError, match=r"belongs to another recipe: |is damaged") as error:
        trainer(dataset, tmp_path).resume()
    assert "\n" not in str(error.value)


def test_training_stops_when_validation_no_longer_improves(dataset: Dataset, tmp_path: Path) -> None:
    """`patience` epochs without a better value end the run, the weights are those of the best epoch, resume adds nothing."""
    changes = {"train.epochs": 60, "train.patience": 3, "train.selection": "log_loss", "train.learning_rate": 0.05,
               "train.ema_decay": 0.0}  # fmt: skip
    early = trainer(dataset, tmp_path, changes)
    records = list(early.epochs())
    losses = [record.validation["log_loss"] for record in records]
    assert len(records) < 60
    assert early.state.best_epoch == int(np.argmin(losses)) == len(records) - 1 - 3
    assert early.state.best_value == min(losses)
    arrays, target = dataset.part("validation")
    best = predict(early.best_model(), dataset.schema, arrays).prediction
    assert -np.log(best[np.arange(len(target)), target]).mean() == pytest.approx(min(losses), abs=1e-5)
    again = trainer(dataset, tmp_path, changes)
    again.resume()
    assert list(again.epochs()) == []


def test_history_tells_losses_and_validation(dataset: Dataset, tmp_path: Path) -> None:
    """Each epoch has its loss, the experts' interaction losses by name and every metric; none without interaction losses."""
    record = next(trainer(dataset, tmp_path / "a").epochs())
    assert list(record.interaction) == ["unique:labs", "unique:person", "synergy", "redundancy"]
    mean = sum(record.interaction.values()) / 4
    assert record.loss == pytest.approx(record.task_loss + 0.05 * mean, abs=1e-5)
    assert {"auroc", "log_loss", "brier", "accuracy"} <= set(record.validation)
    plain = next(trainer(dataset, tmp_path / "b", {"objective.interaction_weight": 0}).epochs())
    assert plain.interaction == {}
    assert plain.loss == pytest.approx(plain.task_loss)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(dataset: Dataset, tmp_path: Path) -> None:
    """Linear over the warm-up, 1 at its end, 0.5 halfway through the rest, towards 0 at the last step."""
    steps = trainer(dataset, tmp_path, {"train.epochs": 9, "train.warmup_epochs": 1, "train.batch_size": 18})
    assert steps.steps_per_epoch == 4
    found = [steps._schedule(step) for step in range(36)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4] == 1.0
    assert found[20] == pytest.approx(0.5)
    assert found[35] == pytest.approx(0.5 * (1 + math.cos(math.pi * 31 / 32)))
    assert all(a >= b for a, b in itertools.pairwise(found[4:]))


@pytest.mark.parametrize("warmup", [0, 0.1, 0.3, 1.3, 50])
def test_the_learning_rate_never_exceeds_its_setting(dataset: Dataset, tmp_path: Path, warmup: float) -> None:
    """Warm-ups of a part of a step, or longer than the run, keep the factor between 0 and 1."""
    steps = trainer(dataset, tmp_path, {"train.epochs": 3, "train.warmup_epochs": warmup})
    assert all(0 < steps._schedule(step) <= 1 for step in range(3 * steps.steps_per_epoch))


def test_the_optimizer_follows_the_schedule(dataset: Dataset, tmp_path: Path) -> None:
    """After an epoch of warm-up every parameter group has the full learning rate."""
    first = trainer(dataset, tmp_path)
    next(first.epochs())
    assert {group["lr"] for group in first.state.optimizer.param_groups} == {0.01}


def test_weight_averages_follow_the_formula(dataset: Dataset, tmp_path: Path) -> None:
    """average += (1 - decay) (weights - average), decay = min(ema_decay, (1 + steps) / (10 + steps)), from the first step on."""
    kept = trainer(dataset, tmp_path, {"train.ema_decay": 0.3, "train.batch_size": 12})
    name, rows = "reweighting.mlp.0.weight", torch.arange(12)
    average = None
    for step in range(6):
        kept.state.model.train()
        kept._step(micro_batches(rows, 1), kept.batches([rows]), step)
        now = weights(kept)[name].clone()
        decay = min(0.3, (1 + step) / (10 + step))
        average = now if average is None else average + (1 - decay) * (now - average)
        torch.testing.assert_close(kept.state.average.module.state_dict()[name], average)
    assert not torch.equal(average, now)  # type: ignore[arg-type]


def test_validation_sees_averaged_weights_unless_turned_off(dataset: Dataset, tmp_path: Path) -> None:
    """The best weights are the average's, or with ema_decay 0 the model's own."""
    averaged, raw = (trainer(dataset, tmp_path / str(d), {"train.ema_decay": d, "train.epochs": 1}) for d in (0.9, 0.0))
    for each in (averaged, raw):
        list(each.epochs())
    assert equal(averaged.state.best_weights, averaged.state.average.module.state_dict())
    assert not equal(averaged.state.best_weights, weights(averaged))
    assert equal(raw.state.best_weights, weights(raw))


def test_weight_decay_is_for_matrices_alone() -> None:
    """Biases, norms, positions, missing values and tokens are free; nothing is in both groups or in none."""
    model = small_model.model()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, free = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.3))
    assert sorted(decayed + free) == sorted(names.values())
    assert [group["weight_decay"] for group in parameter_groups(model, 0.3)] == [0.3, 0.0]
    for word in ("bias", "norm", "position", "missing"):
        assert not [name for name in decayed if word in name]
    assert {"experts.0.head.weight", "encoders.0.encoder.mix.weight", "reweighting.mlp.0.weight"} <= set(decayed)
    assert {"encoders.0.missing_token", "encoders.0.encoder.numeric.missing", "experts.0.position"} <= set(free)


def test_the_frozen_are_not_optimised() -> None:
    """Parameters that want no gradient are in no group."""
    model = small_model.model()
    model.encoders.requires_grad_(requires_grad=False)
    found = {id(p) for group in parameter_groups(model, 0.3) for p in group["params"]}
    assert found == {id(p) for name, p in model.named_parameters() if not name.startswith("encoders.")}


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_no_backbone_has_a_bias_or_a_norm_that_decays(fusion: str) -> None:
    """Also where several layers' vectors are stacked to a matrix."""
    model = small_model.model({"fusion": fusion})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = [names[id(p)] for p in parameter_groups(model, 0.3)[0]["params"]]
    assert not [name for name in decayed if "bias" in name or "norm" in name]


def test_clipping_bounds_the_gradient_of_a_step(dataset: Dataset, tmp_path: Path) -> None:
    """The optimiser sees a gradient of norm `max_grad_norm` at most: with SGD the step is at most lr times it."""
    for limit in (1e-3, 1e-6):
        clipped = trainer(dataset, tmp_path, {"train.max_grad_norm": limit, "train.warmup_epochs": 0})
        model = clipped.state.model
        clipped.state.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        before, rows = copy.deepcopy(dict(model.named_parameters())), torch.arange(16)
        clipped._step(micro_batches(rows, 1), clipped.batches([rows]), 0)
        moved = math.sqrt(sum((p - before[name]).square().sum().item() for name, p in model.named_parameters()))
        assert 0 < moved <= 0.01 * limit * 1.01


def sixteen_rows() -> Dataset:
    """Sixteen rows of noise with random labels: nothing to generalise, everything to remember."""
    generator = np.random.default_rng(0)
    number = [NumericFeature(name=name, minimum=-3, maximum=3) for name in "abc"]
    schema = FeatureSchema(modalities=tuple(Modality(name=name, features=tuple(number)) for name in ("one", "two")))
    arrays = {name: generator.normal(size=(16, 3)).astype(np.float32) for name in ("one", "two")}
    everyone = np.arange(16)
    splits = dict.fromkeys(("train", "validation", "test"), everyone)
    return Dataset(schema, small_model.TASK, arrays, generator.permutation(everyone % 2), splits, ())


def test_it_learns_sixteen_rows_by_heart(tmp_path: Path) -> None:
    """The whole of model, objective and optimiser can drive the loss of a handful of rows to nothing."""
    changes = {"train.epochs": 50, "train.patience": 50, "train.batch_size": 16, "train.learning_rate": 0.03,
               "train.ema_decay": 0.0, "train.selection": "log_loss", "train.weight_decay": 0.0, "model.dropout": 0.0,
               "model.modality_dropout": 0.0,
               "model.hidden_dim": 16, "model.reweighting": {"hidden_dim": 16, "dropout": 0.0},
               "model.encoders": {"default": {"noise": 0.0, "dropout": 0.0}}}  # fmt: skip
    by_heart = trainer(sixteen_rows(), tmp_path, changes)
    records = list(by_heart.epochs())
    assert records[0].validation["log_loss"] > 0.4
    assert by_heart.state.best_value is not None
    assert by_heart.state.best_value < 0.02


def test_divergence_is_one_line_and_keeps_the_last_good_epoch(dataset: Dataset, tmp_path: Path) -> None:
    """Weights that are no longer numbers end the run with advice, not with a traceback from a metric."""
    lost = trainer(dataset, tmp_path, {"train.epochs": 5})
    epochs = lost.epochs()
    next(epochs)
    with torch.no_grad():
        next(lost.state.model.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match=r"epoch 2: the model answers NaN; lower train.learning_rate \(0.01\)"):
        next(epochs)
    assert load_document(tmp_path / STATE_FILE)["next_epoch"] == 1


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.99])
def test_hidden_modalities_leave_every_sample_one(rate: float) -> None:
    """Whole modalities become NaN at about the rate, never a sample's last one, and what was missing stays so."""
    torch.manual_seed(0)
    inputs = small_model.rows(2000)
    inputs[0][:500] = torch.nan
    inputs[1][:300] = torch.nan
    inputs[2][:, 0] = torch.nan
    hidden = hide_modalities(inputs, rate)
    present = torch.stack([~torch.isnan(x).all(dim=1) for x in hidden])
    assert present.any(dim=0).all()
    assert not present[0, :500].any()
    for before, after in zip(inputs, hidden, strict=True):
        whole = torch.isnan(after).all(dim=1)
        torch.testing.assert_close(after[~whole], before[~whole], equal_nan=True)
    if rate == 0.5:  # rows with three modalities: hidden, unless the draw would hide all three
        assert 1 - present[:, 500:].float().mean().item() == pytest.approx(0.5 - 0.125, abs=0.02)
    if rate == 0:
        assert all(x is y for x, y in zip(inputs, hidden, strict=True))


QUIET: dict[str, Any] = {
    "model.dropout": 0.0, "model.modality_dropout": 0.0, "model.reweighting": {"hidden_dim": 8, "dropout": 0.0},
    "model.encoders": {"default": {**TINY_ENCODER, "noise": 0.0, "dropout": 0.0}}, "objective.masking": "zero",
}  # fmt: skip  # nothing drawn but the order of the rows


@pytest.mark.parametrize("changes", [{}, {"objective.class_weights": "balanced"}, {"model.fusion": "mult"}], ids=str)
@pytest.mark.parametrize("accumulate", [2, 40])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    dataset: Dataset, tmp_path: Path, changes: dict[str, Any], accumulate: int
) -> None:
    """Micro-batches of unequal size, by rows or by what their classes weigh, add up to the losses of whole batches."""
    changes = QUIET | changes | {"train.batch_size": 23}
    whole = list(trainer(dataset, tmp_path / "whole", changes).epochs())
    pieces = list(trainer(dataset, tmp_path / "pieces", changes | {"train.accumulate": accumulate}).epochs())
    for one, other in zip(whole, pieces, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-5)
        assert other.task_loss == pytest.approx(one.task_loss, abs=1e-5)
        assert other.interaction == pytest.approx(one.interaction, abs=1e-4)  # Adam magnifies rounding where gradients are tiny
        assert other.validation["log_loss"] == pytest.approx(one.validation["log_loss"], abs=1e-4)


def test_a_step_is_of_batch_size_rows_however_it_is_cut(dataset: Dataset, tmp_path: Path) -> None:
    """`accumulate` changes neither the number of steps nor which rows they take."""
    one, cut = (trainer(dataset, tmp_path / str(n), {"train.accumulate": n}) for n in (1, 3))
    drawn = [[torch.cat([batch.rows for batch in step]) for step in each._draw_steps(4)] for each in (one, cut)]
    assert [len(rows) for rows in drawn[0]] == [32, 32, 8]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert [len(step) for step in cut._draw_steps(4)] == [3, 3, 3]


def test_every_process_draws_the_same_order_and_its_own_noise(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout and masking of one process are not those of another, while together they go through every row once."""
    each = trainer(dataset, tmp_path)
    noise, rows = [], []
    monkeypatch.setattr(distributed, "num_processes", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        steps = each._draw_steps(0)
        noise.append(torch.rand(4).tolist())
        rows.append([torch.cat([batch.rows for batch in step if batch.counts]) for step in steps])
    assert noise[0] != noise[1] != noise[2] != noise[0]
    assert sorted(torch.cat([part for process in rows for part in process]).tolist()) == list(range(72))
    assert [sum(len(process[i]) for process in rows) for i in range(3)] == [32, 32, 8]


@pytest.mark.parametrize("fusion", ["transformer", "switchgate", "interpretcc", "moepp", "mult"])
def test_bf16_trains_in_half_precision_and_scores_in_full(dataset: Dataset, tmp_path: Path, fusion: str) -> None:
    """The training passes are autocast and give nearly the fp32 losses; weights, losses and validation stay float32."""
    changes = QUIET | {"model.fusion": fusion}
    full, half = (trainer(dataset, tmp_path / p, changes | {"train.precision": p}) for p in ("fp32", "bf16"))
    seen: list[torch.dtype] = []
    half.state.model.experts[0].register_forward_hook(lambda module, _, output: seen.append(output.logits_BC.dtype))
    wanted, found = list(full.epochs()), list(half.epochs())
    assert seen == [torch.bfloat16] * (len(seen))
    assert {tensor.dtype for tensor in half.state.model.parameters()} == {torch.float32}
    assert found[-1].loss == pytest.approx(wanted[-1].loss, abs=0.02)
    assert found[-1].loss != wanted[-1].loss
    arrays, _ = dataset.part("validation")
    assert predict(half.best_model(), dataset.schema, arrays).logits.dtype == np.float32


def test_bf16_resumes_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    """Half precision and micro-batches continue as exactly as everything else."""
    changes = {"train.epochs": 2, "train.precision": "bf16", "train.accumulate": 2}
    straight = trainer(dataset, tmp_path / "straight", changes)
    list(straight.epochs())
    next(trainer(dataset, tmp_path / "stopped", changes).epochs())
    resumed = trainer(dataset, tmp_path / "stopped", changes)
    resumed.resume()
    list(resumed.epochs())
    assert equal(weights(straight), weights(resumed))


def test_fp16_needs_a_gpu(dataset: Dataset, tmp_path: Path) -> None:
    """On the CPU float16 is refused by the key's name."""
    with pytest.raises(RecipeError, match=r"train.precision: expected fp32 or bf16 on the CPU, found 'fp16'"):
        trainer(dataset, tmp_path, {"train.precision": "fp16"})


def test_modality_dropout_is_for_models_with_tokens(dataset: Dataset, tmp_path: Path) -> None:
    """A model that rejects missing modalities is never shown one."""
    changes = {"model.modality_dropout": 0.4}
    assert trainer(dataset, tmp_path, changes).modality_dropout == 0.4
    assert trainer(dataset, tmp_path, changes | {"model.missing": "reject"}).modality_dropout == 0.0


def test_prediction_leaves_the_model_as_it_was() -> None:
    """predict answers in evaluation mode, in chunks, and puts the model back into the mode it was in."""
    model, inputs = small_model.model({"dropout": 0.5}), small_model.rows(1500, missing_rate=0.2)
    arrays = {name: x.numpy() for name, x in zip(("mixed", "labs", "signal"), inputs, strict=True)}
    model.train()
    output = predict(model, small_model.schema(), arrays)
    assert model.training
    assert isinstance(model, nn.Module)
    wanted = model.eval()(inputs)
    np.testing.assert_allclose(output.prediction, wanted.prediction_BC.detach(), atol=1e-6)
    assert output.expert_logits.shape == (1500, 5, 2)
    assert not torch.is_grad_enabled() or wanted.logits_BC.requires_grad
