"""Perturbed tokens that share what they have in common: the numbers and gradients of every variant written out."""

import pytest
import torch
from torch import Tensor

from tests.training.model.fusion_cases import NUM_PATCHES, fusion, tokens
from training.model.fusion.base import Fusion, FusionOutput
from training.model.masking import perturb
from training.model.variants import PerturbedTokens, Variants

_SAMPLES = 5
_CASES = [
    ("transformer", {}),
    ("transformer", {"residual": "released"}),
    ("switchgate", {"jitter": 0.0}),
    ("switchgate", {"jitter": 0.0, "residual": "released"}),
    ("moepp", {}),
    ("moepp", {"compat": "released"}),
    ("mult", {}),
    ("interpretcc", {}),
    ("low_rank_tensor", {}),
    ("early", {}),
    ("late", {}),
]


def learnt(model: Fusion, *, shared: bool, modalities: tuple[int, ...]) -> tuple[FusionOutput, dict[str, Tensor]]:
    """What a backbone answers, and the gradients of its parameters and of the clean tokens, with one draw of replacements."""
    torch.manual_seed(7)
    clean = tokens(model.num_modalities, _SAMPLES).requires_grad_()
    perturbed = perturb(clean, torch.randn_like, modalities)
    torch.manual_seed(8)  # of the backbone's own noise
    output = model.perturbed(perturbed) if shared else model(perturbed.all())
    model.zero_grad()
    (output.logits_BC * torch.randn_like(output.logits_BC)).sum().add(output.gate_loss).backward()
    assert clean.grad is not None
    return output, {"tokens": clean.grad, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "options"), _CASES)
def test_backbones_answer_and_learn_as_from_every_variant_written_out(
    name: str, options: dict[str, object], training: bool
) -> None:
    """Logits, latents and all gradients of `perturbed` are those of `forward` on all variants, to float32's rounding."""
    model = fusion(name, 3, options, dropout=0.0).train(training)
    for modalities in ((0, 1, 2), (1,), (0, 2)):
        (ours, gradients), (wanted, wanted_gradients) = (learnt(model, shared=s, modalities=modalities) for s in (True, False))
        assert ours.logits_BC.shape == ((1 + len(modalities)) * _SAMPLES, 3)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-4, atol=1e-4)


def test_a_token_is_held_once() -> None:
    """Rows are the clean tokens and the replaced ones; in variant 1 + k only `modalities[k]`'s differ from the clean ones."""
    clean = tokens(3, _SAMPLES)
    perturbed = perturb(clean, torch.zeros_like, (2, 0))
    assert len(perturbed.rows_ND) == _SAMPLES * NUM_PATCHES * (3 + 2)
    first, second, third = perturbed.all().chunk(3)
    assert torch.equal(first, clean)
    assert torch.equal(second, clean * torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1))
    assert torch.equal(third, clean * torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1))


def test_each_token_gets_its_own_position() -> None:
    """Also where it stands for a replaced one."""
    clean, position_TD = tokens(3, 2), torch.randn(3 * NUM_PATCHES, 8)
    perturbed = perturb(clean, torch.zeros_like, (0, 2))
    wanted = perturbed.all().flatten(1, 2) + position_TD
    assert torch.equal(perturbed.placed(position_TD).all().flatten(1, 2), wanted)


def test_gradients_of_spreading_agree_with_finite_differences() -> None:
    """torch.autograd.gradcheck."""
    torch.manual_seed(0)
    rows = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Variants(2, 3, 2, (1, 2)).spread, rows)


def test_nothing_replaced_is_the_clean_pass() -> None:
    """Without modalities to replace there is one variant."""
    clean = tokens(2, 4)
    assert torch.equal(PerturbedTokens.of(clean, [], ()).all(), clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_clean_token_gets_nothing_of_what_replaced_it(dtype: torch.dtype) -> None:
    """Not even in half precision, where a small number is lost beside a large one, and one that is infinite beside all."""
    variants = Variants(1, 2, 1, (0, 1))
    rows = torch.zeros(4, 1, dtype=dtype, requires_grad=True)
    upstream = torch.full((6, 1), 1e-3, dtype=dtype)
    upstream[2], upstream[5] = 1e4, torch.inf  # where modality 0 is replaced, and where modality 1 is
    (gradient,) = torch.autograd.grad(variants.spread(rows), rows, upstream)
    torch.testing.assert_close(gradient[:, 0].float(), torch.tensor([2e-3, 2e-3, 1e4, torch.inf]), rtol=0.01, atol=0)
