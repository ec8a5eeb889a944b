"""The model's logits for every coalition of modalities: the others hidden from it.

A hidden modality is replaced at its tokens. Where the model knows missing modalities (missing = "learned"), its learned
token stands in, exactly as for a record that lacks the modality. Where it does not ("reject"), the tokens of other rows do,
and logits are the mean over them (the marginal expectation of Lundberg and Lee 2017, "A unified approach to interpreting
model predictions").

Shape suffixes: S coalitions (position read as bits, `training.validity.games`), N rows, n modalities, P patches, D hidden,
C outputs, G stand-ins.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.schema import FeatureSchema
from training.model.mixture import I2MoE
from training.validity.tokens import answer_rows, embed_rows

MAX_MODALITIES = 6  # 64 coalitions and 720 orders; twice the passes for every one more


def stand_ins(model: I2MoE, schema: FeatureSchema, tokens_NnPD: Tensor, background: NDArray[np.intp]) -> Tensor:
    """What stands in for hidden modalities (G, n, P, D): the tokens of nothing, or those of the background rows."""
    if schema.missing == "reject":
        return tokens_NnPD[torch.from_numpy(background)]
    nothing: Mapping[str, NDArray[np.float32]] = {m.name: np.full((1, m.width), np.nan, np.float32) for m in schema.modalities}
    return embed_rows(model, schema, nothing)


def coalition_logits(model: I2MoE, tokens_NnPD: Tensor, hidden_GnPD: Tensor) -> NDArray[np.float32]:
    """Logits (S, N, C) of a model in evaluation mode, the mean over stand-ins."""
    num = tokens_NnPD.shape[1]
    coalitions = torch.arange(1 << num, device=tokens_NnPD.device)
    holds_Sn = (coalitions[:, None] >> torch.arange(num, device=tokens_NnPD.device)) & 1 == 1
    return np.stack([_logits(model, tokens_NnPD, hidden_GnPD, holds_n) for holds_n in holds_Sn])


def _logits(model: I2MoE, tokens_NnPD: Tensor, hidden_GnPD: Tensor, holds_n: Tensor) -> NDArray[np.float32]:
    if holds_n.all():
        return answer_rows(model, tokens_NnPD).logits
    seen = holds_n[:, None, None]
    found: NDArray[np.float32] = np.mean(
        [answer_rows(model, torch.where(seen, tokens_NnPD, hidden_nPD)).logits for hidden_nPD in hidden_GnPD], axis=0
    )
    return found
