from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.bundle.features import ArrayFeature
from service.bundle.manifest import ExpertInfo, TaskInfo
from service.bundle.schema import FeatureSchema, Modality
from tests.training import small_model
from training.attribution.base import AttributionOutput
from training.attribution.gradients import IntegratedGradients, lobatto
from training.attribution.shapley import SampledShapley
from training.config import Config
from training.model.build import ModelConfig, build_model, fit_encoders
from training.model.calibration import Calibration
from training.model.encoders import Encoder
from training.model.fusion import FUSIONS
from training.model.fusion.base import FusionOutput
from training.model.mixture import I2MoE
from training.model.modality import ModalityEncoder
from training.model.reweighting import SimpleWeights

JUMPING = {name for name, fusion in FUSIONS.items() if fusion.jumps}
ROLES = (ExpertInfo(name="synergy", kind="synergy"), ExpertInfo(name="redundancy", kind="redundancy"))


@pytest.mark.parametrize("num_points", [2, 3, 5, 16])
def test_the_rule_is_exact_for_polynomials(num_points: int) -> None:
    """Up to degree 2 K - 3, with both ends among the nodes."""
    nodes, weights = lobatto(num_points)
    assert (nodes[0], nodes[-1]) == (0, 1)
    for degree in range(2 * num_points - 2):
        assert float((weights.double() * nodes.double() ** degree).sum()) == pytest.approx(1 / (degree + 1), abs=1e-6)


class Plain(Encoder):
    """Columns as one token; knows nothing of attribution."""

    Config = Config

    def forward(self, x_BF: Tensor) -> Tensor:
        return torch.nan_to_num(x_BF)[:, None]


class Polynomial(nn.Module):
    """Logits (0, w_0 a + w_1 b + w_2 a c) of a first modality (a, b) and a second (c, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        (a, b), (c, _) = (tokens_BnPD[:, m, 0].unbind(dim=1) for m in range(2))
        y = self.w[0] * a + self.w[1] * b + self.w[2] * a * c
        return FusionOutput(torch.stack([torch.zeros_like(y), y], dim=1), y[:, None], y.new_zeros(()))


def polynomial_model(kind: Any = "binary") -> I2MoE:
    """Two polynomial experts with weights of one half; the second has other coefficients."""
    model = I2MoE(
        encoders=[ModalityEncoder(Plain(), 1, 2, has_missing_token=True) for _ in range(2)],
        expert=Polynomial(),
        roles=ROLES,
        reweighting=SimpleWeights(2),
        calibration=Calibration(2, kind),
    )
    with torch.no_grad():
        model.experts[1].w.copy_(torch.tensor([0.0, 4.0, -1.0]))  # type: ignore[operator, union-attr]
    return model.eval()


def test_products_are_shared_in_equal_parts() -> None:
    """By hand, from 0: of w a c each factor gets half, of w a all goes to a; a column nobody reads gets 0."""
    x, z, towards = torch.tensor([[2.0, 5.0]]), torch.tensor([[4.0, 7.0]]), torch.tensor([[0.0, 1.0]])
    found = IntegratedGradients(polynomial_model(), small_model.TASK, num_points=2)(x, z, towards)
    product = 3 * 2 * 4 / 2
    np.testing.assert_allclose(found.columns[0][0], 0.5 * np.array([[2 + product, -10], [-4, 20]]), atol=1e-5)
    np.testing.assert_allclose(found.columns[1][0], 0.5 * np.array([[product, 0], [-4, 0]]), atol=1e-5)
    np.testing.assert_allclose(found.contribution_BE[0], [0.5 * (2 - 10 + 24), 0.5 * (20 - 8)], atol=1e-5)
    np.testing.assert_allclose(found.gap_BE, 0, atol=1e-5)
    np.testing.assert_allclose(found.base_BE, 0, atol=1e-5)


def test_the_other_label_turns_every_sign() -> None:
    """Binary tasks: what speaks for one label speaks against the other."""
    rows = [torch.randn(3, 2), torch.randn(3, 2)]
    module = IntegratedGradients(polynomial_model(), small_model.TASK, num_points=3)
    dead, alive = (module(*rows, torch.eye(2)[[label] * 3]) for label in (1, 0))
    for first, second in zip(dead.columns, alive.columns, strict=True):
        np.testing.assert_allclose(first, -second, atol=1e-6)


def test_a_missing_value_and_a_missing_modality_get_nothing() -> None:
    """NaN on the whole path: attribution 0, and the other columns' attributions are finite."""
    x, z = torch.tensor([[2.0, torch.nan], [torch.nan, torch.nan]]), torch.tensor([[4.0, 7.0], [4.0, 7.0]])
    found = IntegratedGradients(polynomial_model(), small_model.TASK, num_points=4)(x, z, torch.eye(2)[[1, 1]])
    assert (found.columns[0][torch.isnan(x)[:, None].expand(-1, 2, -1)] == 0).all()
    assert all(torch.isfinite(part).all() for part in found.columns)
    assert found.columns[0][0, 0, 0] != 0


