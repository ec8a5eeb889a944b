"""Untrained predictors, expectations and a teacher of the small model, to look at from close up."""

import torch

from tests.training import small_model
from training.model.mixture import I2MoE
from training.objectives.config import DecompositionConfig
from training.objectives.evidence import EvidenceRules
from training.objectives.expectations import Expectations
from training.objectives.experts import Teacher
from training.objectives.modalities import ModalityPredictors, OwnEvidence

CONFIG = DecompositionConfig(head_hidden=8)
RULES = EvidenceRules("binary", 4.0)
NAMES = small_model.schema().names


def predictors(model: I2MoE) -> ModalityPredictors:
    """One for each of the three modalities, in evaluation mode."""
    return ModalityPredictors(list(model.encoders), token_size=16, num_outputs=2, config=CONFIG).eval()


def own_evidence(model: I2MoE) -> OwnEvidence:
    """Of scales 1, 0 and 2."""
    return OwnEvidence(predictors(model), RULES, [1.0, 0.0, 2.0])


def expectations() -> Expectations:
    """For each of the three modalities."""
    return Expectations(3, token_size=16, num_outputs=2, config=CONFIG, rules=RULES).eval()


def teacher() -> Teacher:
    """All of it, drawn from one seed."""
    torch.manual_seed(0)
    model = small_model.model()
    return Teacher(
        model, own_evidence(model), expectations(), base_rate_C=torch.tensor([0.3, -0.3]), scale=0.5, slopes=[1.0, 0.5, 0.0]
    )
