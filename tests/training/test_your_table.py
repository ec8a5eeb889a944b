"""docs/your_table.md and the recipe that it starts from are true: keys, code and commands."""

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from tests.training import small_data, small_model
from training.data.config import CodesConfig, DataConfig, ModalityConfig, SplitConfig, TextConfig
from training.data.dataset import load_dataset
from training.model.build import build_model
from training.recipe import load_recipe

DOCUMENT = Path("docs/your_table.md")
RECIPE = Path("training/recipes/your_table.toml")


def section(title: str) -> str:
    """The text under one heading."""
    return DOCUMENT.read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def keys(title: str) -> set[str]:
    """What the first column of a section's table names."""
    rows = re.findall(r"^\| (`.*?) \|", section(title), flags=re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`(\w+)`", row)}


def code(language: str) -> str:
    """The one block of a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.mark.parametrize(
    ("title", "config"),
    [("`[data]`", DataConfig), ("`[data.modalities.NAME]`", ModalityConfig), ("`[data.split]`", SplitConfig)],
)
def test_every_key_is_told(title: str, config: type[DataConfig | ModalityConfig | SplitConfig]) -> None:
    """A section's table has all keys of its class and no other."""
    assert keys(title) == set(config.model_fields)


def test_keys_within_a_row_exist() -> None:
    """What the rows of codes and text name are keys of theirs."""
    text = section("`[data.modalities.NAME]`")
    for part, config in (("codes", CodesConfig), ("text", TextConfig)):
        (row,) = re.findall(rf"^\| `{part}` \| (.*) \|$", text, flags=re.MULTILINE)
        named = re.findall(r"`(\w+)`", row)
        assert named
        assert set(named) <= set(config.model_fields)


def test_the_starting_recipe_reads_such_a_table(tmp_path: Path) -> None:
    """A csv with its columns, gaps and all, becomes rows of two modalities with a model for them."""
    drawn = small_data.small_table()
    table = drawn.select(
        pl.col("outcome").replace_strict({"alive": 0, "dead": 1}, default=pl.col("outcome")).alias("died_30d"),
        *(pl.col("crea").alias(name) for name in ("creatinine", "lactate", "sodium", "albumin")),
        *("age", "sex", "ward", "note"),
    )
    table.write_csv(tmp_path / "patients.csv")
    (tmp_path / "recipe.toml").write_text(RECIPE.read_text())
    recipe = load_recipe(tmp_path / "recipe.toml")
    dataset = load_dataset(recipe.data, tmp_path, seed=0)
    assert dataset.task.labels == ("alive", "dead")
    assert set(dataset.splits) == {"train", "validation", "test", "conformal"}
    assert [expert.name for expert in build_model(recipe.model, dataset.schema, dataset.task).roles][:2] == [
        "unique:labs",
        "unique:chart",
    ]


def test_the_classes_shown_are_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's module, named as its recipe names it, makes a model that answers rows with gaps."""
    module = ModuleType("hospital.models")
    exec(code("python"), module.__dict__)
    monkeypatch.setitem(sys.modules, "hospital", ModuleType("hospital"))
    monkeypatch.setitem(sys.modules, "hospital.models", module)
    model = small_model.model(tomllib.loads(code("toml"))["model"])
    assert {type(expert).__name__ for expert in model.experts} == {"MeanFusion"}
    assert type(model.encoders[1].encoder).__name__ == "WaveformEncoder"
    assert model(small_model.rows(4, missing_rate=0.5)).logits_BC.isfinite().all()
