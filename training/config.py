"""The base of every configuration class: frozen, closed, checked.

A configuration class lives beside the code that reads it; `training.recipe` puts them together.
"""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen values; unknown keys, NaN and infinity are errors, and so are strings where numbers belong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
