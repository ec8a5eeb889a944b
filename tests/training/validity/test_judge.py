"""All checks on small untrained models: every kind of task, hidden either way, lazily read rows."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.bundle.manifest import TaskInfo
from service.bundle.schema import FeatureSchema, Modality
from service.bundle.validity import ExplanationValidity
from tests.training import small_model
from tests.training.small_data import recipe
from training.checkpoint import Checkpoint
from training.data.rows import LazyRows, RowArray
from training.evaluation import calibration_info
from training.inference import predict
from training.model.build import build_model, with_fresh_experts
from training.validity.coalitions import coalition_logits, stand_ins
from training.validity.judge import coalition_values, explained, judge
from training.validity.tokens import asking, embed_rows

NUM_ROWS = 40
TASKS = {
    "binary": TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death"),
    "multiclass": TaskInfo(kind="multiclass", labels=("a", "b", "c"), outcome="stage"),
    "multilabel": TaskInfo(kind="multilabel", labels=("a", "b", "c"), outcome="findings"),
    "regression": TaskInfo(kind="regression", labels=("days",), outcome="stay", training_mean=0.1),
}


def checkpoint(task: TaskInfo = TASKS["binary"], schema: FeatureSchema | None = None, **changes: Any) -> Checkpoint:
    """An untrained model whose experts differ."""
    schema = small_model.schema() if schema is None else schema
    wanted = recipe({"validity": {"num_randomised": 20, "num_bootstraps": 20}, "model.missing": schema.missing, **changes})
    torch.manual_seed(3)
    model = with_fresh_experts(build_model(wanted.model, schema, task), wanted.model).eval()
    return Checkpoint(model, wanted, schema, task, {"num_rows": {"validation": 9}})


def rows(schema: FeatureSchema) -> dict[str, RowArray]:
    generator = np.random.default_rng(0)
    found = dict(zip(small_model.schema().names, (x.numpy() for x in small_model.rows(NUM_ROWS)), strict=True))
    return {m.name: found.get(m.name, generator.normal(size=(NUM_ROWS, m.width)).astype(np.float32)) for m in schema.modalities}


def checked(of: Checkpoint, arrays: dict[str, RowArray] | None = None) -> ExplanationValidity | None:
    arrays = rows(of.schema) if arrays is None else arrays
    output = predict(of.model, of.schema, arrays)
    return judge(of, arrays, output, "test", calibration_info(of))


@pytest.mark.parametrize("missing", ["learned", "reject"])
@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_of_task_is_checked(kind: str, missing: Any) -> None:
    """All figures are there and finite, deletion and insertion lie between the worst and the best, twice the same."""
    of = checkpoint(TASKS[kind], small_model.schema(missing=missing))
    found = checked(of)
    assert found is not None
    assert (found.num_rows, found.notes) == (NUM_ROWS, ())
    assert found.hidden_by == ("learned token" if missing == "learned" else "other rows")
    assert found.deletion
    assert found.insertion
    assert found.shapley
    assert found.interactions
    assert found.randomised
    assert found.resampled
    assert found.deletion.random <= found.deletion.same_order <= found.deletion.best
    assert found.insertion.random >= found.insertion.same_order >= found.insertion.best
    assert found.deletion.aopc.value <= found.deletion.best
    assert found.deletion.curve[0] == pytest.approx(found.insertion.curve[-1])
    assert ExplanationValidity.model_validate_json(found.model_dump_json()) == found
    assert checked(of) == found


@pytest.mark.parametrize("kind", TASKS)
def test_showing_everything_gives_the_sum_of_contributions(kind: str) -> None:
    """The game's last coalition is the margin that contributions add up to, of the same label and with the same sign."""
    of = checkpoint(TASKS[kind])
    arrays = rows(of.schema)
    output, task = predict(of.model, of.schema, arrays), of.task
    if kind == "regression":
        task = task.model_copy(update={"training_mean": float(np.median(output.logits))})
    found = explained(output, task, calibration_info(of))
    with asking(of.model):
        tokens = embed_rows(of.model, of.schema, arrays)
        logits = coalition_logits(of.model, tokens, stand_ins(of.model, of.schema, tokens, np.array([0])))
    values = coalition_values(logits, found, task)
    np.testing.assert_allclose(values[-1], found.contribution.sum(axis=1), atol=1e-5)
    if kind == "regression":
        assert (values[-1] >= 0).all()
        assert set(found.direction) == {-1.0, 1.0}


def test_a_copy_with_random_experts_explains_otherwise() -> None:
    """Over 20 random models the rank correlation is near 0, its interval holds 0, and the model keeps its weights."""
    of = checkpoint()
    before = {name: value.clone() for name, value in of.model.state_dict().items()}
    state = torch.get_rng_state()
    found = checked(of)
    assert found is not None
    assert found.randomised is not None
    spearman = found.randomised.spearman
    assert abs(spearman.value) < 0.25
    assert spearman.low is not None
    assert spearman.high is not None
    assert spearman.low < 0 < spearman.high
    assert all(torch.equal(value, before[name]) for name, value in of.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_one_expert_or_a_recipe_that_says_no_is_not_checked() -> None:
    """Nothing to compare; not wanted."""
    assert checked(checkpoint(**{"model.experts": "single", "objective.interaction_weight": 0})) is None
    assert checked(checkpoint(validity={"enabled": False})) is None


def test_many_modalities_are_told_and_the_rest_is_checked() -> None:
    """Of seven modalities there is no exact ranking; random weights and resampling need none."""
    seven = tuple(Modality(name=f"m{i}", features=(small_model.number("x"),)) for i in range(7))
    found = checked(checkpoint(schema=FeatureSchema(modalities=seven, missing="learned")))
    assert found is not None
    assert found.notes == ("coalitions of 7 modalities were not gone through: exact up to 6",)
    assert found.deletion is found.shapley is found.interactions is None
    assert found.randomised is not None
    assert found.resampled is not None


@dataclass(frozen=True)
class CountedRows(LazyRows):
    """Rows that remember which of them were read."""

    values: NDArray[np.float32]
    read: set[int] = field(default_factory=set)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, positions: NDArray[np.intp]) -> NDArray[np.float32]:
        self.read.update(positions.tolist())
        return self.values[positions]


@pytest.mark.parametrize("missing", ["learned", "reject"])
def test_only_the_chosen_rows_are_read(missing: Any) -> None:
    """Of an array that stays in its file, `max_rows` rows; and the figures are those of an array in memory."""
    of = checkpoint(schema=small_model.schema(missing=missing), validity={"max_rows": 7, "num_bootstraps": 0})
    arrays = rows(of.schema)
    counted = CountedRows(np.asarray(arrays["signal"]))
    output = predict(of.model, of.schema, arrays)
    found = judge(of, {**arrays, "signal": counted}, output, "test", calibration_info(of))
    assert found is not None
    assert found.num_rows == len(counted.read) == 7
    assert found == judge(of, arrays, output, "test", calibration_info(of))


def test_fresh_experts_differ_from_each_other_and_share_the_encoders() -> None:
    """Experts of a training start equal; those of the sanity check do not, or one would be like another."""
    of = checkpoint()
    fresh = with_fresh_experts(of.model, of.recipe.model)
    weights = [torch.cat([p.detach().flatten() for p in expert.parameters()]) for expert in fresh.experts]
    assert len({float(weight.sum()) for weight in weights}) == len(of.model.roles)
    assert all(a is b for a, b in zip(fresh.encoders, of.model.encoders, strict=True))
    assert replace(of, model=fresh).model.roles == of.model.roles
