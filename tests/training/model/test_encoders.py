import math

import pytest
import torch
from torch import Tensor

from service.bundle.features import CategoricalFeature
from service.bundle.schema import Modality
from tests.training import small_model
from training.model.encoders import ENCODERS, FeatureEncoder, PatchEncoder, PatchProjection

MIXED = small_model.schema().modalities[0]  # a, b, sex (3), codes (2)


def patch(*, raw: bool = False, fit: Tensor | None = None) -> PatchEncoder:
    torch.manual_seed(0)
    encoder = PatchEncoder(MIXED, num_patches=2, hidden_dim=4, config=PatchEncoder.Config(raw=raw))
    if fit is not None:
        encoder.fit(fit)
    return encoder


@pytest.mark.parametrize(("columns", "patches"), [(20, 4), (33, 4), (17, 4), (3, 8), (5, 2)])
def test_patches_are_cut_and_padded_as_released(columns: int, patches: int) -> None:
    """ceil(F / P) columns a patch, zeros on the right, one Linear for all: ceil(F / P) D + D parameters."""
    torch.manual_seed(0)
    projection = PatchProjection(columns, patches, 6)
    size = math.ceil(columns / patches)
    assert sum(p.numel() for p in projection.parameters()) == size * 6 + 6
    x = torch.randn(3, columns)
    padded = torch.cat([x, torch.zeros(3, size * patches - columns)], dim=1)
    wanted = [
        padded[:, i * size : (i + 1) * size] @ projection.projection.weight.T + projection.projection.bias for i in range(patches)
    ]
    torch.testing.assert_close(projection(x), torch.stack(wanted, dim=1))


def test_the_patch_encoder_standardises_expands_and_flags() -> None:
    """Numbers and codes as z-scores of the training rows, categories one-hot, one missing flag per feature."""
    rows = torch.tensor([[1.0, 10.0, 0.0, 1.0, 0.0], [3.0, torch.nan, 2.0, 0.0, 0.0], [5.0, 30.0, 1.0, 1.0, 0.0]])
    encoder = patch(fit=rows)
    expanded = encoder.expansion(torch.tensor([[3.0, 30.0, 2.0, 0.0, 0.0], [torch.nan] * 5]))
    z_codes = (0 - 2 / 3) / (2 / 9) ** 0.5
    wanted = [[0.0, 1.0, z_codes, 0.0, 0, 0, 1, 0, 0, 0, 0], [0.0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]]
    torch.testing.assert_close(expanded, torch.tensor(wanted))


def test_a_constant_column_keeps_scale_one() -> None:
    """A column that never varies (0.1 has no exact float32 mean) is not blown up by a rounding error."""
    rows = torch.full((1000, 5), 0.1)
    encoder = patch(fit=rows)
    assert torch.equal(encoder.expansion.standardise.scale, torch.ones(5))
    columns_without_values = patch(fit=torch.full((4, 5), torch.nan))
    assert torch.equal(columns_without_values.expansion.standardise.scale, torch.ones(5))
    assert torch.isfinite(columns_without_values(torch.zeros(1, 5))).all()


def test_raw_patches_take_columns_as_they_are() -> None:
    """raw: no statistics, no flags; NaN is 0."""
    encoder = patch(raw=True, fit=torch.randn(9, 5))
    x = torch.tensor([[1.0, torch.nan, 2.0, 0.0, 1.0]])
    torch.testing.assert_close(encoder(x), encoder.patches(torch.tensor([[1.0, 0.0, 2.0, 0.0, 1.0]])))
    assert encoder.patches.projection.in_features == 3


def feature_encoder(modality: Modality = MIXED, **options: object) -> FeatureEncoder:
    torch.manual_seed(0)
    return FeatureEncoder(modality, num_patches=2, hidden_dim=4, config=FeatureEncoder.Config.model_validate(options))


def test_every_feature_reaches_the_tokens() -> None:
    """Changing any one column, or hiding any one feature, changes the tokens."""
    encoder = feature_encoder()
    encoder.fit(small_model.rows(50)[0])
    encoder.eval()
    x = torch.tensor([[0.1, 0.2, 1.0, 0.0, 1.0]])
    before = encoder(x)
    assert before.shape == (1, 2, 4)
    for column, value in enumerate([0.3, 0.5, 2.0, 1.0, 0.0]):
        changed = x.clone()
        changed[0, column] = value
        assert not torch.allclose(encoder(changed), before)
    for _, columns in MIXED.columns():
        hidden = x.clone()
        hidden[:, columns] = torch.nan
        assert not torch.allclose(encoder(hidden), before)


def test_a_modality_of_categories_alone_can_be_encoded() -> None:
    """Without numbers there is nothing to fit and nothing missing."""
    modality = Modality(name="only", features=(CategoricalFeature(name="sex", vocabulary=("f", "m")),))
    for kind in ("feature", "patch"):
        encoder = ENCODERS[kind](modality, num_patches=2, hidden_dim=4, config=ENCODERS[kind].Config())
        encoder.fit(torch.tensor([[0.0], [1.0], [torch.nan]]))
        tokens = encoder.eval()(torch.tensor([[0.0], [1.0], [torch.nan]]))
        assert torch.isfinite(tokens).all()
        assert len(tokens.flatten(1).unique(dim=0)) == 3


def test_the_token_mlp_is_a_residual() -> None:
    """t + MLP(LN(t)): with a zero last layer the tokens are those without it."""
    plain, deep = feature_encoder().eval(), feature_encoder(token_mlp=True).eval()
    deep.load_state_dict(plain.state_dict(), strict=False)
    x = small_model.rows(3)[0]
    assert not torch.allclose(plain(x), deep(x))
    with torch.no_grad():
        deep.token_mlp.contract.weight.zero_()  # type: ignore[operator, union-attr]
        deep.token_mlp.contract.bias.zero_()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(plain(x), deep(x))
