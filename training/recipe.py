"""A recipe: one TOML file that says everything about a run, checked before anything starts."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from service.bundle.card import ModelCard, unstated_card
from service.bundle.documents import MAX_TOML_BYTES, DocumentError, parse_toml, read_file
from training.config import Config, sentence
from training.data.config import DataConfig
from training.data.source import read_options
from training.errors import RecipeError
from training.model.build import ModelConfig
from training.objectives.config import ObjectiveConfig
from training.train_config import TrainConfig
from training.uncertainty.config import UncertaintyConfig
from training.validity.config import ValidityConfig

RECIPE_FILE = "recipe.json"  # in a run folder
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Recipe(Config):
    """A complete run. Relative paths are relative to the recipe's own folder."""

    name: str = Field(pattern=NAME_PATTERN)  # the model's name: "support2-one-year-mortality"
    version: str = "1.0.0"
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    validity: ValidityConfig = ValidityConfig()
    uncertainty: UncertaintyConfig = UncertaintyConfig()
    model_card: ModelCard = Field(default_factory=unstated_card)

    @model_validator(mode="after")
    def _nothing_is_released(self) -> "Recipe":
        options = {"fusion_options": self.model.fusion_options} | {f"encoders.{k}": v for k, v in self.model.encoders.items()}
        for place, values in options.items():
            if named := [name for name, value in values.items() if value == "released"]:
                raise ValueError(f"model.{place}.{named[0]} = released is for imported checkpoints, whose weights fit no other")
        return self

    @model_validator(mode="after")
    def _experts_fit_the_objective(self) -> "Recipe":
        if self.objective.kind == "decomposition":
            if self.model.experts != "all":
                raise ValueError(f"objective.kind = decomposition needs model.experts = all, found {self.model.experts}")
            return self
        if self.model.experts == "single" and self.objective.interaction_weight > 0:
            raise ValueError("model.experts = single has no interaction losses: set objective.interaction_weight = 0")
        return self


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides (values as TOML, bare words as strings).

    Raises `RecipeError` with one line per problem: the key, what was expected and what was found.
    """
    try:
        document = parse_toml(read_file(path, MAX_TOML_BYTES))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise RecipeError(f"{path}: {error}") from error
    for override in overrides:
        _apply(document, override)
    return parse_recipe(document, str(path))


def parse_recipe(document: Mapping[str, Any], name: str) -> Recipe:
    """Check a recipe's values. Raises `RecipeError`."""
    try:
        # By way of JSON, because pydantic's strict mode then takes arrays for tuples and strings for paths, nothing else.
        recipe = Recipe.model_validate_json(json.dumps(document, default=str), strict=True)
        read_options(recipe.data)
    except RecursionError:
        raise RecipeError(f"{name}: is nested too deep") from None
    except ValidationError as error:
        raise RecipeError("\n".join(f"{name}: {sentence(problem)}" for problem in error.errors(include_url=False))) from None
    except RecipeError as error:
        raise RecipeError("\n".join(f"{name}: {line}" for line in str(error).splitlines())) from None
    return recipe


def read_recipe(run: Path) -> Recipe | None:
    """The recipe that a run folder was made with; None where there is none that this version understands."""
    try:
        return Recipe.model_validate_json((run / RECIPE_FILE).read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None


def set_value(document: dict[str, Any], key: str, value: Any) -> None:
    """Put a value under `section.key` of nested tables, making those that are missing. Raises `RecipeError`."""
    *sections, leaf = key.split(".")
    table = document
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{section} is a value, not a section")
    table[leaf] = value


def _apply(document: dict[str, Any], override: str) -> None:
    key, separator, text = (part.strip() for part in override.partition("="))
    if not separator or ("." not in key and key not in Recipe.model_fields):
        raise RecipeError(f"--set {override}: expected section.key=value")
    try:
        set_value(document, key, _toml_value(text))
    except RecipeError as error:
        raise RecipeError(f"--set {override}: {error}") from None


def _toml_value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}".encode("utf-8", "surrogatepass"))["value"]
    except DocumentError:
        return text
