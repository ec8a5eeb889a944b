"""The interaction losses of the paper's full set of experts."""

from torch import Tensor

from service.bundle.manifest import ExpertInfo
from training.objectives.interaction_losses import CLASSIFICATION, LossRules, interaction_losses


def all_losses(outputs_EVBC: Tensor, rules: LossRules = CLASSIFICATION) -> Tensor:
    """The losses (E,) of the paper's full set of experts, every modality replaced once."""
    names = [f"m{i}" for i in range(outputs_EVBC.shape[1] - 1)]
    unique = [ExpertInfo(name=f"unique:{name}", kind="uniqueness", modality=name) for name in names]
    roles = [*unique, ExpertInfo(name="synergy", kind="synergy"), ExpertInfo(name="redundancy", kind="redundancy")]
    return interaction_losses(outputs_EVBC, roles, names, rules)
