"""The base of every configuration class: frozen, closed, checked.

A configuration class lives beside the code that reads it; `training.recipe` puts them together.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from service.bundle.errors import one_line, shortened

MAX_LAYERS = 256  # of any part of a model: more would be built for hours
_MAX_TOLD = 100  # characters of what was found
_NO_SECTION = {"model_type", "model_attributes_type", "dict_type"}  # pydantic's words for a value where a table belongs


class Config(BaseModel):
    """Frozen values; unknown keys, NaN and infinity are errors, and so are strings where numbers belong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def sentence(problem: Any) -> str:
    """A problem pydantic found, as the key, what was expected and what was found."""
    place = one_line(".".join(str(part) for part in problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{place}: is not a key of this section"
    if problem["type"] == "missing":
        return f"{place}: is required"
    if problem["type"] == "json_invalid":
        return f"holds what JSON cannot: {one_line(problem['msg'])}"
    if problem["type"] in _NO_SECTION:
        found = "a list" if isinstance(problem["input"], list) else shortened(repr(problem["input"]), _MAX_TOLD)
        return f'{place}: expected keys and values, {{ key = "value" }} or a section of its own, found {found}'
    message = one_line(problem["msg"].removeprefix("Value error, "))
    found = problem["input"]
    told = f", found {shortened(repr(found), _MAX_TOLD)}" if isinstance(found, str | int | float | bool) else ""
    return f"{place}: {message}{told}"
