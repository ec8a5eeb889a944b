import pytest
import torch

from tests.training.model import encoder_cases as cases

VOLUME = cases.array(5, 6, 25)
SMALL = {"channels": [2, 3, 4]}


def test_tokens_are_finite() -> None:
    """(B, P, D) of finite numbers, whatever is missing."""
    cases.assert_tokens_are_finite(cases.encoder("cnn3d", VOLUME, SMALL), VOLUME)


def test_rows_are_independent() -> None:
    """A volume's tokens do not depend on its batch."""
    cases.assert_rows_are_independent(cases.encoder("cnn3d", VOLUME, SMALL), VOLUME)


def test_every_parameter_learns() -> None:
    """All parameters get a gradient."""
    cases.assert_every_parameter_learns(cases.encoder("cnn3d", VOLUME, SMALL), VOLUME)


def test_statistics_are_those_of_the_training_rows() -> None:
    """The unit of measurement does not matter, and missing is the mean."""
    model = cases.encoder("cnn3d", VOLUME, SMALL)
    cases.assert_fitted_on_training_rows(model, VOLUME)
    mean = model.standardise.mean.item()
    torch.testing.assert_close(model(torch.full((1, 750), torch.nan)), model(torch.full((1, 750), mean)))


def test_it_has_the_released_parameters() -> None:
    """Of a (91, 91, 109) volume 3 x 3 x 4 cells reach fc, whose weight is (D, 36 D); convolutions have 27uv + v parameters."""
    model = cases.encoder("cnn3d", cases.array(91, 91, 109), num_patches=16, hidden_dim=8)
    assert model.fc.weight.shape == (8, 36 * 8)
    channels = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 8)]
    convolutions = sum(27 * u * v + v for u, v in channels)
    assert cases.num_parameters(model) == convolutions + 36 * 8 * 8 + 8 + 1 * 8 + 8
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {*(f"conv{i}" for i in range(1, 7)), "fc", "patches"}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 3), (24, 24, 24), (9, 60, 5)])
def test_any_size_of_volume_can_be_read(shape: tuple[int, int, int]) -> None:
    """Axes shorter than the pools are pooled whole; the flattened maps always fit fc."""
    modality = cases.array(*shape)
    tokens = cases.encoder("cnn3d", modality, SMALL)(cases.values(modality, 2))
    assert tokens.shape == (2, cases.NUM_PATCHES, cases.HIDDEN_DIM)


def test_raw_volumes_are_taken_as_they_are() -> None:
    """raw: nothing is learned from the training rows, and NaN is 0."""
    model = cases.encoder("cnn3d", VOLUME, SMALL | {"raw": True})
    x = cases.values(VOLUME, 4, missing_rate=0.3)
    before = model(x)
    model.fit(x)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    torch.testing.assert_close(model(x.nan_to_num()), before, rtol=0, atol=0)


def test_it_exports() -> None:
    """Parity to 1e-5 at batch sizes 1, 2 and 7."""
    model = cases.encoder("cnn3d", VOLUME, SMALL)
    model.fit(cases.values(VOLUME, 9))
    cases.assert_exports(model, VOLUME)


def test_what_is_no_volume_is_refused() -> None:
    """One array of rank 3, and three numbers of channels."""
    told = "modality signal: the cnn3d encoder expects one array of shape (x, y, z), found signal of shape (3, 4)"
    cases.assert_refused("cnn3d", cases.array(3, 4), told)
    cases.assert_refused("cnn3d", VOLUME, "model.encoders.signal.channels", {"channels": [2, 3]})