def attribute(model: I2MoE, rows: list[Tensor], *, task: TaskInfo = small_model.TASK, num_points: int = 16) -> Any:
    label = torch.eye(len(task.labels))[torch.arange(len(rows[0])) % len(task.labels)]
    return IntegratedGradients(model, task, num_points=num_points)(*rows, label)


def check(model: I2MoE, rows: list[Tensor], limit: float, *, task: TaskInfo = small_model.TASK, num_points: int = 16) -> None:
    """By gradients the gap is real and within its limit."""
    found = attribute(model, rows, task=task, num_points=num_points)
    adds_up(found, model, rows, task)
    change = (found.contribution_BE - found.base_BE).abs().mean()
    assert 0 < found.gap_BE.abs().mean() <= limit * change


def adds_up(found: AttributionOutput, model: I2MoE, rows: list[Tensor], task: TaskInfo) -> None:
    """Contributions are the model's own, what is missing gets 0, and all the rest adds up."""
    output = model(rows)
    own_BEC = output.expert_weights_BE[..., None] * output.expert_logits_BEC
    if task.kind in {"binary", "multiclass"}:
        own_BEC = own_BEC - (own_BEC.sum(dim=2, keepdim=True) - own_BEC) / (own_BEC.shape[2] - 1)
    chosen = torch.arange(len(rows[0])) % len(task.labels)
    own_BE = own_BEC[torch.arange(len(rows[0])), :, chosen]
    if task.kind == "regression":
        own_BE = own_BE - output.expert_weights_BE * task.training_mean
    np.testing.assert_allclose(found.contribution_BE, own_BE.detach(), atol=2e-6)
    for part, x_BF in zip(found.columns, rows, strict=True):
        assert (part.transpose(1, 2)[torch.isnan(x_BF)] == 0).all()
    sums_BE = torch.stack([part.sum(dim=2) for part in found.columns]).sum(dim=0)
    np.testing.assert_allclose(found.base_BE + sums_BE + found.gap_BE, found.contribution_BE, atol=1e-5)


@pytest.mark.parametrize("kind", ["feature", "mlp", "patch", "maxout"])
@pytest.mark.parametrize("fusion", ["early", "late", "low_rank_tensor", "mult", "transformer"])
def test_attributions_add_up(fusion: str, kind: str) -> None:
    """Every backbone without a router with every tabular encoder: 64 points leave less than 10 % of the change untold."""
    encoder = {"kind": kind} if kind != "feature" else small_model.TINY["encoders"]["default"]
    model = small_model.model({"fusion": fusion, "encoders": {"default": encoder}})
    check(model, small_model.rows(8, missing_rate=0.3, seed=3), 0.1, num_points=64)


@pytest.mark.parametrize("fusion", sorted(JUMPING))
def test_what_jumps_is_told_as_a_gap(fusion: str) -> None:
    """Backbones with a hard router: no sum of gradients sees a jump, and with the gap the sums hold."""
    check(small_model.model({"fusion": fusion}), small_model.rows(32, missing_rate=0.3, seed=3), 1.0)


def array_model(kind: str) -> tuple[I2MoE, FeatureSchema, list[Tensor]]:
    """A model of an array and labs, and six rows: missing cells, and an array that is missing as a whole."""
    shape = {"gru": (5, 4), "cnn2d": (1, 8, 8), "cnn3d": (6, 6, 6)}[kind]
    first = Modality(name="array", features=(ArrayFeature(name="array", shape=shape),))
    schema = FeatureSchema(modalities=(first, small_model.schema().modalities[1]))
    torch.manual_seed(0)
    config = ModelConfig.model_validate(small_model.TINY | {"encoders": {"array": {"kind": kind}}})
    model = build_model(config, schema, small_model.TASK)
    array, labs = torch.randn(32, first.width), small_model.rows(32, missing_rate=0.3)[1]
    array[:6, -5:], array[0] = torch.nan, torch.nan
    fit_encoders(model, [array, labs])
    return model.eval(), schema, [array[:6], labs[:6]]


@pytest.mark.parametrize("kind", ["gru", "cnn2d", "cnn3d"])
def test_encoders_of_arrays_attribute_to_cells(kind: str) -> None:
    """Sequences, images and volumes."""
    model, _, rows = array_model(kind)
    check(model, rows, 0.1, num_points=48)


def shapley(model: I2MoE, rows: list[Tensor], schema: FeatureSchema | None = None, task: TaskInfo = small_model.TASK) -> Any:
    label = torch.eye(len(task.labels))[torch.arange(len(rows[0])) % len(task.labels)]
    return SampledShapley(model, small_model.schema() if schema is None else schema, task)(*rows, label)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_sampled_shapley_values_leave_nothing_untold(fusion: str) -> None:
    """Every backbone, routers or not: the gap is rounding; codes that a record has not get nothing."""
    model, rows = small_model.model({"fusion": fusion}), small_model.rows(8, missing_rate=0.3, seed=3)
    found = shapley(model, rows)
    adds_up(found, model, rows, small_model.TASK)
    assert found.gap_BE.abs().max() <= 1e-5
    assert (found.columns[0].transpose(1, 2)[:, 3:][rows[0][:, 3:] == 0] == 0).all()
    assert all(part.abs().sum() > 0 for part in found.columns)


