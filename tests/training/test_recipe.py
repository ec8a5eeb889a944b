from pathlib import Path
from typing import Any

import pytest

from tests.training.small_data import document, recipe, to_toml, write_recipe
from tests.training.small_model import TASK, schema
from training.errors import RecipeError
from training.model.build import build_model
from training.recipe import load_recipe, parse_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    """Every recipe in training/recipes can be read."""
    assert load_recipe(path).name


def test_a_recipe_file_is_its_document(tmp_path: Path) -> None:
    """TOML and document say the same recipe."""
    assert load_recipe(write_recipe(tmp_path)) == recipe()


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"train.epoch": 3}, "recipe: train.epoch: is not a key of this section"),
     ({"training": {}}, "recipe: training: is not a key of this section"),
     ({"data.modalities.labs.numerics": []}, "recipe: data.modalities.labs.numerics: is not a key of this section"),
     ({"data": None}, "recipe: data: is required"),
     ({"data.split": None}, "recipe: data.split: is required"),
     ({"data.label": None}, "recipe: data.label: is required"),
     ({"train.epochs": "3"}, "recipe: train.epochs: Input should be a valid integer, found '3'"),
     ({"train.epochs": 2.5}, "recipe: train.epochs: Input should be a valid integer, found 2.5"),
     ({"train.epochs": True}, "recipe: train.epochs: Input should be a valid integer, found True"),
     ({"train.epochs": 0}, "recipe: train.epochs: Input should be greater than or equal to 1, found 0"),
     ({"train.learning_rate": float("nan")}, "recipe: train.learning_rate: Input should be a finite number"),
     ({"train.selection": 1}, "recipe: train.selection: Input should be a valid string, found 1"),
     ({"model.experts": "single"}, "model.experts = single has no interaction losses"),
     ({"train.seed": 1 << 32}, "recipe: train.seed: Input should be less than 4294967296"),
     ({"model.hidden_dim": "32"}, "recipe: model.hidden_dim: Input should be a valid integer, found '32'"),
     ({"model.dropout": 1.0}, "recipe: model.dropout: Input should be less than 1, found 1.0"),
     ({"objective.masking": "noise"}, "recipe: objective.masking: "),
     ({"name": "has space"}, "recipe: name: String should match pattern"),
     ({"data.path": None}, "recipe: data: needs a path, or the name of a data set"),
     ({"data.modalities.person": None}, "recipe: data: I2MoE needs at least 2 modalities, found 1: labs"),
     ({"data.modalities.third": {}}, "recipe: data.modalities.third: names no feature"),
     ({"data.modalities.my-labs": {"numeric": ["age"]}}, "a modality's name holds letters, digits and _"),
     ({"data.modalities.id": {"numeric": ["age"]}}, "a modality's name holds letters, digits and _"),
     ({"data.modalities.labs": {"numeric": ["crea", "crea"]}}, "names crea twice; a feature belongs to a modality once"),
     ({"data.modalities.labs": {"numeric": ["x"], "categorical": ["x"]}}, "names x twice"),
     ({"data.modalities.labs": {"numeric": ["x"], "array": "x.npy"}}, "names x twice"),
     ({"data.modalities.labs.units": {"sex": "1"}}, "units are given for ['sex'], which are not numeric features"),
     ({"data.exclude": ["sod"]}, "modality labs uses sod as a feature, but it is the label or excluded"),
     ({"data.label": "crea"}, "modality labs uses crea as a feature, but it is the label or excluded"),
     ({"data.split": {}}, "recipe: data.split: needs one of test, folds and column, found none"),
     ({"data.split": {"validation": 0.2}}, "recipe: data.split: needs one of test, folds and column, found none"),
     ({"data.split": {"test": 0.2}}, "recipe: data.split: needs a validation fraction, unless a column says the split"),
     ({"data.split.column": "fold"}, "recipe: data.split: needs one of test, folds and column, found test and column"),
     ({"data.split": {"folds": 2, "validation": 0.5}}, "recipe: data.split: validation 0.5 and test 0.5 leave no training rows"),
     ({"data.split": {"folds": 5, "validation": 0.1, "seed": "run"}}, "recipe: data.split: with folds the run's seed chooses"),
     ({"data.split.test": 0.8}, "recipe: data.split: validation 0.2 and test 0.8 leave no training rows"),
     ({"data.split.seed": -1}, "recipe: data.split.seed"),
     ({"data.modalities.labs.text": ["note"]}, "recipe: data.modalities.labs.text: expected keys and values, {"),
     ({"data.modalities.labs.text": "note"}, "or a section of its own, found 'note'"),
     ({"data.modalities": ["labs", "person"]}, "recipe: data.modalities: expected keys and values, {"),
     ({"data.risk_bands": [{"name": "low", "below": 2.0}]}, "recipe: data.risk_bands.0.below: Input should be")],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(changes: dict[str, Any], told: str) -> None:
    """Each line names the key, what was expected and what was found."""
    with pytest.raises(RecipeError) as error:
        parse_recipe(document(changes), "recipe")
    lines = str(error.value).splitlines()
    assert any(told in line for line in lines)
    assert all(line.startswith("recipe: ") for line in lines)


