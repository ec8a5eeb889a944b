"""What the other modalities let expect."""

import torch

from tests.training import small_model
from tests.training.objectives.teachers import NAMES, expectations, own_evidence
from training.objectives.expectations import ExpectationsObjective


def test_an_expectation_does_not_see_its_own_modality() -> None:
    """Other tokens of one modality change what is expected of all the others, and not of it."""
    several, tokens = expectations(), torch.randn(5, 3, 2, 8)
    other = tokens.clone()
    other[:, 1] += 1
    changed = (several(other) - several(tokens)).abs().amax(dim=(1, 2))
    assert changed[1] == 0
    assert changed[0] > 0
    assert changed[2] > 0


def test_the_loss_is_the_squared_error_about_the_mean() -> None:
    """Mean over modalities, rows and outputs; the predictors do not learn, and what is missing costs nothing."""
    own, several = own_evidence(small_model.model()), expectations()
    own.mean_n1C = torch.full((3, 1, 2), 0.25)
    inputs = small_model.rows(6)
    inputs[1][:] = torch.nan
    objective = ExpectationsObjective(own, NAMES)
    losses = objective(several, inputs, torch.zeros(6))
    told = own(inputs)
    error = (several(told.tokens_BnPD) - (told.own_nBC - 0.25)).square()
    torch.testing.assert_close(losses.total, error[[0, 2]].sum() / error.numel())
    assert losses.interaction_E[1] == 0
    losses.total.backward()
    assert all(parameter.grad is None for parameter in own.parameters())
    assert several.heads[0][1].weight.grad is not None  # type: ignore[index]
