import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.__main__ import main
from export.errors import ExportError
from export.released import load_released
from export.released_config import load_released_config
from export.released_encoders import ReleasedEncoder, read_encoder
from service.bundle.manifest import TaskKind
from service.bundle.predictor import Predictor
from service.bundle.schema import ArrayFeature, Modality
from service.bundle.store import open_bundle
from tests.export.released_files import HIDDEN_DIM, save, small_model
from tests.export.released_forward import Restated, patched, unpatched
from training.model.encoders import ENCODERS, Encoder
from training.model.mixture import I2MoE

NUM_PATCHES = 4


def rebuilt(read: ReleasedEncoder, num_patches: int) -> Encoder:
    """Our encoder with the weights that were read, every one of them and no other."""
    options = dict(read.options)
    encoder_class = ENCODERS[options.pop("kind")]
    modality = Modality(name="x", features=(ArrayFeature(name="x", shape=read.sizes),))
    config = encoder_class.Config.model_validate_json(json.dumps(options), strict=True)
    encoder = encoder_class(modality, num_patches=num_patches, hidden_dim=HIDDEN_DIM, config=config).eval()
    missing, unexpected = encoder.load_state_dict(read.weights, strict=False)
    assert unexpected == []
    assert all("standardise" in name for name in missing)  # statistics that a released checkpoint has not
    return encoder


def assert_same_tokens(released: Restated, num_patches: int) -> None:
    """(B, P, D) as the formulas make them, NaN read as 0."""
    given = None if released.told is None else tuple(np.atleast_1d(released.told).tolist())
    read = read_encoder("x", released.state, given, num_patches=num_patches, hidden_dim=HIDDEN_DIM)
    assert read.options["kind"] == released.kind
    assert read.sizes == released.sizes
    x = torch.randn(3, *released.sizes)
    x[0, -1:] = 0  # the end of a sequence, padded
    with torch.no_grad():
        found, expected = rebuilt(read, num_patches)(x.flatten(1)), released.tokens(x)
    assert found.shape == (3, num_patches, HIDDEN_DIM)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "gru", "cnn3d", "maxout", "cnn2d"])
def test_encoders_with_patches_answer_as_the_formulas(kind: str) -> None:
    """Weights under their released names, read by our encoder, make the tokens that the released formulas make."""
    torch.manual_seed(0)
    assert_same_tokens(patched(kind, NUM_PATCHES, HIDDEN_DIM), NUM_PATCHES)


@pytest.mark.parametrize("kind", ["mlp", "gru", "cnn3d", "maxout", "cnn2d"])
def test_encoders_of_one_token_answer_as_the_formulas(kind: str) -> None:
    """InterpretCC runs: a vector without a projection is the token; `hid2val` and `1.fc` are projections."""
    torch.manual_seed(0)
    assert_same_tokens(unpatched(kind, HIDDEN_DIM), 1)


def test_padding_is_read_on_through() -> None:
    """The released GRU takes the state after the last step, however many steps of zeros, or of NaN, come before it."""
    torch.manual_seed(0)
    released = patched("gru", NUM_PATCHES, HIDDEN_DIM)
    read = read_encoder("x", released.state, (6, 5), num_patches=NUM_PATCHES, hidden_dim=HIDDEN_DIM)
    zeros, holes = torch.randn(2, 6, 5), torch.zeros(2, 6, 5)
    zeros[:, 3:] = 0
    holes.copy_(zeros)[:, 3:] = torch.nan
    with torch.no_grad():
        encoder, expected = rebuilt(read, NUM_PATCHES), released.tokens(zeros)
        torch.testing.assert_close(encoder(zeros.flatten(1)), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(encoder(holes.flatten(1)), expected, rtol=0, atol=1e-6)


def refusal(state: dict[str, Tensor], given: Any, num_patches: int = NUM_PATCHES) -> str:
    """The one line with which weights and sizes are refused."""
    with pytest.raises(ExportError) as error:
        read_encoder("signal", state, given, num_patches=num_patches, hidden_dim=HIDDEN_DIM)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [("gru", None, "expected [steps, 5] under modalities of config.json (steps: weights do not tell), found null"),
     ("gru", (5,), "expected [steps, 5] under modalities of config.json (steps: weights do not tell), found 5"),
     ("gru", (50, 6), "expected [steps, 5] under modalities of config.json (steps: weights do not tell), found [50, 6]"),
     ("cnn3d", None, "expected [x, y, z] under modalities of config.json (x, y, z: weights do not tell), found null"),
     ("cnn3d", (24, 24, 71), "expected a volume of which 4 cells are left after pooling, found 2 of [24, 24, 71]"),
     ("cnn2d", None, "expected [3, height, width] under modalities of config.json (height, width: weights do not tell), "
      "found null"),
     ("cnn2d", (64, 32, 3), "expected [3, height, width] under modalities of config.json"),
     ("maxout", (8,), "expected 7 under modalities of config.json, found 8"),
     ("patch", None, "expected columns under modalities of config.json (columns: weights do not tell), found null"),
     ("patch", (13,), "expected 9 to 12 columns, that is 4 patches of 3, found 13")],
)  # fmt: skip
def test_what_weights_do_not_tell_is_asked_for(kind: str, given: Any, told: str) -> None:
    """Sizes that are absent or cannot be are told with those that fit."""
    line = refusal(patched(kind, NUM_PATCHES, HIDDEN_DIM).state, given)
    assert line.startswith(f"encoder signal: {told}")


