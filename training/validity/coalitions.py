"""The model's logits for every coalition of modalities: the others hidden from it.

A hidden modality is replaced at its tokens. Where the model knows missing modalities (missing = "learned"), its learned
token stands in, exactly as for a record that lacks the modality. Where it does not ("reject"), the tokens of other rows do,
and logits are the mean over them (the marginal expectation of Lundberg and Lee 2017, "A unified approach to interpreting
model predictions"). Encoders see each modality by itself, so they run once, whatever the number of coalitions.

Shape suffixes: S coalitions (position read as bits, `training.validity.games`), N rows, B batch, n modalities, P patches, D
hidden, C outputs, G stand-ins.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.schema import FeatureSchema
from training.data.rows import RowArray, take, whole
from training.inference import answers
from training.model.mixture import I2MoE

MAX_MODALITIES = 6  # 64 coalitions and 720 orders; twice the passes for every one more


def coalition_logits(
    model: I2MoE, schema: FeatureSchema, arrays: Mapping[str, RowArray], background: NDArray[np.intp], *, workers: int = 0
) -> NDArray[np.float32]:
    """Logits (S, N, C) of all rows of `arrays`, read batch by batch; `background` are the rows that stand in, if any do."""
    stand_ins = [torch.from_numpy(x) for x in _stand_ins(schema, arrays, background)]

    def function(inputs: list[Tensor]) -> tuple[Tensor]:
        hidden_GnPD = model.embed([x.to(inputs[0].device) for x in stand_ins])
        return (_all_coalitions(model, model.embed(inputs), hidden_GnPD),)

    (logits_SNC,) = answers(model, function, schema, arrays, workers=workers)
    found: NDArray[np.float32] = logits_SNC.cpu().numpy()
    return found


def _stand_ins(schema: FeatureSchema, arrays: Mapping[str, RowArray], background: NDArray[np.intp]) -> list[NDArray[np.float32]]:
    """What is encoded in place of a hidden modality, (G, columns) each: one row of nothing, or the background."""
    if schema.missing == "learned":
        return [np.full((1, arrays[name].shape[1]), np.nan, np.float32) for name in schema.names]
    return [whole(take(arrays[name], background)) for name in schema.names]


def _all_coalitions(model: I2MoE, tokens_BnPD: Tensor, hidden_GnPD: Tensor) -> Tensor:
    num = tokens_BnPD.shape[1]
    coalitions = torch.arange(1 << num, device=tokens_BnPD.device)
    holds_Sn = (coalitions[:, None] >> torch.arange(num, device=tokens_BnPD.device)) & 1 == 1
    return torch.stack([_logits(model, tokens_BnPD, hidden_GnPD, holds_n) for holds_n in holds_Sn])


def _logits(model: I2MoE, tokens_BnPD: Tensor, hidden_GnPD: Tensor, holds_n: Tensor) -> Tensor:
    """Logits (B, C), the mean over stand-ins for the modalities that the coalition does not hold."""
    if holds_n.all():
        return model.answer(tokens_BnPD).logits_BC
    seen = holds_n[:, None, None]
    return torch.stack([model.answer(torch.where(seen, tokens_BnPD, hidden)).logits_BC for hidden in hidden_GnPD]).mean(dim=0)