@pytest.mark.parametrize("kind", ["gru", "cnn2d", "cnn3d"])
def test_an_array_is_one_feature(kind: str) -> None:
    """All its cells become known at once and share alike."""
    model, schema, rows = array_model(kind)
    found = shapley(model, rows, schema)
    adds_up(found, model, rows, small_model.TASK)
    assert found.gap_BE.abs().max() <= 1e-5
    first = found.columns[0][1, 0][~torch.isnan(rows[0][1])]
    assert first[0] != 0
    assert (first == first[0]).all()


def test_shapley_values_of_a_product() -> None:
    """By hand: each factor of w a c gets half, as an order and its reverse together have either first."""
    features = {m: tuple(small_model.number(f"{m}{i}") for i in range(2)) for m in "xz"}
    schema = FeatureSchema(modalities=tuple(Modality(name=name, features=own) for name, own in features.items()))
    x, z, towards = torch.tensor([[2.0, 5.0]]), torch.tensor([[4.0, 7.0]]), torch.tensor([[0.0, 1.0]])
    found = SampledShapley(polynomial_model(), schema, small_model.TASK)(x, z, towards)
    product = 3 * 2 * 4 / 2
    np.testing.assert_allclose(found.columns[0][0], 0.5 * np.array([[2 + product, -10], [-4, 20]]), atol=1e-5)
    np.testing.assert_allclose(found.columns[1][0], 0.5 * np.array([[product, 0], [-4, 0]]), atol=1e-5)


@pytest.mark.parametrize("num_orders", [0, 1, 3])
def test_orders_come_with_their_reverses(num_orders: int) -> None:
    """An even number."""
    with pytest.raises(ValueError, match=f"expected an even number of orders, 2 or more, found {num_orders}"):
        SampledShapley(small_model.model(), small_model.schema(), small_model.TASK, num_orders=num_orders)


@pytest.mark.parametrize(
    "task",
    [
        TaskInfo(kind="multiclass", labels=("a", "b", "c"), outcome="x"),
        TaskInfo(kind="multilabel", labels=("a", "b", "c"), outcome="x"),
        TaskInfo(kind="regression", labels=("y",), outcome="x", training_mean=1.5),
    ],
    ids=lambda task: task.kind,
)
def test_every_task_has_its_own_contribution(task: TaskInfo) -> None:
    """The formulas of the service's explanation, also where experts answer in the target's unit."""
    model = small_model.model(task=task)
    if model.units is not None:
        model.units.fit(torch.tensor([1.0, 5.0, -3.0]))
    rows = small_model.rows(6, missing_rate=0.2)
    check(model, rows, 0.01, task=task)
    adds_up(shapley(model, rows, task=task), model, rows, task)


def test_a_row_is_attributed_as_if_it_were_alone() -> None:
    """A batch equals its rows one by one, up to rounding."""
    model, rows = small_model.model(), small_model.rows(4, missing_rate=0.3)
    label = torch.eye(2)[[0, 1, 0, 1]]
    module = IntegratedGradients(model, small_model.TASK, num_points=8)
    whole = module(*rows, label)
    for i in range(4):
        alone = module(*(x[i : i + 1] for x in rows), label[i : i + 1])
        for part, single in zip((*whole.columns, *whole[1:]), (*alone.columns, *alone[1:]), strict=True):
            np.testing.assert_allclose(part[i : i + 1], single, atol=1e-6)


@pytest.mark.parametrize("kind", ["feature", "mlp", "patch", "maxout"])
def test_a_path_begins_at_nothing_and_ends_at_the_record(kind: str) -> None:
    """All known: the encoder's own tokens. Nothing known: numbers and categories as if missing, no code."""
    encoder = {"kind": kind} if kind != "feature" else small_model.TINY["encoders"]["default"]
    model, x = small_model.model({"encoders": {"default": encoder}}), small_model.rows(5)[0]
    first = model.encoders[0]
    assert isinstance(first, ModalityEncoder)
    np.testing.assert_allclose(first.encode_partly(x, torch.ones_like(x)).detach(), first(x).detach(), atol=1e-6)
    nothing = torch.full_like(x, torch.nan)
    nothing[:, 3:] = 0  # the codes
    np.testing.assert_allclose(first.encode_partly(x, torch.zeros_like(x)).detach(), first(nothing).detach(), atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    """No gradient stays in a parameter, and the model answers as before."""
    model, rows = small_model.model(), small_model.rows(3)
    before = model(rows).logits_BC.detach()
    attribute(model, rows)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(rows).logits_BC, before)
