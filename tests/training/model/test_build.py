import pytest
import torch

from tests.training import small_model
from training.errors import RecipeError
from training.model.build import ModelConfig, build_model, expert_roles


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"hidden_dim": 10, "num_heads": 4}, "model.hidden_dim must be a multiple of num_heads, found 10 and 4"),
     ({"fusion": "mamba"}, r"model.fusion: expected one of .*transformer.*, found 'mamba'"),
     ({"encoders": {"lab": {}}}, r"model.encoders: \['lab'\] are not modalities; expected default, mixed, labs, signal"),
     ({"encoders": {"labs": {"kind": "cnn"}}}, r"model.encoders.labs.kind: expected one of .*patch.*, found 'cnn'"),
     ({"encoders": {"labs": {"kind": ["patch"]}}}, r"model.encoders.labs.kind: expected one of .*, found \['patch'\]"),
     ({"encoders": {"default": {"kind": "patch", "width": 3}}}, "model.encoders.mixed.width: Extra inputs are not permitted"),
     ({"encoders": {"default": {"num_bins": "many"}}}, "model.encoders.mixed.num_bins: Input should be a valid integer"),
     ({"encoders": {"default": {"num_bins": 1}}}, "model.encoders.mixed.num_bins: Input should be greater than or equal to 2")],
)  # fmt: skip
def test_a_model_that_cannot_be_built_is_told(changes: dict[str, object], told: str) -> None:
    """Heads, unknown modalities, encoder kinds and options: one line with the key."""
    with pytest.raises(RecipeError, match=told) as error:
        build_model(ModelConfig.model_validate(small_model.TINY | changes), small_model.schema(), small_model.TASK)
    assert "\n" not in str(error.value)


def test_a_modalitys_own_encoder_goes_before_the_default() -> None:
    """[model.encoders.labs] is for labs, [model.encoders.default] for the others."""
    encoders = {"default": {"kind": "patch"}, "labs": {"kind": "feature", "embedding_dim": 3}}
    model = small_model.model({"encoders": encoders})
    kinds = [type(encoder.encoder).__name__ for encoder in model.encoders]  # type: ignore[union-attr]
    assert kinds == ["PatchEncoder", "FeatureEncoder", "PatchEncoder"]


def test_experts_are_named_in_the_order_of_the_model() -> None:
    """unique:<modality> in schema order, then synergy, then redundancy."""
    infos = expert_roles(small_model.schema())
    assert [e.name for e in infos] == ["unique:mixed", "unique:labs", "unique:signal", "synergy", "redundancy"]
    assert [e.modality for e in infos] == ["mixed", "labs", "signal", None, None]


def test_the_same_seed_builds_the_same_model() -> None:
    """Initial weights depend on torch's seed and on nothing else."""
    first, again, other = (small_model.model(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
