import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.released import load_released, released_material, released_weights
from export.released_config import ReleasedConfig, load_released_config
from tests.export.released_files import HIDDEN_DIM, save, small_model
from tests.export.released_forward import patched
from training.errors import RecipeError, RunError
from training.inference import predict
from training.model.mixture import I2MoE

GOLDEN = ["transformer_mimic", "transformer_regression", "transformer_two_modalities", "moepp_mimic"]


def changed_config(golden: Path, folder: Path, **changes: Any) -> Path:
    """The golden config.json with some keys changed; None removes a key."""
    document = json.loads((golden / "config.json").read_text()) | changes
    path = folder / "config.json"
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    return path


@pytest.mark.parametrize("case", GOLDEN)
def test_released_checkpoints_answer_as_the_released_code(shared_data: Path, case: str) -> None:
    """Logits, weights and every expert's logits of the golden inputs, to 1e-5."""
    golden = shared_data / "golden" / case
    material = released_material(golden / "checkpoint.pth", golden / "config.json")
    expected = np.load(golden / "expected.npz")
    arrays = {name: expected[f"input_{name}"].astype(np.float32) for name in material.schema.names}
    found = predict(material.model, material.schema, arrays)
    np.testing.assert_allclose(found.logits, expected["logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.expert_weights, expected["weights"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.expert_logits, expected["expert_logits"], atol=1e-5, rtol=0)
    assert material.task.kind == {"transformer_regression": "regression", "transformer_two_modalities": "multiclass"}.get(
        case, "binary"
    )
    assert len(material.task.labels) == expected["logits"].shape[1]


def test_a_multilabel_task_is_asked_for(shared_data: Path, tmp_path: Path) -> None:
    """The same weights, with multilabel = true, answer sigmoids; given labels are kept."""
    golden = shared_data / "golden" / "transformer_two_modalities"
    labels = [f"genre {i}" for i in range(23)]
    material = released_material(golden / "checkpoint.pth", changed_config(golden, tmp_path, multilabel=True, labels=labels))
    assert (material.task.kind, list(material.task.labels)) == ("multilabel", labels)
    logits = torch.tensor([[0.0] * 23])
    torch.testing.assert_close(material.model.calibration(logits), torch.full((1, 23), 0.5))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"modalities": None}, "modalities: is required"),
     ({"hidden_dim": "32"}, "hidden_dim: Input should be a valid integer, found '32'"),
     ({"hidden_dim": 0}, "hidden_dim: Input should be greater than 0, found 0"),
     ({"temperature_rw": 0}, "temperature_rw: Input should be greater than 0"),
     ({"colour": "blue"}, "colour: is not a key of this section"),
     ({"fusion": "lrtf"}, "found 'lrtf'"),
     ({"modalities": {"lab": 20}}, "modalities: Dictionary should have at least 2 items"),
     ({"modalities": {"lab": 20, "no-te": 33, "code": 17}}, "a modality's name holds letters, digits and _"),
     ({"modalities": {"lab": 20, "note": -1}}, "note: expected a number of columns, an array's sizes or null, found -1"),
     ({"modalities": {"lab": [], "note": 33}}, "lab: expected a number of columns, an array's sizes or null, found []"),
     ({"modalities": {"lab": [5, 1.5], "note": 33}}, "an array's sizes or null, found [5, 1.5]"),
     ({"modalities": {"lab": True, "note": 33}}, "an array's sizes or null, found True"),
     ({"name": "has space"}, "name: String should match pattern")],
)  # fmt: skip
def test_a_wrong_configuration_is_told_by_its_keys(shared_data: Path, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Missing, mistyped, unknown and contradictory keys are one line with the path."""
    path = changed_config(shared_data / "golden" / "transformer_mimic", tmp_path, **changes)
    with pytest.raises(ExportError) as error:
        load_released_config(path)
    assert told in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert str(error.value).count("found") <= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"modalities": {"note": 33, "lab": 20, "code": 17}},
      r"has modalities \['lab', 'note', 'code'\], the configuration names \['note', 'lab', 'code'\]"),
     ({"modalities": {"lab": 20, "note": 33}}, r"the configuration names \['lab', 'note'\]"),
     ({"modalities": {"lab": 24, "note": 33, "code": 17}}, "encoder lab: expected 17 to 20 columns, .* found 24"),
     ({"modalities": {"lab": 20, "note": 33, "code": None}}, "encoder code: expected columns under modalities of config.json"),
     ({"temperature_rw": None}, "temperature_rw: is required, since weights do not tell it"),
     ({"num_heads": None}, "num_heads: is required, since weights do not tell it"),
     ({"fusion": "moepp"}, "fusion: expected transformer, as the weights have it, found moepp"),
     ({"hidden_dim": 64}, "hidden_dim: expected 32, as the weights have it, found 64"),
     ({"num_patches": 2}, "num_patches: expected 4, .* found 2"),
     ({"num_classes": 3, "num_layers_fus": 3}, "num_layers_fus: expected 2, .* found 3; num_classes: expected 2, .* found 3"),
     ({"num_layer_rw": 2}, "num_layer_rw: expected 3, .* found 2"),
     ({"hidden_dim_rw": 8}, "hidden_dim_rw: expected 16, .* found 8"),
     ({"labels": ["a"]}, "labels: expected 2, as many as the weights have classes, found 1"),
     ({"regression": True}, "regression: expected False with 2 classes and multilabel = False, found True")],
)  # fmt: skip
def test_a_checkpoint_of_other_dimensions_is_told(shared_data: Path, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Where checkpoint and configuration disagree, one line names what does not fit."""
    golden = shared_data / "golden" / "transformer_mimic"
    config = load_released_config(changed_config(golden, tmp_path, **changes))
    with pytest.raises(ExportError, match=told) as error:
        load_released(golden / "checkpoint.pth", config)
    assert "\n" not in str(error.value)


def test_heads_must_divide_the_width(shared_data: Path, tmp_path: Path) -> None:
    """The number of heads, which no checkpoint records, is checked as far as it can be."""
    golden = shared_data / "golden" / "transformer_mimic"
    with pytest.raises(RecipeError, match="must be a multiple of num_heads, found 32 and 5"):
        released_material(golden / "checkpoint.pth", changed_config(golden, tmp_path, num_heads=5))


def test_files_that_are_no_released_checkpoint_are_told(shared_data: Path, tmp_path: Path) -> None:
    """Absent or damaged files, baselines, other keys: one line each."""
    golden = shared_data / "golden" / "transformer_mimic"
    config = load_released_config(golden / "config.json")
    with pytest.raises(RunError, match="no such file"):
        load_released(tmp_path / "none.pth", config)
    with pytest.raises(ExportError, match=r"none.json: cannot be read: No such file"):
        load_released_config(tmp_path / "none.json")
    path = tmp_path / "x.pth"
    torch.save({"fusion_model": {}, "encoder_dict": {}}, path)
    with pytest.raises(ExportError, match=r"x.pth: expected ensemble_model and encoder_dict"):
        load_released(path, config)
    torch.save([1], path)
    with pytest.raises(ExportError, match=r"x.pth: expected ensemble_model and encoder_dict"):
        load_released(path, config)
    told = "expected tensors by name under ensemble_model and under each modality of encoder_dict"
    for encoders in ([], {"lab": 1, "note": {}, "code": {}}, {"lab": {"x": 1}, "note": {}, "code": {}}):
        torch.save({"ensemble_model": {}, "encoder_dict": encoders}, path)
        with pytest.raises(ExportError, match=told):
            load_released(path, config)


@pytest.mark.parametrize(
    ("keys", "told"),
    [(["interaction_experts.0.fusion_model.network.0.x"], "key network.0.x is not one of a released transformer expert"),
     (["interaction_experts.0.fusion_model.network.0.norm1.bias", "experts.0.fc.weight"],
      "key experts.0.fc.weight is not one of a released I2MoE model"),
     (["interaction_experts.0.fusion_model.network.0.norm1.bias"], "expected the weights of a whole transformer model"),
     (["factors.0"], "expected experts of interpretcc, moepp, switchgate, transformer, found factors.0"),
     ([], "expected experts of .*, found no weights")],
)  # fmt: skip
def test_unknown_and_absent_weights_are_told(tmp_path: Path, keys: list[str], told: str) -> None:
    """A key of another model is named, and so is one that should be there."""
    path = tmp_path / "x.pth"
    torch.save({"ensemble_model": {key: torch.zeros(1) for key in keys}, "encoder_dict": {"lab": {}, "note": {}}}, path)
    with pytest.raises(ExportError, match=told) as error:
        load_released(
            path, ReleasedConfig.model_validate({"modalities": {"lab": 1, "note": 1}, "num_heads": 1, "temperature_rw": 1})
        )
    assert str(error.value).startswith(f"{path}: does not fit the configuration: ")


def test_a_data_parallel_prefix_is_ignored(shared_data: Path) -> None:
    """`module.` before every key changes nothing."""
    document = torch.load(shared_data / "golden" / "transformer_mimic" / "checkpoint.pth", weights_only=True)
    plain = released_weights(document["ensemble_model"], "transformer")
    prefixed = released_weights({f"module.{k}": v for k, v in document["ensemble_model"].items()}, "transformer")
    assert plain.keys() == prefixed.keys()


def encoder_states(model: I2MoE, names: Iterable[str]) -> dict[str, dict[str, torch.Tensor]]:
    """The patch embeddings' weights as `encoder_dict` holds them."""
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for position, state in enumerate(states.values()):
        for key in ("weight", "bias"):
            state[f"projection.{key}"] = model.state_dict()[f"encoders.{position}.encoder.patches.projection.{key}"]
    return states


BACKBONES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {  # our options, patches, what config.json must say
    "switchgate": ({"num_experts": 4, "residual": "released"}, 4, {"num_heads": 2}),
    "interpretcc": ({"tau": 0.7, "threshold": 0.6}, 1, {"tau": 0.7, "threshold": 0.6, "hard": True}),
}


@pytest.mark.parametrize("fusion", BACKBONES)
def test_the_other_backbones_are_read_by_their_released_names(tmp_path: Path, fusion: str) -> None:
    """A checkpoint in the released layout rebuilds the model whose weights it holds; dimensions are the weights' own."""
    options, num_patches, told = BACKBONES[fusion]
    model = small_model(fusion, ("lab", "note"), "binary", 2, num_patches=num_patches, **options)
    checkpoint = save(tmp_path / "x.pth", model, fusion, encoder_states(model, ("lab", "note")))
    config = ReleasedConfig.model_validate({"modalities": {"lab": 12, "note": 12}, "temperature_rw": 1.5, **told})
    again = load_released(checkpoint, config)
    assert again.dimensions.fusion == fusion
    assert again.dimensions.num_experts == options.get("num_experts")
    inputs = [torch.randn(5, 12), torch.randn(5, 12)]
    torch.testing.assert_close(again.model(inputs).logits_BC, model(inputs).logits_BC)


def test_an_ordinary_config_json_is_short(shared_data: Path, tmp_path: Path) -> None:
    """Modalities, heads and temperature are enough: backbone and dimensions are read off the weights and told."""
    golden = shared_data / "golden" / "transformer_mimic"
    (tmp_path / "config.json").write_text(
        json.dumps({"modalities": {"lab": 20, "note": 33, "code": 17}, "num_heads": 4, "temperature_rw": 1.0})
    )
    material = released_material(golden / "checkpoint.pth", tmp_path / "config.json")
    expected = np.load(golden / "expected.npz")
    arrays = {name: expected[f"input_{name}"].astype(np.float32) for name in material.schema.names}
    found = predict(material.model, material.schema, arrays)
    np.testing.assert_allclose(found.logits, expected["logits"], atol=1e-5, rtol=0)
    assert material.provenance["dimensions"] == {
        "fusion": "transformer", "hidden_dim": 32, "num_patches": 4, "num_layers_fus": 2, "num_experts": None,
        "num_classes": 2, "hidden_dim_rw": 16, "num_layer_rw": 3,
    }  # fmt: skip


def test_statistics_of_batch_normalisation_must_be_there(tmp_path: Path) -> None:
    """A checkpoint without them is refused: zeros and ones in their place would answer, and wrongly."""
    model = small_model("transformer", ("language", "img"), "multilabel", 3, num_patches=4, residual="released")
    states = {name: patched("maxout", 4, HIDDEN_DIM).state for name in ("language", "img")}
    del states["img"]["0.op2.0.running_var"]
    checkpoint = save(tmp_path / "x.pth", model, "transformer", states)
    config = ReleasedConfig.model_validate(
        {"modalities": {"language": None, "img": None}, "num_heads": 2, "multilabel": True, "temperature_rw": 2.0}
    )
    with pytest.raises(ExportError, match=r"Missing key.* \"encoders\.1\.encoder\.op2\.0\.running_var\""):
        load_released(checkpoint, config)
