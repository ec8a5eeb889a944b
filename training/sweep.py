"""A grid of runs over one recipe, resumed where it stopped, summed up in one table.

This is how ablations are compared: every run has the same architecture and budget, and differs in the varied values and
the seed alone. Folders are named by the values, so the same grid finds its finished runs again.
"""

import csv
import html
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpoint import METRICS_FILE
from training.errors import RecipeError
from training.evaluation import read_metrics
from training.files import write_text
from training.recipe import Recipe, load_recipe

TABLE_CSV, TABLE_HTML = "table.csv", "table.html"
_SPLIT = "test"
_STYLE = "body{font:14px sans-serif;margin:2em}td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}"

FitFunction = Callable[[Recipe, Path, Path], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell of the grid: the varied keys' values, as written on the command line."""

    values: tuple[tuple[str, str], ...]

    @property
    def overrides(self) -> list[str]:
        """As `--set` arguments."""
        return [f"{key}={value}" for key, value in self.values]

    def folder(self, seed: int) -> str:
        """A folder name that says the values and the seed."""
        words = [re.sub(r"[^A-Za-z0-9.+-]+", "-", f"{key}={value}") for key, value in self.values]
        return "_".join([*words, f"seed-{seed}"])


def parse_grid(vary: Sequence[str]) -> list[Setting]:
    """`section.key=a,b,c` arguments to every combination of their values. Raises `RecipeError`."""
    axes = []
    for argument in vary:
        key, separator, values = argument.partition("=")
        if not separator or not all(value.strip() for value in values.split(",")):
            raise RecipeError(f"--vary {argument}: expected section.key=value,value,...")
        axes.append([(key.strip(), value.strip()) for value in values.split(",")])
    keys = [axis[0][0] for axis in axes]
    if len(set(keys)) < len(keys):
        raise RecipeError(f"--vary names a key twice: {', '.join(sorted(k for k in set(keys) if keys.count(k) > 1))}")
    return [Setting(values) for values in itertools.product(*axes)]


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` to numbers. Raises `RecipeError`."""
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        raise RecipeError(f"--seeds {text}: expected whole numbers separated by commas")
    return list(dict.fromkeys(int(word) for word in words))


def runs(
    recipe: Path, grid: Sequence[Setting], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> Iterator[tuple[Setting, int, Recipe, Path]]:
    """Every run of the sweep with its recipe and folder. All recipes are checked before the first is told."""
    cells = list(itertools.product(grid, seeds))
    checked = [load_recipe(recipe, [*overrides, *setting.overrides, f"train.seed={seed}"]) for setting, seed in cells]
    for (setting, seed), one in zip(cells, checked, strict=True):
        yield setting, seed, one, out / setting.folder(seed)


def sweep(
    recipe: Path, grid: Sequence[Setting], seeds: Sequence[int], out: Path, fit: FitFunction, *, overrides: Sequence[str] = ()
) -> Path:
    """Run what has not been run, then write the table to `out`. Answers the csv file's path.

    `fit` trains one recipe (paths relative to the given folder) into a run folder, continuing a run that was interrupted.
    """
    finished: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in grid}
    for setting, _, one, folder in runs(recipe, grid, seeds, out, overrides):
        if not (folder / METRICS_FILE).exists():
            fit(one, recipe.parent.absolute(), folder)
        finished[setting].append(read_metrics(folder)["splits"][_SPLIT]["metrics"])
    rows = [_row(setting, documents) for setting, documents in finished.items()]
    write_text(_csv(rows), out / TABLE_CSV)
    write_text(_html(rows, recipe.name), out / TABLE_HTML)
    return out / TABLE_CSV


def _row(setting: Setting, documents: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The varied values, the number of seeds, and mean and standard deviation (n - 1) of every test metric."""
    row = {**dict(setting.values), "seeds": str(len(documents))}
    for name in documents[0]:
        values = np.array([document[name]["value"] for document in documents])
        row[f"{name} mean"] = f"{values.mean():.4f}"
        row[f"{name} std"] = f"{values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return row


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _html(rows: Sequence[Mapping[str, str]], title: str) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)

    body = "\n".join(f"<tr>{cells('td', list(row.values()))}</tr>" for row in rows)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Sweep of {html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n"
        f"<h1>Sweep of {html.escape(title)}</h1>\n<p>{_SPLIT.capitalize()} metrics, mean and standard deviation over seeds.</p>\n"
        f"<table>\n<tr>{cells('th', list(rows[0]))}</tr>\n{body}\n</table>\n</html>\n"
    )
