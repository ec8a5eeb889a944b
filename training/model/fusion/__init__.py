"""Fusion backbones by name: what one expert is made of.

Importing this package registers the backbones below; a recipe names a user's own as package.module:Class.
"""

from training.model.fusion.base import FUSIONS, Fusion, FusionOutput, register_fusion
from training.model.fusion.early import EarlyFusion
from training.model.fusion.interpretcc import InterpretCCFusion
from training.model.fusion.late import LateFusion
from training.model.fusion.low_rank_tensor import LowRankTensorFusion
from training.model.fusion.moepp import MoEPlusPlusFusion
from training.model.fusion.mult import MulTFusion
from training.model.fusion.switchgate import SwitchGateFusion
from training.model.fusion.transformer import TransformerFusion

__all__ = [
    "FUSIONS",
    "EarlyFusion",
    "Fusion",
    "FusionOutput",
    "InterpretCCFusion",
    "LateFusion",
    "LowRankTensorFusion",
    "MoEPlusPlusFusion",
    "MulTFusion",
    "SwitchGateFusion",
    "TransformerFusion",
    "register_fusion",
]
