"""Components by name, and a user's own by import path, from the recipe to the verified graph."""

from pathlib import Path
from typing import Any

import pytest

from export.__main__ import main as export
from service.bundle.predictor import Predictor
from service.bundle.store import open_bundle
from tests.training import small_data, small_model
from tests.training.model.own_components import MeanFusion, TrendEncoder
from training.errors import RecipeError
from training.model.encoders import ENCODERS, FeatureEncoder, PatchEncoder
from training.model.fusion import FUSIONS, MulTFusion
from training.run import fit

OWN = "tests.training.model.own_components"


@pytest.mark.parametrize(
    ("registry", "name", "first", "second", "told"),
    [
        (ENCODERS, "patch", PatchEncoder, FeatureEncoder, "an encoder named 'patch' is registered already: PatchEncoder"),
        (FUSIONS, "mult", MulTFusion, MeanFusion, "a fusion named 'mult' is registered already: MulTFusion"),
    ],
)
def test_a_name_is_registered_once(registry: Any, name: str, first: type, second: type, told: str) -> None:
    """A second component of the same name is refused, naming the first, which stays."""
    with pytest.raises(ValueError, match=told):
        registry.register(name)(second)
    assert registry[name] is first


def test_ones_own_components_get_their_options() -> None:
    """Named by import path, beside ours; options reach them, and mistakes in options are told like any other's."""
    encoders = {"labs": {"kind": f"{OWN}:TrendEncoder", "window": 2}}
    changes = {"encoders": encoders, "fusion": f"{OWN}:MeanFusion", "fusion_options": {"scale": 3.0}}
    model: Any = small_model.model(changes)
    assert isinstance(model.encoders[1].encoder, TrendEncoder)
    assert model.encoders[1].encoder.window == 2
    assert [type(expert) for expert in model.experts] == [MeanFusion] * 5
    assert model.experts[0].config.scale == 3.0
    assert model(small_model.rows(4, missing_rate=0.5)).logits_BC.isfinite().all()
    with pytest.raises(RecipeError, match=r"model\.encoders\.labs\.window: Input should be a valid integer"):
        small_model.model({"encoders": {"labs": {"kind": f"{OWN}:TrendEncoder", "window": "wide"}}})


@pytest.mark.parametrize(
    ("kind", "told"),
    [("no_such_package:Encoder", "'no_such_package:Encoder' cannot be imported: No module named 'no_such_package'; "
      "install its package here, or name its folder in PYTHONPATH"),
     (f"{OWN}:Nothing", "cannot be imported: module .* has no attribute 'Nothing'"),
     (".encoders:Encoder", "'.encoders:Encoder' cannot be imported: the 'package' argument .*"),
     (":Encoder", "':Encoder' cannot be imported: Empty module name"),
     (f"{OWN}:MeanFusion", "MeanFusion is not a subclass of training.model.encoders.base.Encoder"),
     ("os:system", "os:system is not a subclass of training.model.encoders.base.Encoder")],
)  # fmt: skip
def test_what_cannot_be_an_encoder_is_told(kind: str, told: str) -> None:
    """A module or class that does not exist, and a thing of another kind: one line with the key."""
    with pytest.raises(RecipeError, match=rf"^model\.encoders\.labs\.kind: .*{told}$"):
        small_model.model({"encoders": {"labs": {"kind": kind}}})


@pytest.mark.slow
def test_ones_own_components_train_export_and_answer(tmp_path: Path) -> None:
    """A recipe with an own encoder and an own backbone: fit, rebuild from the checkpoint, parity, a graph that answers."""
    small_data.write_data(tmp_path)
    changes = {"model.fusion": f"{OWN}:MeanFusion", "model.encoders.labs": {"kind": f"{OWN}:TrendEncoder"}}
    fit(small_data.recipe(changes), tmp_path, tmp_path / "run")
    assert export([str(tmp_path / "run"), "--out", str(tmp_path / "bundle"), "--attribution-points", "0"]) == 0
    bundle = open_bundle(tmp_path / "bundle")
    assert [e.name for e in bundle.manifest.experts] == ["unique:labs", "unique:person", "synergy", "redundancy"]
    assert Predictor(bundle, provider="cpu").replay_example() <= 1e-5
