"""A grid of runs over one recipe, resumed where it stopped, summed up in one table.

This is how ablations are compared: every run has the same architecture and budget, and differs in the varied values and
the seed alone. Folders are named by the values, so the same grid finds its finished runs again.
"""

import csv
import functools
import html
import io
import itertools
import json
import multiprocessing
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.bundle.documents import MAX_TOML_BYTES, DocumentError, parse_toml, read_file
from training.checkpoint import METRICS_FILE
from training.errors import RecipeError, RunError
from training.evaluation import read_metrics
from training.files import write_text
from training.recipe import Recipe, load_recipe, read_recipe

TABLE_CSV, TABLE_HTML = "table.csv", "table.html"
VARIANT = "variant"  # the column of named variants
_OUTER_COMMA = re.compile(r",(?![^\[{]*[\]}])")  # not one inside an array or a table
_SEED = "train.seed"
_SPLIT = "test"
_STYLE = "body{font:14px sans-serif;margin:2em}td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}"

FitFunction = Callable[[Recipe, Path, Path], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: what it is called and what it sets."""

    values: tuple[tuple[str, str], ...]  # column of the table, its text
    overrides: tuple[str, ...]  # as `--set` arguments

    def __add__(self, other: "Setting") -> "Setting":
        """Both together."""
        return Setting(self.values + other.values, self.overrides + other.overrides)

    def folder(self, seed: int) -> str:
        """A folder name that says the values and the seed."""
        words = [value if key == VARIANT else f"{key}={value}" for key, value in self.values]
        return "_".join([*(re.sub(r"[^A-Za-z0-9.+=-]+", "-", word) for word in words), f"seed-{seed}"])


def parse_grid(vary: Sequence[str], variants: Sequence[Setting] = ()) -> list[Setting]:
    """`section.key=a,b,c` arguments, and variants, to every combination. Raises `RecipeError`."""
    axes = [list(variants)] if variants else []
    keys = []
    for argument in vary:
        key, separator, values = (part.strip() for part in argument.partition("="))
        texts = [text.strip() for text in _OUTER_COMMA.split(values)]
        if not separator or not all(texts):
            raise RecipeError(f"--vary {argument}: expected section.key=value,value,...")
        keys.append(key)
        axes.append([Setting(((key, text),), (f"{key}={text}",)) for text in texts])
    if len(set(keys)) < len(keys):
        raise RecipeError(f"--vary names a key twice: {', '.join(sorted(k for k in set(keys) if keys.count(k) > 1))}")
    return [functools.reduce(operator.add, combination) for combination in itertools.product(*axes)]


def read_variants(path: Path) -> list[Setting]:
    """A TOML file of named variants, each a table of recipe values: `vanilla = { model.experts = "single" }`.

    Raises `RecipeError`.
    """
    try:
        document = parse_toml(read_file(path, MAX_TOML_BYTES))
    except (OSError, DocumentError) as error:
        raise RecipeError(f"{path}: cannot be read as TOML: {error}") from error
    if wrong := [name for name, table in document.items() if not isinstance(table, dict)]:
        raise RecipeError(f"{path}: {wrong[0]}: expected a table of recipe values")
    if not document:
        raise RecipeError(f"{path}: names no variant")
    return [Setting(((VARIANT, name),), tuple(_leaves(table))) for name, table in document.items()]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested tables as section.key=value overrides."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, default=str)}"


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` or `0-4` or both to numbers. Raises `RecipeError`."""
    seeds: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise RecipeError(f"--seeds {text}: expected whole numbers and ranges separated by commas, like 0,1,2 or 0-4")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def runs(
    recipe: Path, grid: Sequence[Setting], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[tuple[Setting, Recipe, Path]]:
    """Every run of the sweep with its recipe and folder, all recipes checked, every setting's first seed before any second.

    Raises `RecipeError`, also where a setting sets the seed or two settings would share a folder.
    """
    if any(override.partition("=")[0].strip() == _SEED for setting in grid for override in setting.overrides):
        raise RecipeError(f"{_SEED}: is varied by --seeds alone")
    folders = [setting.folder(0) for setting in grid]
    if shared := sorted({folder for folder in folders if folders.count(folder) > 1}):
        raise RecipeError(f"two settings would share the folder {shared[0]}: give them names that differ in letters or digits")
    cells = [(setting, seed) for seed in seeds for setting in grid]
    return [
        (setting, load_recipe(recipe, [*overrides, *setting.overrides, f"train.seed={seed}"]), out / setting.folder(seed))
        for setting, seed in cells
    ]


def sweep(
    recipe: Path,
    grid: Sequence[Setting],
    seeds: Sequence[int],
    out: Path,
    fit: FitFunction,
    *,
    overrides: Sequence[str] = (),
    jobs: int = 1,
) -> Path:
    """Run what has not been run, `jobs` runs at a time, then write the table to `out`. Answers the csv file's path.

    `fit` trains one recipe (paths relative to the given folder) into a run folder, continuing a run that was interrupted;
    with more than one job it runs in processes of its own and must be importable.
    """
    planned = runs(recipe, grid, seeds, out, overrides)
    wanted = [(one, recipe.parent.absolute(), folder) for _, one, folder in planned if not is_finished(one, folder)]
    if jobs == 1:
        for arguments in wanted:
            fit(*arguments)
    else:
        for _ in side_by_side(fit, wanted, jobs):
            pass
    finished: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in grid}
    for setting, _, folder in planned:
        finished[setting].append(read_metrics(folder)["splits"][_SPLIT]["metrics"])
    rows = [_row(setting, documents) for setting, documents in finished.items()]
    write_text(_csv(rows), out / TABLE_CSV)
    write_text(_html(rows, load_recipe(recipe, overrides).name), out / TABLE_HTML)
    return out / TABLE_CSV


def is_finished(recipe: Recipe, run: Path) -> bool:
    """Whether the folder holds a finished run of this very recipe. Raises `RunError` where it is another's."""
    if not (run / METRICS_FILE).exists():
        return False
    if read_recipe(run) != recipe:
        raise RunError(f"{run}: holds a finished run of another recipe; choose another folder for the sweep, or remove that one")
    return True


def side_by_side(function: Callable[..., object], calls: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[int]:
    """Call an importable function with each tuple, `jobs` processes at a time; tells the calls' positions as they finish.

    Processes share the cores; the first failure or Ctrl-C ends all, and what is finished stays finished.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        positions = {pool.submit(function, *arguments): position for position, arguments in enumerate(calls)}
        try:
            for future in as_completed(positions):
                future.result()
                yield positions[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


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
