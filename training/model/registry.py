"""Components by name: what a recipe can ask for, ours and a user's own.

A recipe names one of ours ("gru"), or a class of an installed package or of a module on the Python path
("hospital.encoders:WaveformEncoder"). The second is imported when the model is built, so a checkpoint of it rebuilds
and exports wherever that package is installed.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from training.errors import RecipeError

T = TypeVar("T", bound=type[Any])


class Registry(dict[str, T]):
    """Names to the subclasses of one base."""

    def __init__(self, base: type[Any], word: str) -> None:
        super().__init__()
        self.base, self.word = base, word

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: makes a class available to recipes under `name`."""

        def register(component: T) -> T:
            if name in self:
                raise ValueError(f"{self.word} named {name!r} is registered already: {self[name].__qualname__}")
            self[name] = component
            return component

        return register

    def find(self, name: object, place: str) -> T:
        """The class that a recipe's `place` calls `name`. Raises `RecipeError`."""
        if isinstance(name, str) and name in self:
            return self[name]
        if isinstance(name, str) and ":" in name:
            return self._imported(name, place)
        raise RecipeError(f"{place}: expected one of {', '.join(self)}, or package.module:Class, found {name!r}")

    def _imported(self, path: str, place: str) -> T:
        module, _, attribute = path.partition(":")
        try:
            component: T = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            hint = "install its package here, or name its folder in PYTHONPATH"
            raise RecipeError(f"{place}: {path!r} cannot be imported: {error}; {hint}") from error
        except Exception as error:  # a module may do anything when it is imported
            raise RecipeError(f"{place}: {path!r} cannot be imported: {error}") from error
        if not (isinstance(component, type) and issubclass(component, self.base)):
            raise RecipeError(f"{place}: {path} is not a subclass of {self.base.__module__}.{self.base.__qualname__}")
        return component
