"""How evenly a router spreads tokens over experts. Shape suffixes: N tokens, E experts."""

import torch
from torch import Tensor


def one_hot(expert_N: Tensor, num_experts: int) -> Tensor:
    """Expert positions (N,) to booleans (N, E)."""
    return expert_N[:, None] == torch.arange(num_experts, device=expert_N.device)


def expert_load(probability_NE: Tensor, chosen_NE: Tensor) -> Tensor:
    """f_e P_e (E,): the share of tokens sent to expert e, times its mean probability.

    The summands of the load-balancing losses of Switch Transformer (Fedus et al. 2021, eq. 4-6) and MoE++ (Jin et al.
    2024, eq. 7). f is a count and has no gradient; the router learns through P.
    """
    return chosen_NE.float().mean(dim=0) * probability_NE.mean(dim=0)
