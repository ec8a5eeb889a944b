"""Fusion backbones by name: what one expert is made of."""

from training.model.fusion.transformer import TransformerFusion

FUSIONS = {"transformer": TransformerFusion}

__all__ = ["FUSIONS", "TransformerFusion"]
