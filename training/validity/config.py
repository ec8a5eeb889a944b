"""The [validity] section of a recipe."""

from pydantic import Field

from training.config import Config


class ValidityConfig(Config):
    """How explanations are checked after training; nothing here changes the model."""

    enabled: bool = True
    max_rows: int = Field(default=500, ge=2)  # rows of a split that are looked at, drawn by `seed`
    num_background: int = Field(default=8, ge=1)  # other rows that stand in for a hidden modality where missing = "reject"
    num_randomised: int = Field(default=20, ge=2)  # models with re-initialised experts
    num_bootstraps: int = Field(default=1000, ge=0)  # for the figures' intervals
    seed: int = Field(default=0, ge=0, lt=1 << 32)
