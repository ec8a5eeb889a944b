import copy

import pytest
import torch
from pydantic import ValidationError

from tests.training.model.fusion_cases import NUM_OUTPUTS, assert_every_parameter_learns, fusion, tokens
from training.model.fusion.base import FUSIONS
from training.model.fusion.early import EarlyFusion
from training.model.fusion.interpretcc import InterpretCCFusion
from training.model.fusion.late import LateFusion
from training.model.fusion.low_rank_tensor import LowRankTensorFusion
from training.model.fusion.moepp import MoEPlusPlusFusion
from training.model.fusion.mult import MulTFusion
from training.model.fusion.switchgate import SwitchGateFusion

CLASSES = {
    "switchgate": SwitchGateFusion,
    "interpretcc": InterpretCCFusion,
    "moepp": MoEPlusPlusFusion,
    "mult": MulTFusion,
    "early": EarlyFusion,
    "late": LateFusion,
    "low_rank_tensor": LowRankTensorFusion,
}
NAMES = tuple(CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_registered(name: str) -> None:
    """Every backbone goes by its name."""
    assert FUSIONS[name] is CLASSES[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_modalities", [2, 3, 4, 5, 6])
def test_shapes(name: str, num_modalities: int) -> None:
    """Every backbone takes two to six modalities and answers finite logits and a scalar gate loss."""
    model = fusion(name, num_modalities)
    for training in (True, False):
        output = model.train(training)(tokens(num_modalities, 5))
        assert output.logits_BC.shape == (5, NUM_OUTPUTS)
        assert output.gate_loss.shape == ()
        assert output.logits_BC.isfinite().all()
        assert output.gate_loss.isfinite()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_modalities", [2, 3, 4, 5, 6])
def test_every_parameter_learns(name: str, num_modalities: int) -> None:
    """A training step reaches every weight: experts, routers, gates, norms, positions, every ordered pair."""
    assert_every_parameter_learns(fusion(name, num_modalities))


@pytest.mark.parametrize("name", NAMES)
def test_learns_by_heart(name: str) -> None:
    """Trained on eight rows with arbitrary labels, a backbone knows all of them in evaluation mode."""
    model, x = fusion(name, 3, dropout=0.0, hidden_dim=32), tokens(3, 8, hidden_dim=32)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        output = model(x)
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(output.logits_BC, labels) + 0.01 * output.gate_loss).backward()
        optimizer.step()
    assert torch.equal(labels, model.eval()(x).logits_BC.argmax(dim=1))


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_independent(name: str) -> None:
    """A deep copy computes the same and shares no weight, as the mixture needs of its experts."""
    model = fusion(name, 2).eval()
    twin = copy.deepcopy(model)
    assert torch.equal(model(tokens(2, 4)).logits_BC, twin(tokens(2, 4)).logits_BC)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_one_patch_one_layer_one_output(name: str) -> None:
    """The smallest sizes work: one token per modality, one layer, one output, one head."""
    model = fusion(name, 2, num_layers=1, num_heads=1, num_outputs=1, num_patches=1).eval()
    assert model(tokens(2, 4)[:, :, :1]).logits_BC.shape == (4, 1)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_closed_and_frozen(name: str) -> None:
    """An unknown option is an error, and options do not change after they are read."""
    with pytest.raises(ValidationError, match="colour"):
        FUSIONS[name].Config(colour="red")
    config = FUSIONS[name].Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.colour = "red"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("switchgate", {"num_experts": 1}),
        ("switchgate", {"jitter": -0.1}),
        ("switchgate", {"residual": "none"}),
        ("interpretcc", {"tau": 0.0}),
        ("interpretcc", {"threshold": 1.0}),
        ("moepp", {"num_experts": 3}),
        ("moepp", {"tau": 0.0}),
        ("moepp", {"compat": "nominal"}),
        ("mult", {"num_self_layers": 0}),
        ("early", {"hidden": [32, 0]}),
        ("late", {"hidden": [-1]}),
        ("low_rank_tensor", {"rank": 0}),
        ("low_rank_tensor", {"tensor_dim": 0}),
        ("low_rank_tensor", {"head_dim": 0}),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object]) -> None:
    """An option out of its range is an error that names it."""
    with pytest.raises(ValidationError, match=next(iter(options))):
        FUSIONS[name].Config(**options)


def test_one_modality_is_refused() -> None:
    """Fusing a single modality is an error that says how many were found."""
    with pytest.raises(ValueError, match="2 modalities or more, found 1"):
        fusion("mult", 1)


@pytest.mark.parametrize("name", ["switchgate", "moepp", "mult"])
def test_heads_must_divide_the_width(name: str) -> None:
    """A width that the heads cannot share is an error with both numbers."""
    with pytest.raises(ValueError, match="found 8 and 3"):
        fusion(name, 2, num_heads=3)
