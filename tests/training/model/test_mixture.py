import numpy as np
import pytest
import torch
from torch import nn

from service.bundle.manifest import ExpertInfo, TaskInfo
from tests.training import small_model
from training.model.calibration import Calibration
from training.model.fusion import TransformerFusion
from training.model.masking import perturb, zero_vector
from training.model.mixture import I2MoE
from training.model.reweighting import Reweighting
from training.objectives.config import ObjectiveConfig
from training.objectives.paper import PaperObjective
from training.tasks import make_task

# d, layers, patches, modalities, classes, reweighting hidden and layers -> parameters of experts and reweighting (Table 6).
TABLE_6 = {
    "ADNI": ((256, 2, 16, 4, 3, 256, 2), 6_696_728),
    "MIMIC": ((128, 2, 8, 3, 2, 128, 2), 1_390_095),
    "IMDB": ((256, 2, 16, 2, 23, 256, 2), 4_423_008),
    "MOSI": ((128, 1, 4, 3, 2, 1, 1), 673_935),
    "ENRICO": ((256, 1, 4, 2, 20, 256, 3), 2_352_724),
}


@pytest.mark.parametrize(("dims", "wanted"), TABLE_6.values(), ids=TABLE_6)
def test_parameter_counts_are_those_of_the_papers_table_6(dims: tuple[int, ...], wanted: int) -> None:
    """Experts and reweighting, without encoders, have exactly the published number of parameters."""
    d, layers, patches, n, classes, hidden, depth = dims
    expert = TransformerFusion(
        config=TransformerFusion.Config(),
        num_modalities=n,
        num_patches=patches,
        hidden_dim=d,
        num_layers=layers,
        num_heads=1,
        num_outputs=classes,
        dropout=0.0,
    )
    model = I2MoE(
        encoders=[nn.Identity()] * n,
        expert=expert,
        roles=[ExpertInfo(name=str(i), kind="synergy") for i in range(n + 2)],
        reweighting=Reweighting(in_dim=n * d, hidden_dim=hidden, num_layers=depth, num_experts=n + 2),
        calibration=Calibration(classes, "multiclass"),
    )
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_logits_are_the_weighted_sum_of_expert_logits() -> None:
    """Identity of every pass: sum over experts of weight x expert logit = logits; weights are positive and sum to 1."""
    output = small_model.model()(small_model.rows(32, missing_rate=0.3))
    mixed = torch.einsum("be,bec->bc", output.expert_weights_BE, output.expert_logits_BEC)
    torch.testing.assert_close(mixed, output.logits_BC, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.expert_weights_BE.sum(dim=1), torch.ones(32))
    torch.testing.assert_close(output.prediction_BC.sum(dim=1), torch.ones(32))
    assert (output.expert_weights_BE > 0).all()
    assert output.expert_logits_BEC.shape == (32, 5, 2)


def test_evaluation_is_deterministic() -> None:
    """The served pass draws nothing: two calls answer bit for bit alike, whatever the random state."""
    model, inputs = small_model.model({"dropout": 0.5}), small_model.rows(8)
    torch.manual_seed(1)
    first = model(inputs)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, model(inputs), strict=True))
    model.train()
    assert not torch.equal(model(inputs).logits_BC, model(inputs).logits_BC)


def test_an_answer_does_not_depend_on_its_batch() -> None:
    """A row alone and the same row among others get the same answer."""
    model, inputs = small_model.model(), small_model.rows(20, missing_rate=0.4)
    together = model(inputs)
    for row in (0, 7, 19):
        alone = model([x[row : row + 1] for x in inputs])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[row], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["feature", "patch"])
