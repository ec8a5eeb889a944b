"""Task losses counted from a base rate."""

import pytest
import torch
from torch.nn import functional

from service.bundle.manifest import TaskInfo
from tests.training import small_model
from training.objectives.base import TaskLoss, check_finite
from training.tasks import make_task

TASK = make_task(small_model.TASK)


def test_zero_logits_mean_the_base_rate() -> None:
    """Three of four rows are alive: silence costs the entropy of that, not of a coin."""
    target = torch.tensor([0, 0, 0, 1])
    loss = TaskLoss(TASK, base_rate_C=TASK.base_rate(target.numpy(), None))
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    assert loss(torch.zeros(4, 2), target).item() == pytest.approx(entropy.item(), abs=1e-6)
    assert TaskLoss(TASK)(torch.zeros(4, 2), target).item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)


def test_labels_have_a_base_rate_each() -> None:
    """Multilabel: zero logits cost each label's own entropy."""
    task = make_task(TaskInfo(kind="multilabel", labels=("a", "b"), outcome="labels"))
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    loss = TaskLoss(task, base_rate_C=task.base_rate(target.numpy(), None))
    wanted = functional.binary_cross_entropy(target.mean(dim=0).expand(4, 2), target)
    assert loss(torch.zeros(4, 2), target).item() == pytest.approx(wanted.item(), abs=1e-6)


def test_unsmoothed_is_the_same_loss_without_smoothing() -> None:
    """Class weights and base rate stay."""
    target, logits = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 2.0]])
    weights, rate = torch.tensor([0.25, 0.75]), torch.tensor([0.3, -0.3])
    smoothed = TaskLoss(TASK, class_weights_C=weights, base_rate_C=rate, label_smoothing=0.2)
    torch.testing.assert_close(
        smoothed.unsmoothed()(logits, target), functional.cross_entropy(logits + rate, target, weight=weights)
    )
    assert smoothed(logits, target) != smoothed.unsmoothed()(logits, target)


def test_figures_must_be_numbers() -> None:
    """One NaN is enough."""
    check_finite([1.0, 2.0])
    with pytest.raises(FloatingPointError, match="the model answers NaN"):
        check_finite([1.0, float("nan")])
