import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.released import load_released, load_released_config, released_material, released_schema, released_weights
from service.bundle.manifest import TaskInfo
from training.errors import RecipeError, RunError
from training.inference import predict
from training.model.build import ModelConfig, ReweightingConfig, build_model
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
    [({"num_heads": None}, "num_heads: is required"),
     ({"hidden_dim": "32"}, "hidden_dim: Input should be a valid integer, found '32'"),
     ({"hidden_dim": 0}, "hidden_dim: Input should be greater than 0, found 0"),
     ({"temperature_rw": 0}, "temperature_rw: Input should be greater than 0"),
     ({"colour": "blue"}, "colour: is not a key of this section"),
     ({"fusion": "lrtf"}, "found 'lrtf'"),
     ({"modalities": {"lab": 20}}, "modalities: Dictionary should have at least 2 items"),
     ({"modalities": {"lab": 20, "no-te": 33, "code": 17}}, "a modality's name holds letters, digits and _"),
     ({"modalities": {"lab": 20, "note": -1, "code": 17}}, "modalities.note: Input should be greater than 0, found -1"),
     ({"labels": ["a"]}, "labels: expected 2, found 1"),
     ({"num_classes": 1}, "num_classes: expected 2 or more, found 1; or regression = true"),
     ({"regression": True}, "num_classes: expected 1 for regression, found 2"),
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


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"modalities": {"note": 33, "lab": 20, "code": 17}},
      r"has modalities \['lab', 'note', 'code'\], the configuration names \['note', 'lab', 'code'\]"),
     ({"modalities": {"lab": 20, "note": 33}}, r"the configuration names \['lab', 'note'\]"),
     ({"modalities": {"lab": 24, "note": 33, "code": 17}}, "size mismatch for encoders.0"),
     ({"hidden_dim": 64}, "does not fit the configuration: .*size mismatch"),
     ({"num_patches": 2}, "does not fit the configuration: .*size mismatch"),
     ({"num_classes": 3}, "does not fit the configuration: .*size mismatch for experts.0.head"),
     ({"num_layers_fus": 3}, "does not fit the configuration: .*Missing key"),
     ({"num_layers_fus": 1}, "does not fit the configuration"),
     ({"num_layer_rw": 2}, "does not fit the configuration"),
     ({"hidden_dim_rw": 8}, "does not fit the configuration: .*size mismatch for reweighting")],
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


@pytest.mark.parametrize(
    ("ensemble", "encoders", "told"),
    [({"experts.0.fc.weight": torch.zeros(1)}, {}, "key experts.0.fc.weight is not one of a released I2MoE model"),
     ({"interaction_experts.0.fusion_model.layers.0.x": torch.zeros(1)}, {}, "key layers.0.x is not one of a released"),
     ({}, {"img": {"0.op0.weight": torch.zeros(1)}}, "encoder img: key 0.op0.weight is not one of a released patch")],
)  # fmt: skip
def test_unknown_weights_are_told(ensemble: dict[str, Any], encoders: dict[str, Any], told: str) -> None:
    """A key of another backbone or encoder is named."""
    with pytest.raises(ExportError, match=told):
        released_weights(ensemble, encoders, "transformer")


def test_a_data_parallel_prefix_is_ignored(shared_data: Path) -> None:
    """`module.` before every key changes nothing."""
    document = torch.load(shared_data / "golden" / "transformer_mimic" / "checkpoint.pth", weights_only=True)
    plain = released_weights(document["ensemble_model"], document["encoder_dict"], "transformer")
    prefixed = released_weights(
        {f"module.{k}": v for k, v in document["ensemble_model"].items()}, document["encoder_dict"], "transformer"
    )
    assert plain.keys() == prefixed.keys()


def test_a_moepp_configuration_does_not_fit_a_transformer(shared_data: Path, tmp_path: Path) -> None:
    """fusion = moepp beside transformer weights is refused by name."""
    golden = shared_data / "golden" / "transformer_mimic"
    with pytest.raises(ExportError, match=r"fusion.*moepp|moepp") as error:
        released_material(golden / "checkpoint.pth", changed_config(golden, tmp_path, fusion="moepp"))
    assert "\n" not in str(error.value)