def test_weights_that_are_no_encoder_are_told() -> None:
    """Unknown keys, absent ones, misshapen ones, and a projection that the experts need."""
    state = patched("gru", NUM_PATCHES, HIDDEN_DIM).state
    known = "expected the weights of a released patch embedding, MLP, GRU, 3D CNN, Maxout network, VGG11"
    assert refusal({}, None) == f"encoder signal: {known}, found no weights"
    assert refusal({"0.op9.weight": torch.zeros(1)}, None) == f"encoder signal: {known}, found 0.op9.weight"
    line = refusal(state | {"0.lstm.weight": torch.zeros(1)}, (6, 5))
    assert line == "encoder signal: key 0.lstm.weight is not one of a released GRU"
    partial = {key: tensor for key, tensor in state.items() if key != "0.gru.weight_hh_l0"}
    assert refusal(partial, (6, 5)).endswith("found none or a misshapen one at 'gru.weight_hh_l0'")
    assert "misshapen" in refusal(state | {"0.gru.weight_hh_l0": torch.zeros(3)}, (6, 5))
    line = refusal(unpatched("gru", HIDDEN_DIM).state, (6, 5))
    assert line == "encoder signal: expected 1.projection, since the experts read 4 tokens, found none"


def trunk(model: I2MoE, encoders: dict[str, Restated], arrays: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (B, E), expert logits (B, E, C) and logits (B, C) of a model's experts on the tokens of the formulas."""
    with torch.no_grad():
        tokens = torch.stack([encoders[name].tokens(x) for name, x in arrays.items()], dim=1)
        weights, logits = model.reweighting(tokens), model.run_experts(tokens).logits.transpose(0, 1)
    return weights, logits, (weights[:, :, None] * logits).sum(dim=1)


CASES: dict[str, tuple[dict[str, str], TaskKind, int]] = {  # encoders, task, number of classes
    "mosi_regression": ({"vision": "gru", "audio": "gru", "text": "gru"}, "regression", 1),
    "mmimdb": ({"language": "maxout", "img": "maxout"}, "multilabel", 23),
    "adni": ({"image": "cnn3d", "genomic": "patch"}, "multiclass", 3),
    "enrico": ({"screenshot": "cnn2d", "wireframe": "patch"}, "multiclass", 20),
}
LINKS = {"regression": lambda logits: logits, "multilabel": torch.sigmoid}


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_of_the_data_sets_are_exported(tmp_path: Path, case: str) -> None:
    """From a checkpoint and the least config.json to a bundle that answers raw arrays as experts on the formulas' tokens do."""
    kinds, task, num_classes = CASES[case]
    model = small_model("transformer", kinds, task, num_classes, num_patches=NUM_PATCHES, residual="released")
    encoders = {name: patched(kind, NUM_PATCHES, HIDDEN_DIM) for name, kind in kinds.items()}
    config = {"modalities": {k: v.told for k, v in encoders.items()}, "num_heads": 2, "temperature_rw": 1.5}
    (tmp_path / "config.json").write_text(json.dumps(config | ({"multilabel": True} if task == "multilabel" else {})))
    checkpoint = save(tmp_path / "x.pth", model, "transformer", {k: v.state for k, v in encoders.items()})
    out = tmp_path / "bundle"
    plain = ("--attribution-points", "0")  # a second graph takes long, and has tests of its own
    assert main(["released", str(checkpoint), "--config", str(tmp_path / "config.json"), "--out", str(out), *plain]) == 0

    bundle = open_bundle(out)
    assert bundle.manifest.task.kind == task
    assert [m.features[0].shape for m in bundle.manifest.features.modalities] == [e.sizes for e in encoders.values()]
    arrays = {name: torch.randn(2, *encoder.sizes) for name, encoder in encoders.items()}
    found = Predictor(bundle, provider="cpu").run({name: x.flatten(1).numpy() for name, x in arrays.items()})
    weights, expert_logits, logits = trunk(model, encoders, arrays)
    np.testing.assert_allclose(found.expert_weights, weights, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.expert_logits, expert_logits, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.logits, logits, atol=1e-5, rtol=0)
    link = LINKS.get(task, lambda scores: scores.softmax(dim=1))
    np.testing.assert_allclose(found.prediction, link(logits), atol=1e-5, rtol=0)


def test_interpretcc_checkpoints_have_one_token_per_modality(tmp_path: Path) -> None:
    """Without patches, as the released scripts train InterpretCC; neither heads nor patches are asked for."""
    kinds = {"image": "cnn3d", "vision": "gru", "language": "maxout", "lab": "mlp"}
    model = small_model("interpretcc", kinds, "binary", 2, num_patches=1, tau=0.7, threshold=0.6)
    encoders = {name: unpatched(kind, HIDDEN_DIM) for name, kind in kinds.items()}
    config = {
        "modalities": {k: v.told for k, v in encoders.items()},
        "temperature_rw": 1.5,
        "tau": 0.7,
        "threshold": 0.6,
        "hard": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = save(tmp_path / "x.pth", model, "interpretcc", {k: v.state for k, v in encoders.items()})
    released = load_released(checkpoint, load_released_config(tmp_path / "config.json"))
    arrays = {name: torch.randn(2, *encoder.sizes) for name, encoder in encoders.items()}
    weights, expert_logits, logits = trunk(model, encoders, arrays)
    with torch.no_grad():
        found = released.model([x.flatten(1) for x in arrays.values()])
    torch.testing.assert_close(found.expert_weights_BE, weights, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.expert_logits_BEC, expert_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits_BC, logits, rtol=0, atol=1e-5)
