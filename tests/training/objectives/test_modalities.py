"""Predictors that see one modality each, and their evidence."""

import torch

from tests.training import small_model
from tests.training.objectives.teachers import NAMES, own_evidence, predictors
from training.objectives.base import Shares, TaskLoss
from training.objectives.modalities import ModalitiesObjective
from training.tasks import make_task

INPUTS, TARGET = small_model.rows(8), torch.arange(8) % 2
OBJECTIVE = ModalitiesObjective(TaskLoss(make_task(small_model.TASK)), NAMES, None)


def test_a_predictor_sees_its_modality_alone() -> None:
    """Other rows of one modality change that predictor's logits and no others; the encoders are copies."""
    model = small_model.model()
    several = predictors(model)
    before, other = several(INPUTS), list(INPUTS)
    other[1] = other[1].flip(0)
    changed = (several(other) - before).abs().amax(dim=(1, 2))
    assert changed[1] > 0
    assert changed[0] == changed[2] == 0
    assert before.shape == (3, 8, 2)
    assert several.encoders[0] is not model.encoders[0]


def test_each_is_trained_by_the_task_loss_on_its_own() -> None:
    """The loss is the mean of the modalities' task losses, each of which is told."""
    several = predictors(small_model.model())
    losses = OBJECTIVE(several, INPUTS, TARGET)
    wanted = torch.stack([torch.nn.functional.cross_entropy(logits, TARGET) for logits in several(INPUTS)])
    torch.testing.assert_close(losses.interaction_E, wanted.detach())
    torch.testing.assert_close(losses.total, wanted.mean())
    assert list(OBJECTIVE.loss_names(several)) == list(NAMES)
    half = OBJECTIVE(several, INPUTS, TARGET, Shares(0.5, 0.5))
    torch.testing.assert_close(half.total, wanted.mean() / 2)


def test_own_evidence_is_centred_scaled_and_limited() -> None:
    """What is worth nothing says nothing, whatever its logits; absent modalities are known."""
    model = small_model.model()
    inputs = [x.clone() for x in INPUTS]
    inputs[0][2] = torch.nan
    own = own_evidence(model)
    told = own(inputs)
    torch.testing.assert_close(told.own_nBC.sum(dim=-1), torch.zeros(3, 8))
    assert (told.own_nBC[1] == 0).all()
    logits = own.predictors(inputs)
    torch.testing.assert_close(told.own_nBC[2], own.rules.limited(2 * own.rules.centre(logits[2])))
    assert told.present_nB1[:, :, 0].logical_not().nonzero().tolist() == [[0, 2]]
    assert not told.own_nBC.requires_grad
    assert not own.training
