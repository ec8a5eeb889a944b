"""Recipes, their variants, and what is set on a command line."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import Content, toml_texts, trees, write_toml
from tests.fuzz.profile import MAX_LINES, check, fuzz
from tests.fuzz.worker import Worker
from tests.training.small_data import ALL_MODALITIES, document, write_data, write_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SHIPPED = ("support2.toml", "mimic_iv.toml")


def read(path: Path) -> dict[str, Any]:
    """A TOML file's document."""
    return tomllib.loads(path.read_text())


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small table, its array and a recipe."""
    folder = write_data(tmp_path_factory.mktemp("small-recipe"))
    write_recipe(folder)
    return folder


@pytest.mark.parametrize("name", SHIPPED)
def test_any_recipe_is_read_or_refused(worker: Worker, small: Path, name: str) -> None:
    """A recipe is right, or each thing wrong with it is a line."""
    path = small / "changed.toml"

    @fuzz()
    @given(text=toml_texts(read(RECIPES / name)))
    def holds(text: Content) -> None:
        path.write_bytes(text)
        check(worker.read("recipe", path), lines=MAX_LINES)

    holds()


@pytest.mark.parametrize("name", ["ablations.toml", "backbones.toml"])
def test_any_variants_are_read_or_refused(worker: Worker, small: Path, name: str) -> None:
    """A file of variants sets what a recipe has, or lines say what is wrong."""
    path = small / "variants.toml"

    @fuzz(0.5)
    @given(text=toml_texts(read(RECIPES / "variants" / name)))
    def holds(text: Content) -> None:
        path.write_bytes(text)
        check(worker.read("variants", RECIPES / "support2.toml", path), lines=MAX_LINES)

    holds()


SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "data": {"data.group": "patient", "data.risk_bands": [{"name": "all", "below": 1.0}]},
    "model": {"model.encoders.labs": {"kind": "patch"}, "model.fusion_options": {}},
}


@pytest.mark.parametrize("section", SECTIONS)
def test_any_recipe_makes_a_model_or_is_refused(worker: Worker, small: Path, section: str) -> None:
    """From a recipe that is read, data are loaded and a model is built, or lines say what is wrong."""
    whole = document({**SECTIONS[section]}, modalities=ALL_MODALITIES)
    path = small / f"changed-{section}.toml"

    @fuzz(0.5)
    @given(tree=trees(whole[section]))
    def builds(tree: Any) -> None:
        path.write_text(write_toml(whole | {section: tree}), errors="surrogatepass")
        check(worker.read("trainer", path), lines=MAX_LINES)

    builds()


_WORDS = st.sampled_from(("train.epochs", "data", "name", "=", "==", ".", "[", "]", "{}", '"', "1", "-", "x", "\n", "#", "train"))


@fuzz()
@given(override=st.one_of(st.lists(_WORDS, max_size=6).map("".join), st.text(max_size=40)))
def test_any_override_is_applied_or_refused(worker: Worker, override: str) -> None:
    """--set takes a value or says in lines why it does not."""
    check(worker.read("recipe", RECIPES / "support2.toml", override), lines=MAX_LINES)
