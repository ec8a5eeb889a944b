"""Evidence by hand: centring, limiting, what it is worth."""

import math

import pytest
import torch

from service.bundle.manifest import TaskInfo
from tests.training import small_model
from training.objectives.base import TaskLoss
from training.objectives.evidence import EvidenceRules, fit_scale, fit_slopes, freeze
from training.tasks import make_task

BINARY, LABELS, NUMBER = (EvidenceRules(kind, 4.0) for kind in ("binary", "multilabel", "regression"))
LOSS = TaskLoss(make_task(small_model.TASK))


def test_evidence_is_centred_where_classes_exclude_each_other() -> None:
    """Of (1, 4) the classes' part is (-1.5, 1.5); labels and numbers stay as they are."""
    logits = torch.tensor([[1.0, 4.0]])
    assert BINARY.centre(logits).tolist() == [[-1.5, 1.5]]
    assert LABELS.centre(logits) is logits
    assert NUMBER.centre(logits) is logits


def test_margins_are_limited_and_directions_kept() -> None:
    """A margin of s becomes 4 tanh(s / 4): weak evidence stays, endless evidence ends at 4."""
    evidence = torch.tensor([[-1.5, 1.5], [-50.0, 50.0], [-1e-4, 1e-4], [0.0, 0.0]])
    limited = BINARY.limited(evidence)
    margins = (limited[:, 1] - limited[:, 0]).tolist()
    assert margins == pytest.approx([4 * math.tanh(3 / 4), 4.0, 2e-4, 0.0], abs=1e-6)
    torch.testing.assert_close(limited[:, 0], -limited[:, 1])
    assert BINARY.limiting_factor(evidence)[3].item() == pytest.approx(1)


def test_labels_are_limited_one_by_one_and_numbers_not() -> None:
    """A sure label does not touch its neighbour."""
    evidence = torch.tensor([[100.0, -0.5]])
    assert LABELS.limited(evidence).tolist()[0] == pytest.approx([4.0, -4 * math.tanh(0.5 / 4)])
    assert NUMBER.limited(evidence).tolist() == evidence.tolist()


def test_a_scale_says_what_evidence_is_worth() -> None:
    """Log odds that are three times too sure are worth a third, what knows nothing 0, what is wrong 0."""
    torch.manual_seed(0)
    odds = torch.randn(4000) * 2
    target = (torch.rand(4000) < odds.sigmoid()).long()
    evidence = torch.stack([-odds / 2, odds / 2], dim=1)
    assert fit_scale(3 * evidence, target, LOSS, "binary") == pytest.approx(1 / 3, rel=0.15)
    assert fit_scale(-evidence, target, LOSS, "binary") == 0
    assert fit_scale(torch.zeros(4000, 2), target, LOSS, "binary") == 0


def test_a_regressions_scale_is_least_squares() -> None:
    """Half the target is doubled, but never by more than 1.2; the opposite is worth nothing."""
    target = torch.tensor([1.0, -2.0, 3.0])
    loss = TaskLoss(make_task(TaskInfo(kind="regression", labels=("days",), outcome="days", training_mean=0.0)))
    assert fit_scale(2 * target[:, None], target, loss, "regression") == pytest.approx(0.5)
    assert fit_scale(0.5 * target[:, None], target, loss, "regression") == pytest.approx(1.2)
    assert fit_scale(-target[:, None], target, loss, "regression") == 0
    assert fit_scale(0 * target[:, None], target, loss, "regression") == 0


def test_slopes_lie_between_nothing_and_everything() -> None:
    """By least squares, for each modality on its own."""
    found = torch.tensor([1.0, -1.0, 2.0])[None, :, None]
    expected = torch.cat([2 * found, 0.5 * found, -found, 0 * found])
    assert fit_slopes(expected, found.expand(4, -1, -1)) == pytest.approx([0.5, 1.0, 0.0, 0.0])


def test_the_frozen_do_not_learn() -> None:
    """Evaluation mode, no gradients."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    freeze(module)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