def as_released(model: I2MoE, fusion: str) -> dict[str, Any]:
    """A model's weights under the released names, as its checkpoint would hold them: the tables of keys read backwards."""
    ensemble: dict[str, torch.Tensor] = {}
    names = {"switchgate": SWITCHGATE_NAMES, "interpretcc": INTERPRETCC_NAMES}[fusion]
    for key, tensor in model.state_dict().items():
        if key.startswith("experts."):
            _, number, rest = key.split(".", 2)
            for ours, released in names:
                rest = re.sub(ours, released, rest)
            ensemble[f"interaction_experts.{number}.fusion_model.{rest}"] = tensor[None] if rest == "pos_embed" else tensor
        elif key.startswith("reweighting."):
            ensemble[key.replace("reweighting.mlp", "reweight.mlp.network")] = tensor
    encoders = {
        name: {
            k.removeprefix(f"encoders.{i}.encoder.").removeprefix("patches."): v
            for k, v in model.state_dict().items()
            if k.startswith(f"encoders.{i}.encoder.") and ("projection" in k or "network" in k)
        }
        for i, name in enumerate(("lab", "note"))
    }
    return {"ensemble_model": ensemble, "encoder_dict": encoders}


SWITCHGATE_NAMES = [
    (r"^position$", "pos_embed"),
    (r"^head\.", "network.2.fc."),
    (r"^layers\.", "network."),
    (r"attention_norm", "norm1"),
    (r"mlp_norm", "norm2"),
    (r"attention\.query", "attn.q"),
    (r"attention\.key_value", "attn.kv"),
    (r"attention\.projection", "attn.proj"),
    (r"mlp\.router", "mlp.gate.gate"),
    (r"mlp\.expand\.weight_SOI", "mlp.experts.htoh4.weight"),
    (r"mlp\.expand\.bias_SO", "mlp.experts.htoh4.bias"),
    (r"mlp\.contract\.weight_SOI", "mlp.experts.h4toh.weight"),
    (r"mlp\.contract\.bias_SO", "mlp.experts.h4toh.bias"),
    (r"(\d)\.expand", r"\1.mlp.network.0"),
    (r"(\d)\.contract", r"\1.mlp.network.3"),
]
INTERPRETCC_NAMES = [
    (r"^scores\.", "modality_gates."),
    (r"^fuse\.", "fusion_layer.0."),
    (r"^expand\.", "classifier.0."),
    (r"^head\.", "classifier.2."),
]
DIMENSIONS = {
    "modalities": {"lab": 20, "note": 33},
    "hidden_dim": 16,
    "num_layers_fus": 2,
    "num_heads": 2,
    "num_classes": 2,
    "hidden_dim_rw": 8,
    "num_layer_rw": 2,
}


@pytest.mark.parametrize(
    ("fusion", "options", "encoder", "config"),
    [
        (
            "switchgate",
            {"num_experts": 4, "residual": "released"},
            {"kind": "patch", "raw": True},
            {"num_patches": 4, "num_experts": 4},
        ),
        (
            "interpretcc",
            {"tau": 0.7, "threshold": 0.6},
            {"kind": "mlp", "raw": True, "num_layers": 2, "hidden": 16},
            {"num_patches": 1, "tau": 0.7, "threshold": 0.6},
        ),
    ],
)
def test_the_other_backbones_are_read_by_their_released_names(
    tmp_path: Path, fusion: str, options: dict[str, Any], encoder: dict[str, Any], config: dict[str, Any]
) -> None:
    """A checkpoint in the released layout rebuilds the model whose weights it holds, options from config.json included."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DIMENSIONS | config | {"fusion": fusion}))
    read = load_released_config(path)
    torch.manual_seed(0)
    model_config = ModelConfig(
        fusion=fusion,
        fusion_options=options,
        hidden_dim=16,
        num_patches=config["num_patches"],
        num_layers=2,
        num_heads=2,
        dropout=0.0,
        missing="reject",
        reweighting=ReweightingConfig(hidden_dim=8, num_layers=2),
        encoders={"default": encoder},
    )
    task = TaskInfo(kind="binary", labels=("a", "b"), outcome="b")
    model = build_model(model_config, released_schema(read), task).eval()
    checkpoint = tmp_path / "x.pth"
    torch.save(as_released(model, fusion), checkpoint)
    again = load_released(checkpoint, read)
    inputs = [torch.randn(5, 20), torch.randn(5, 33)]
    torch.testing.assert_close(again(inputs).logits_BC, model(inputs).logits_BC)


def test_switchgate_asks_for_its_number_of_experts(tmp_path: Path) -> None:
    """What the checkpoint does not record is asked for by name."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DIMENSIONS | {"fusion": "switchgate", "num_patches": 4}))
    with pytest.raises(ExportError, match="num_experts: is required for switchgate"):
        load_released_config(path)
