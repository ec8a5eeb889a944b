"""From contributions of experts to contributions of modalities.

    a_m = contribution of unique:m + (contributions of synergy and redundancy) / n

What modalities say together is shared among them equally, as the Shapley value shares a dividend (Harsanyi 1963). Attributions
of a row add up to its margin, as contributions do. Without uniqueness experts all modalities are equal and none is ranked.
"""

from collections.abc import Sequence

import numpy as np

from service.bundle.manifest import ExpertInfo
from training.validity.estimates import Floats


def attribute(contribution_NE: Floats, experts: Sequence[ExpertInfo], modalities: Sequence[str]) -> Floats:
    """Contributions (N, E) of experts to those (N, n) of modalities, by the rule above."""
    shared_N1 = sum_of(contribution_NE, experts, "synergy", "redundancy")[:, None] / len(modalities)
    own_Nn = np.zeros((len(contribution_NE), len(modalities)))
    for e, expert in enumerate(experts):
        if expert.modality is not None:
            own_Nn[:, modalities.index(expert.modality)] += contribution_NE[:, e]
    return own_Nn + shared_N1


def sum_of(contribution_NE: Floats, experts: Sequence[ExpertInfo], *kinds: str) -> Floats:
    """The contributions (N,) of all experts of these kinds."""
    chosen = [expert.kind in kinds for expert in experts]
    total_N: Floats = contribution_NE[:, chosen].sum(axis=1, dtype=np.float64)
    return total_N
