import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.bundle.card import ModelCard
from service.bundle.manifest import TaskInfo
from service.bundle.schema import ArrayFeature, FeatureSchema, Modality
from training.data import adni, enrico, mimic_iv_processed, mmimdb, mosi
from training.data.source import load_source
from training.errors import DataError
from training.model.build import ModelConfig, build_model
from training.model.mixture import I2MoE
from training.objectives.config import ObjectiveConfig
from training.recipe import load_recipe
from training.tasks import make_task

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
BACKBONES = ("interpretcc", "moepp", "switchgate", "transformer")
READERS: dict[str, ModuleType] = {
    "adni": adni, "enrico": enrico, "mimic_iv": mimic_iv_processed, "mmimdb": mmimdb, "mosi": mosi,
}  # fmt: skip
LABELS: dict[str, Any] = {
    "adni": adni.LABEL, "enrico": enrico.LABEL, "mimic_iv": mimic_iv_processed.LABEL,
    "mmimdb": list(mmimdb.GENRES), "mosi": mosi.POSITIVE,
}  # fmt: skip
SHAPES = {  # of one row; where the released width is not known or large, a small one
    "image": (91, 109, 91), "screenshot": (3, *enrico.SIZE), "wireframe": (3, *enrico.SIZE), **mosi.SHAPES,
}  # fmt: skip
PRESETS = [(data_set, backbone) for data_set in READERS for backbone in BACKBONES]


def preset(data_set: str, backbone: str) -> dict[str, Any]:
    return tomllib.loads((RECIPES / data_set / f"{backbone}.toml").read_text())


def built(document: Mapping[str, Any], **changes: Any) -> I2MoE:
    """The preset's model for arrays of the data set's shapes."""
    data = document["data"]
    config = ModelConfig.model_validate_json(json.dumps({**document["model"], **changes}), strict=True)
    modalities = [Modality(name=m, features=(ArrayFeature(name=m, shape=SHAPES.get(m, (40,))),)) for m in data["modalities"]]
    labels = data["label"] if data["task"] == "multilabel" else data["labels"]
    task = TaskInfo(kind=data["task"], labels=tuple(labels), outcome=data["outcome"])
    return build_model(config, FeatureSchema(modalities=tuple(modalities), missing=config.missing), task)


def test_every_data_set_has_a_preset_for_every_backbone() -> None:
    """Five data sets, four backbones, and no preset beside them."""
    found = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.glob("*/*.toml"))
    presets = [f"{data_set}/{backbone}.toml" for data_set, backbone in PRESETS]
    assert [path for path in found if not path.startswith("variants/")] == sorted(presets)


@pytest.mark.parametrize(("data_set", "backbone"), PRESETS)
def test_a_preset_fits_its_reader(data_set: str, backbone: str) -> None:
    """Modalities in the reader's order, its label and classes, its split, its own name."""
    document, reader = preset(data_set, backbone), READERS[data_set]
    data = document["data"]
    assert document["name"].endswith(f"-{backbone}")
    assert data["name"] == reader.__name__.rpartition(".")[2]
    assert [(name, source["array"]) for name, source in data["modalities"].items()] == [(m, m) for m in reader.MODALITIES]
    assert data["label"] == LABELS[data_set]
    assert tuple(data.get("labels", ())) == getattr(reader, "CLASSES", ())
    assert data["split"] == {"column": "split"}


@pytest.mark.parametrize(("data_set", "backbone"), PRESETS)
def test_a_preset_is_a_model_that_can_be_built(data_set: str, backbone: str) -> None:
    """Every key of model, objective and model card is one of the code, and the model has n + 2 experts."""
    document = preset(data_set, backbone)
    ObjectiveConfig.model_validate_json(json.dumps(document["objective"]), strict=True)
    ModelCard.model_validate(document["model_card"])
    assert document["model"]["fusion"] == backbone
    assert len(built(document).encoders) == len(READERS[data_set].MODALITIES)


@pytest.mark.parametrize(
    ("data_set", "changes", "published"),
    [
        ("adni", {}, 6_696_728),
        ("mimic_iv", {}, 1_390_095),
        ("mmimdb", {"num_patches": 16, "reweighting": {"hidden_dim": 256, "num_layers": 2}}, 4_423_008),
        ("mosi", {"hidden_dim": 128, "reweighting": {"num_layers": 1}}, 673_935),
        ("enrico", {"num_patches": 4, "num_layers": 1}, 2_352_724),
    ],
)
def test_the_comments_on_published_parameter_counts_are_right(data_set: str, changes: dict[str, Any], published: int) -> None:
    """With the values that a preset's first lines name, experts and reweighting have the parameters of the paper's Table 6."""
    document = preset(data_set, "transformer")
    changes["missing"] = "reject"  # the paper's model has no tokens for missing modalities
    parameters = built(document, **changes).named_parameters()
    assert sum(values.numel() for name, values in parameters if not name.startswith("encoders.")) == published


@pytest.mark.parametrize(("data_set", "backbone"), PRESETS)
def test_a_preset_is_a_recipe(data_set: str, backbone: str) -> None:
    """Every preset is read by the loader that `python -m training fit` uses, and chooses epochs by a metric of its task."""
    recipe = load_recipe(RECIPES / data_set / f"{backbone}.toml")
    assert recipe.model.fusion == backbone
    labels = recipe.data.labels or (LABELS[data_set] if isinstance(LABELS[data_set], list) else ("no", "yes"))
    task = make_task(TaskInfo(kind=recipe.data.task, labels=tuple(labels), outcome=recipe.data.outcome))
    assert task.selection(recipe.train.selection) == recipe.train.selection


@pytest.mark.parametrize(("data_set", "backbone"), PRESETS)
def test_a_preset_may_have_the_other_objective(data_set: str, backbone: str) -> None:
    """`--set objective.kind=decomposition`: what the file says of the published objective is for the first stage."""
    recipe = load_recipe(RECIPES / data_set / f"{backbone}.toml", ["objective.kind=decomposition"])
    assert recipe.objective.kind == "decomposition"


def test_a_preset_without_its_data_says_where_they_belong() -> None:
    """Data that are not shipped are asked for in one line that names the folder."""
    path = RECIPES / "mosi" / "transformer.toml"
    with pytest.raises(DataError, match=r"cmu-mosi: expected the folder of data set mosi, found nothing"):
        load_source(load_recipe(path).data, path.parent)
