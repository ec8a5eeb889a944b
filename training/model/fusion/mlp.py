"""Hidden layers that the simple fusions share."""

import itertools
from collections.abc import Sequence

from torch import nn

from training.model.dropout import Dropout


def hidden_layers(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """(Linear, ReLU, Dropout) from each width to the next: (..., widths[0]) to (..., widths[-1]).

    Parameters: sum over neighbours a, b of (a b + b). One width alone is the identity.
    """
    layers = [(nn.Linear(a, b), nn.ReLU(), Dropout(dropout)) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain.from_iterable(layers))