def test_every_mistake_is_told_at_once() -> None:
    """Three wrong keys are three lines."""
    with pytest.raises(RecipeError) as error:
        parse_recipe(document({"train.epoch": 1, "train.lr": 1, "model.width": 3}), "recipe")
    assert len(str(error.value).splitlines()) == 3


def test_excluded_code_and_text_columns_are_found() -> None:
    """A column may not return as codes or text after it was excluded."""
    for feature in ({"codes": {"column": "x"}}, {"text": {"column": "x"}}, {"categorical": ["x"]}):
        with pytest.raises(RecipeError, match="modality other uses x as a feature"):
            recipe({"data.exclude": ["x"], "data.modalities.other": feature})


def test_a_file_that_is_no_recipe_is_told(tmp_path: Path) -> None:
    """Absent, unreadable and invalid files are one line with the path."""
    path = tmp_path / "r.toml"
    with pytest.raises(RecipeError, match=r"r.toml: cannot be read: No such file"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    path.write_text("name = ")
    with pytest.raises(RecipeError, match=r"r.toml: is not valid TOML: Invalid value"):
        load_recipe(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match=r"r.toml: is not valid TOML: 'utf-8' codec"):
        load_recipe(path)


def test_set_changes_values(tmp_path: Path) -> None:
    """--set takes TOML values, and bare words as strings; new sections may be made."""
    path = write_recipe(tmp_path)
    overrides = ["train.epochs=7", "train.device = cpu", "objective.masking=zero", 'data.exclude=["x"]', "version=2.0.0"]
    changed = load_recipe(path, [*overrides, "model.encoders.labs.kind=patch"])
    assert (changed.train.epochs, changed.train.device, changed.objective.masking) == (7, "cpu", "zero")
    assert (changed.data.exclude, changed.version) == (("x",), "2.0.0")
    assert changed.model.encoders["labs"] == {"kind": "patch"}


@pytest.mark.parametrize(
    ("override", "told"),
    [("train.epochs", "--set train.epochs: expected section.key=value"),
     ("epochs=3", "--set epochs=3: expected section.key=value"),
     ("=3", "--set =3: expected section.key=value"),
     ("name.first=3", "--set name.first=3: name is a value, not a section"),
     ("train.epoch=3", "train.epoch: is not a key of this section"),
     ("train.epochs=many", "train.epochs: Input should be a valid integer, found 'many'")],
)  # fmt: skip
def test_a_bad_set_is_told(tmp_path: Path, override: str, told: str) -> None:
    """A value that cannot be set is refused as a recipe's own would be."""
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(tmp_path), [override])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_toml_text_is_what_json_would_say() -> None:
    """The helper of these tests writes what tomllib reads."""
    import tomllib

    assert tomllib.loads(to_toml(document())) == document()


@pytest.mark.parametrize(
    ("text", "told"),
    [("a = " + "9" * 5000, "is not valid TOML (ValueError)"), ("a = " + "[" * 100_000, "is not valid TOML (RecursionError)"),
     (".".join("a" * 5000) + " = 1", "is not valid TOML: expected keys of 100 parts at most")],
    ids=["digits", "nested", "dotted"],
)  # fmt: skip
def test_a_file_that_the_parser_gives_up_on_is_told(tmp_path: Path, text: str, told: str) -> None:
    """Limits of the parser are a line and not a traceback, and none is a matter of minutes."""
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "r.toml")
    assert told in str(error.value)


def test_overrides_that_are_nested_too_deep_are_told(tmp_path: Path) -> None:
    """A key of thousands of sections is told as that; half characters of a terminal are told as text."""
    path = write_recipe(tmp_path)
    with pytest.raises(RecipeError, match="is nested too deep"):
        load_recipe(path, ["data." + "a." * 5000 + "b=1"])
    with pytest.raises(RecipeError, match="holds what JSON cannot: Invalid JSON: lone"):
        load_recipe(path, ["train.epochs=\udcff"])


def test_a_message_holds_little_of_a_recipe() -> None:
    """However long a value and however many mistakes: short lines, and not too many."""
    changes = {"train.epochs": "x" * 100_000, "train.batch_size": "a\nb", **{f"train.k{i}": 1 for i in range(100)}}
    with pytest.raises(RecipeError) as error:
        parse_recipe(document(changes), "recipe")
    lines = str(error.value).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 52 more"
    assert all(line.isprintable() and len(line) < 200 for line in lines)


@pytest.mark.parametrize("size", [1 << 40, 1 << 70])
def test_a_model_that_no_memory_holds_is_told(size: int) -> None:
    """Sizes that torch cannot make are one line."""
    checked = recipe({"model.hidden_dim": size, "model.num_heads": 1})
    with pytest.raises(RecipeError, match="model: cannot be built: are its sizes too large"):
        build_model(checked.model, schema(), TASK)
    with pytest.raises(RecipeError, match=r"model.num_layers: Input should be less than or equal to 256"):
        recipe({"model.num_layers": size})
