import torch

from tests.training import small_model
from tests.training.model import encoder_cases as cases
from training.model.encoders import PatchEncoder
from training.model.encoders.arrays import Standardise, array_shape
from training.model.encoders.expansion import ColumnExpansion


def test_statistics_skip_nan_and_share_axes() -> None:
    """Mean and population standard deviation per kept axis, over more rows than are read at once."""
    x = cases.values(cases.array(3, 4, 5), 50, missing_rate=0.2).unflatten(1, (3, 4, 5))
    standardise = Standardise((3, 1, 1))
    standardise.fit(x)
    for channel in range(3):
        known = x[:, channel][~x[:, channel].isnan()].double()
        torch.testing.assert_close(standardise.mean[channel, 0, 0].double(), known.mean(), rtol=1e-6, atol=0)
        torch.testing.assert_close(standardise.scale[channel, 0, 0].double(), known.std(correction=0), rtol=1e-6, atol=0)
    z = standardise(x)
    assert not z.isnan().any()
    assert not z[x.isnan()].any()


def test_what_never_varies_keeps_scale_one() -> None:
    """Equal numbers have exactly that mean and scale 1; a column without values has mean 0 and scale 1."""
    standardise = Standardise((2,))
    standardise.fit(torch.stack([torch.full((1000,), 0.1), torch.full((1000,), torch.nan)], dim=1))
    assert torch.equal(standardise.mean, torch.tensor([0.1, 0.0]))
    assert torch.equal(standardise.scale, torch.ones(2))


def test_the_expansion_is_the_patch_encoders() -> None:
    """mlp and maxout read the same vector that the patch encoder cuts: z-scores, one-hot categories, missing flags."""
    x = small_model.rows(40, missing_rate=0.3)[0]
    for raw in (False, True):
        expansion = ColumnExpansion(cases.TABULAR, raw=raw)
        patch = PatchEncoder(cases.TABULAR, num_patches=1, hidden_dim=4, config=PatchEncoder.Config(raw=raw))
        expansion.fit(x)
        patch.fit(x)
        assert expansion(x).shape == (40, expansion.width)
        torch.testing.assert_close(patch.patches(expansion(x)), patch(x))


def test_the_shape_of_an_array_is_found() -> None:
    """The one array's shape, as the schema has it."""
    assert array_shape(cases.array(4, 2), ("steps", "features"), "gru") == (4, 2)
