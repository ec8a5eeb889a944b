"""What a user of the training commands can get wrong, as one tree.

ValueError
  TrainingError
    RecipeError    the recipe file or a --set value
    DataError      the data a recipe points at
    RunError       a run folder or checkpoint
"""

from service.bundle.errors import short_lines


class TrainingError(ValueError):
    """A mistake that one line explains: what was expected, what was found. Several mistakes are as many lines, up to a limit."""

    def __init__(self, message: str) -> None:
        super().__init__(short_lines(message))


class RecipeError(TrainingError):
    """A recipe cannot be read, or asks for something that does not exist."""


class DataError(TrainingError):
    """The data do not fit the recipe."""


class RunError(TrainingError):
    """A run folder or checkpoint cannot be used."""
