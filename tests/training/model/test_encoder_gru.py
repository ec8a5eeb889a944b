import pytest
import torch
from torch import Tensor

from service.bundle.schema import Modality
from tests.training import small_model
from tests.training.model import encoder_cases as cases
from training.model.encoders.recurrent import last_real_step

STEPS, WIDTH = 5, 3
SEQUENCE = cases.array(STEPS, WIDTH)
SMALL = {"hidden": 6}


def padded(num_rows: int, filler: float, *, steps: int = STEPS) -> Tensor:
    """Sequences of 0, 1, 2, ... real steps and a gap inside, flattened."""
    x = cases.values(cases.array(steps, WIDTH), num_rows).unflatten(1, (steps, WIDTH))
    for row in range(num_rows):
        x[row, row % (STEPS + 1) :] = filler
    x[-1, 0, 1] = torch.nan
    return x.flatten(1)


def test_tokens_are_finite() -> None:
    """(B, P, D) of finite numbers, whatever is missing, with and without flags."""
    for options in ({}, {"missing_flags": True}, {"padding": "zero"}, {"compat": "released", "raw": True}):
        cases.assert_tokens_are_finite(cases.encoder("gru", SEQUENCE, SMALL | options), SEQUENCE)


def test_rows_are_independent() -> None:
    """A sequence's tokens do not depend on the lengths of the others in its batch."""
    model = cases.encoder("gru", SEQUENCE, SMALL)
    cases.assert_rows_are_independent(model, SEQUENCE)
    x = padded(7, torch.nan)
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), model(x), rtol=0, atol=1e-6)


def test_every_parameter_learns() -> None:
    """All parameters get a gradient."""
    cases.assert_every_parameter_learns(cases.encoder("gru", SEQUENCE, SMALL | {"missing_flags": True}), SEQUENCE)


def test_statistics_are_those_of_the_training_rows() -> None:
    """The unit of measurement does not matter."""
    cases.assert_fitted_on_training_rows(cases.encoder("gru", SEQUENCE, SMALL), SEQUENCE)


@pytest.mark.parametrize(("padding", "filler"), [("nan", torch.nan), ("zero", 0.0), ("zero", torch.nan)])
def test_appended_padding_changes_nothing(padding: str, filler: float) -> None:
    """Neither the statistics nor the tokens depend on the length that sequences were padded to."""
    short = cases.encoder("gru", SEQUENCE, SMALL | {"padding": padding})
    long = cases.encoder("gru", cases.array(STEPS + 4, WIDTH), SMALL | {"padding": padding})
    x = padded(12, filler)
    x_long = torch.cat([x, torch.full((12, 4 * WIDTH), filler)], dim=1)
    short.fit(x)
    long.fit(x_long)
    assert short.state_dict().keys() == long.state_dict().keys()
    for name, tensor in short.state_dict().items():
        torch.testing.assert_close(tensor, long.state_dict()[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(short(x), long(x_long), rtol=0, atol=1e-6)


def test_a_padded_sequence_is_the_sequence_cut_short() -> None:
    """The state after the last real step is what torch's GRU answers for the real steps alone; without any it is 0."""
    model = cases.encoder("gru", SEQUENCE, SMALL)
    x = padded(STEPS + 1, torch.nan)
    x[-1] = cases.values(SEQUENCE, 1)[0]
    for length in range(1, STEPS + 1):
        state = model.gru(x[length, : length * WIDTH].view(1, length, WIDTH))[1][0]
        torch.testing.assert_close(model(x[length : length + 1]), model.patches(state))
    torch.testing.assert_close(model(x[:1]), model.patches(torch.zeros(1, 6)))


def test_only_trailing_steps_are_padding() -> None:
    """Empty steps before a real one count as steps; what is empty depends on the option."""
    nan, x = torch.nan, torch.zeros(3, 4, 2)
    x[0] = torch.tensor([[1, 2], [nan, nan], [nan, 3], [nan, nan]])
    x[1] = torch.tensor([[1, 0], [0, 0], [0, nan], [nan, nan]])
    x[2] = nan
    assert last_real_step(x, "nan").flatten().tolist() == [3, 3, 0]
    assert last_real_step(x, "zero").flatten().tolist() == [3, 1, 0]


def test_released_compat_takes_the_last_step() -> None:
    """raw and compat: NaN is 0, and the state after step T is taken, padding or not."""
    model = cases.encoder("gru", SEQUENCE, SMALL | {"compat": "released", "raw": True})
    x = padded(7, torch.nan)
    model.fit(x)  # learns nothing
    state = model.gru(x.nan_to_num().unflatten(1, (STEPS, WIDTH)))[1][0]
    torch.testing.assert_close(model(x), model.patches(state))
    ours = cases.encoder("gru", SEQUENCE, SMALL | {"raw": True})
    assert not torch.allclose(model(x)[:STEPS], ours(x)[:STEPS])
    torch.testing.assert_close(model(x)[STEPS], ours(x)[STEPS])  # the one sequence of full length


def test_missing_flags_tell_missing_from_mean() -> None:
    """Without flags a missing cell is the training mean; with them it is not."""
    x = cases.values(SEQUENCE, 20)
    for flags in (False, True):
        model = cases.encoder("gru", SEQUENCE, SMALL | {"missing_flags": flags})
        model.fit(x)
        mean, missing = x[:1].clone(), x[:1].clone()
        mean[0, 1], missing[0, 1] = model.standardise.mean[0, 1], torch.nan
        assert torch.allclose(model(mean), model(missing), atol=1e-6) is not flags


def test_it_has_the_released_parameters() -> None:
    """weight_ih (768, F), weight_hh (768, 256), two biases, and a shared patch projection."""
    model = cases.encoder("gru", cases.array(50, 20), num_patches=4, hidden_dim=128)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["gru.weight_ih_l0"] == (768, 20)
    assert shapes["gru.weight_hh_l0"] == (768, 256)
    assert cases.num_parameters(model) == 3 * 256 * (20 + 256 + 2) + 64 * 128 + 128


def test_it_exports() -> None:
    """Parity to 1e-5 at batch sizes 1, 2 and 7, flags and padding included, with a GRU and no loop."""
    model = cases.encoder("gru", SEQUENCE, SMALL | {"missing_flags": True, "padding": "zero"})
    model.fit(cases.values(SEQUENCE, 9))
    cases.assert_exports(model, SEQUENCE)


def test_what_is_no_sequence_is_refused() -> None:
    """One array of rank 2, and options that exist."""
    told = "modality signal: the gru encoder expects one array of shape (steps, features), found signal of shape (3,)"
    cases.assert_refused("gru", cases.array(3), told)
    told = "modality mixed: the gru encoder expects one array of shape (steps, features), found 4 features"
    cases.assert_refused("gru", cases.TABULAR, told)
    number = Modality(name="age", features=(small_model.number("years"),))
    told = "modality age: the gru encoder expects one array of shape (steps, features), found years, a numeric feature"
    cases.assert_refused("gru", number, told)
    cases.assert_refused("gru", SEQUENCE, "model.encoders.signal.padding: Input should be 'nan' or 'zero'", {"padding": "ones"})