def test_answers_are_finite_whatever_is_missing(kind: str) -> None:
    """Every pattern of missing features and modalities, all of them included, gives finite answers and gradients."""
    model = small_model.model({"encoders": {"default": {"kind": kind}}})
    widths = (5, 3, 3)
    patterns = np.array(list(np.ndindex(*(2,) * sum(widths))), bool)
    inputs = [x.repeat(len(patterns), 1)[: len(patterns)] for x in small_model.rows(1)]
    hidden = torch.from_numpy(patterns).split(widths, dim=1)
    inputs = [torch.where(h, torch.nan, x) for h, x in zip(hidden, inputs, strict=True)]
    output = model(inputs)
    assert all(torch.isfinite(t).all() for t in output)
    output.logits_BC.square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_missing_modality_is_its_learned_token() -> None:
    """Changing the token changes the answers of rows without the modality and of no others."""
    model, inputs = small_model.model(), small_model.rows(6)
    inputs[1][:3] = torch.nan
    before = model(inputs).logits_BC.detach()
    with torch.no_grad():
        model.encoders[1].missing_token.add_(1.0)  # type: ignore[operator, union-attr]
    after = model(inputs).logits_BC.detach()
    assert (before[:3] != after[:3]).all()
    assert torch.equal(before[3:], after[3:])


def test_a_model_that_rejects_has_no_token() -> None:
    """missing = reject makes no missing tokens; the schema refuses such records before they come here."""
    assert not any("missing_token" in name for name in small_model.model(missing="reject").state_dict())
    assert sum("missing_token" in name for name in small_model.model().state_dict()) == 3


def test_experts_start_equal_and_become_different() -> None:
    """Every expert is a copy of one initialisation; one step of the paper's objective tells all of them apart."""
    model = small_model.model({"dropout": 0.0})
    states = [expert.state_dict() for expert in model.experts]
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in state)
    assert len({p.data_ptr() for expert in model.experts for p in expert.parameters()}) == 5 * len(states[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(0)
    PaperObjective(ObjectiveConfig(interaction_weight=1.0), make_task(small_model.TASK), small_model.schema().names)(
        model, small_model.rows(16), torch.arange(16) % 2
    ).total.backward()
    optimizer.step()
    heads = [expert.head.weight for expert in model.experts]  # type: ignore[union-attr]
    assert not any(torch.equal(heads[i], heads[j]) for i in range(5) for j in range(i))


def test_perturbed_passes_in_one_call_equal_one_call_each() -> None:
    """Batching the variants changes no number: expert e on variant v is expert e called on variant v."""
    model, inputs = small_model.model(), small_model.rows(9)
    with torch.no_grad():
        for expert in model.experts:
            for p in expert.parameters():
                p.add_(0.1 * torch.randn_like(p))
    tokens = model.embed(inputs)
    batched = model.run_perturbed(tokens, zero_vector, range(3)).logits
    assert batched.shape == (5, 4, 9, 2)
    for e, expert in enumerate(model.experts):
        for v, variant in enumerate(perturb(tokens, zero_vector, range(3)).all().unflatten(0, (-1, len(tokens)))):
            torch.testing.assert_close(batched[e, v], expert(variant).logits_BC, atol=1e-6, rtol=0)
    torch.testing.assert_close(batched[:, 0], model.run_experts(tokens).logits, atol=1e-6, rtol=0)


def test_each_expert_draws_its_own_noise() -> None:
    """Equal experts see different random vectors, so their perturbed outputs differ and their clean ones do not."""
    model = small_model.model()
    logits_EVBC = model.run_perturbed(model.embed(small_model.rows(4)), torch.randn_like, range(3)).logits
    torch.testing.assert_close(logits_EVBC[0, 0], logits_EVBC[1, 0])
    assert not torch.allclose(logits_EVBC[0, 1], logits_EVBC[1, 1])


@pytest.mark.parametrize(
    ("kind", "labels", "mean"),
    [("multiclass", ("a", "b", "c"), None), ("multilabel", ("a", "b", "c"), None), ("regression", ("y",), 0.5)],
)  # fmt: skip
def test_every_task_has_its_link(kind: str, labels: tuple[str, ...], mean: float | None) -> None:
    """Multiclass: softmax. Multilabel: sigmoid. Regression: the logit itself."""
    task = TaskInfo(kind=kind, labels=labels, outcome="o", training_mean=mean)  # type: ignore[arg-type]
    output = small_model.model(task=task)(small_model.rows(4))
    link = {"multiclass": lambda x: x.softmax(-1), "multilabel": torch.sigmoid, "regression": lambda x: x}[kind]
    torch.testing.assert_close(output.prediction_BC, link(output.logits_BC))
    assert output.logits_BC.shape == (4, len(labels))
