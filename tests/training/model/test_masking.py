from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.model.masking import MASKINGS, perturb


def tokens(batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, 3, 2, 4, generator=torch.Generator().manual_seed(0))


def variants_of(clean: Tensor, replacement: Callable[[Tensor], Tensor], modalities: Sequence[int]) -> Tensor:
    """(V, B, n, P, D)."""
    return perturb(clean, replacement, modalities).all().unflatten(0, (-1, len(clean)))


def test_each_variant_replaces_one_modality_and_leaves_the_others() -> None:
    """Position 0 is the clean input; position j differs from it in modality j alone."""
    clean = tokens()
    for replacement in MASKINGS.values():
        variants = variants_of(clean, replacement, range(3))
        assert variants.shape == (4, *clean.shape)
        assert torch.equal(variants[0], clean)
        for j in range(3):
            others = [i for i in range(3) if i != j]
            assert torch.equal(variants[j + 1][:, others], clean[:, others])
            assert not torch.equal(variants[j + 1][:, j], clean[:, j])


def test_random_masking_is_standard_normal_and_drawn_anew() -> None:
    """Every value of every sample is an independent N(0, 1) draw, another one each time."""
    clean = torch.full((500, 2, 4, 8), 7.0)
    first, second = variants_of(clean, MASKINGS["random"], range(2)), variants_of(clean, MASKINGS["random"], range(2))
    drawn = first[1][:, 0]
    assert abs(drawn.mean().item()) < 0.05
    assert abs(drawn.std().item() - 1) < 0.05
    assert drawn.unique().numel() > 0.99 * drawn.numel()
    assert not torch.equal(drawn, first[2][:, 1])
    assert not torch.equal(drawn, second[1][:, 0])


def test_zero_and_mean_masking() -> None:
    """Zero is zero; mean is the batch's mean token, the same for every sample and without gradient."""
    clean = tokens().requires_grad_()
    assert torch.equal(variants_of(clean, MASKINGS["zero"], range(3))[2][:, 1], torch.zeros(5, 2, 4))
    mean = variants_of(clean, MASKINGS["mean"], range(3))[1][:, 0]
    torch.testing.assert_close(mean, clean[:, 0].detach().mean(dim=0).expand(5, 2, 4))
    (gradient,) = torch.autograd.grad(mean.sum(), clean)
    assert torch.equal(gradient, torch.zeros_like(gradient))
