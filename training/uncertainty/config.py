"""The [uncertainty] section of a recipe."""

from pydantic import Field

from training.config import Config


class UncertaintyConfig(Config):
    """What prediction sets, intervals and flags are to promise.

    Their rows come from `data.split.conformal`; without it from the validation rows, with an approximate guarantee.
    """

    coverage: float = Field(default=0.9, gt=0, lt=1)  # how often a set or interval holds the truth, for every class
    disagreement_quantile: float = Field(default=0.95, gt=0, lt=1)
    """Of held-out rows: above it, and above a half of the evidence, experts are said to disagree."""
