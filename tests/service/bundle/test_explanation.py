"""Weights, contributions, agreement and sentences, by hand and by their sums."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.bundle.explanation import (
    Explanation,
    agreement_table,
    calibrate,
    contributions,
    decide,
    describe_expert,
    explain,
    explain_dataset,
    join_words,
    risk_band,
    spread,
    summarise,
)
from service.bundle.manifest import CalibrationInfo, ExpertInfo, RiskBand, TaskInfo
from service.bundle.output import Output

EXPERTS = (
    ExpertInfo(name="unique:labs", kind="uniqueness", modality="labs"),
    ExpertInfo(name="unique:vital_signs", kind="uniqueness", modality="vital_signs"),
    ExpertInfo(name="synergy", kind="synergy"),
    ExpertInfo(name="redundancy", kind="redundancy"),
)
BANDS = (RiskBand(name="low", below=0.1), RiskBand(name="moderate", below=0.7), RiskBand(name="high", below=1.0))
BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death in hospital", risk_bands=BANDS)
MULTICLASS = TaskInfo(kind="multiclass", labels=("CN", "MCI", "AD"), outcome="diagnosis")
MULTILABEL = TaskInfo(kind="multilabel", labels=("drama", "comedy"), outcome="genre")
REGRESSION = TaskInfo(kind="regression", labels=("days",), outcome="length of stay in days", training_mean=5.0)
TASKS = {task.kind: task for task in (BINARY, MULTICLASS, MULTILABEL, REGRESSION)}


def identity(task: TaskInfo, *, scale: float = 1.0, bias: float = 0.0) -> CalibrationInfo:
    """A calibration of one scale and, for the last label, one bias."""
    zeros = [0.0] * (len(task.labels) - 1)
    return CalibrationInfo(method="test", scale=(scale,) * len(task.labels), bias=(*zeros, bias), num_rows=1)


def output_of(weights: Any, expert_logits: Any, task: TaskInfo, **calibration: float) -> Output:
    """What a model with these expert weights (B, E) and logits (B, E, C) answers."""
    weights_BE, logits_BEC = np.float32(weights), np.float32(expert_logits)
    logits_BC = (weights_BE[:, :, None] * logits_BEC).sum(axis=1)
    return Output(calibrate(logits_BC, task, identity(task, **calibration)), logits_BC, weights_BE, logits_BEC)


@st.composite
def outputs(draw: st.DrawFn, task: TaskInfo) -> Output:
    """Any output of a model with four experts."""
    num_rows = draw(st.integers(1, 5))
    number = st.floats(-8, 8, width=32)
    raw_BE = draw(arrays(np.float32, (num_rows, len(EXPERTS)), elements=st.floats(-3, 3, width=32)))
    logits_BEC = draw(arrays(np.float32, (num_rows, len(EXPERTS), len(task.labels)), elements=number))
    weights_BE = np.exp(raw_BE) / np.exp(raw_BE).sum(axis=1, keepdims=True)
    return output_of(weights_BE, logits_BEC, task)


any_case = st.sampled_from(list(TASKS.values())).flatmap(lambda task: st.tuples(st.just(task), outputs(task)))


@settings(deadline=None)
@given(any_case)
def test_contributions_add_up_to_what_the_model_answered(case: tuple[TaskInfo, Output]) -> None:
    """Contributions sum to the margin (binary, multiclass), the logit (multilabel) or the distance from the mean (regression)."""
    task, output = case
    logits_BC = output.logits
    if task.kind == "regression":
        expected = logits_BC - task.training_mean
    elif task.kind == "multilabel":
        expected = logits_BC
    else:
        others = [np.delete(logits_BC, c, axis=1).mean(axis=1) for c in range(len(task.labels))]
        expected = logits_BC - np.stack(others, axis=1)
    np.testing.assert_allclose(contributions(output, task).sum(axis=1), expected, atol=1e-4)


@settings(deadline=None)
@given(any_case)
def test_an_explanation_is_consistent(case: tuple[TaskInfo, Output]) -> None:
    """Shares are shares of absolute contributions and sum to 1; the dominant expert has the largest; nothing is NaN."""
    task, output = case
    explanation = explain(output, task, identity(task))
    np.testing.assert_allclose(explanation.share.sum(axis=1), 1.0, atol=1e-5)
    rows = np.arange(len(explanation.label))
    magnitude = np.abs(explanation.contribution)
    np.testing.assert_array_equal(magnitude[rows, explanation.dominant], magnitude.max(axis=1))
    assert ((explanation.agreement >= 0) & (explanation.agreement <= 1)).all()
    np.testing.assert_array_equal(explanation.label, decide(output.prediction, task))
    for record, prediction in zip(explanation.records(), output.prediction.tolist(), strict=True):
        sentence = summarise(record, prediction, task=task, experts=EXPERTS)
        assert sentence.isprintable()
        assert "nan" not in sentence
        assert sentence.endswith(".")
        assert ". " not in sentence


def test_a_binary_case_by_hand() -> None:
    """weight x (logit of the label - logit of the other), with shares of the absolute sum."""
    output = output_of([[0.5, 0.25, 0.125, 0.125]], [[[0, 2], [1, 0], [0, 0], [0, 4]]], BINARY)
    explanation = explain(output, BINARY, identity(BINARY))
    assert explanation.label.tolist() == [1]
    assert explanation.contribution.tolist() == [[1.0, -0.25, 0.0, 0.5]]
    np.testing.assert_allclose(explanation.share, [[4 / 7, 1 / 7, 0.0, 2 / 7]], rtol=1e-6)
    assert explanation.dominant.tolist() == [0]
    assert explanation.agreement.tolist() == [0.75]  # at exactly the threshold the neutral expert says dead
    np.testing.assert_allclose(explanation.expert_prediction[0, :, 1], 1 / (1 + np.exp([-2.0, 1.0, 0.0, -4.0])), rtol=1e-6)


def test_a_multiclass_case_by_hand() -> None:
    """weight x (logit of the label - mean of the other logits)."""
    output = output_of([[0.5, 0.5]], [[[0, 2, 4], [3, 0, 0]]], MULTICLASS)
    explanation = explain(output, MULTICLASS, identity(MULTICLASS))
    assert explanation.label.tolist() == [2]
    assert explanation.contribution.tolist() == [[0.5 * (4 - 1), 0.5 * (0 - 1.5)]]
    assert explanation.agreement.tolist() == [0.5]


def test_a_multilabel_case_by_hand() -> None:
    """weight x logit of the label, whatever the other labels are."""
    output = output_of([[0.75, 0.25]], [[[1, -2], [4, 0]]], MULTILABEL)
    explanation = explain(output, MULTILABEL, identity(MULTILABEL))
    assert explanation.label.tolist() == [0]
    assert explanation.contribution.tolist() == [[0.75, 1.0]]
    assert explanation.dominant.tolist() == [1]


def test_a_regression_case_by_hand() -> None:
    """weight x (output - training mean)."""
    output = output_of([[0.75, 0.25]], [[[9], [1]]], REGRESSION)
    explanation = explain(output, REGRESSION, identity(REGRESSION))
    assert output.prediction.tolist() == [[7.0]]
    assert explanation.contribution.tolist() == [[3.0, -1.0]]
    assert explanation.share.tolist() == [[0.75, 0.25]]
    assert explanation.agreement.tolist() == [1.0]


def test_a_small_weight_may_dominate() -> None:
    """A weight is not an importance: a loud expert with a small weight decides."""
    explanation = explain(output_of([[0.9, 0.1]], [[[0, 0.5], [0, 20]]], BINARY), BINARY, identity(BINARY))
    assert explanation.weight.argmax() == 0
    assert explanation.dominant.tolist() == [1]


def test_neutral_experts_share_equally() -> None:
    """Where no expert speaks, shares are equal and finite, and the sentence says so."""
    output = output_of([[0.5, 0.5]], np.zeros((1, 2, 2)), BINARY)
    explanation = explain(output, BINARY, identity(BINARY))
    assert explanation.share.tolist() == [[0.5, 0.5]]
    sentence = told(explanation, output, task=BINARY, experts=EXPERTS[:2])
    assert sentence == (
        "Risk of death in hospital: 50 % (moderate); no expert points either way; all 2 experts alone would say dead."
    )


def test_another_label_can_be_explained() -> None:
    """The explained label is the predicted one unless said otherwise; in binary tasks the other label mirrors it."""
    output = output_of([[0.5, 0.25, 0.125, 0.125]], [[[0, 2], [1, 0], [0, 0], [0, 4]]], BINARY)
    towards = explain(output, BINARY, identity(BINARY), np.array([1]))
    against = explain(output, BINARY, identity(BINARY), np.array([0]))
    np.testing.assert_array_equal(against.contribution, -towards.contribution)
    np.testing.assert_array_equal(against.share, towards.share)
    assert against.agreement.tolist() == [0.25]
    sentences = [told(explanation, output, task=BINARY, experts=EXPERTS) for explanation in (towards, against)]
    assert all("points towards dead" in sentence for sentence in sentences)


def test_experts_decide_by_the_mixtures_rule() -> None:
    """Agreement uses the threshold and the calibration: an expert that says 62 % alone says dead at 0.5, alive at 0.7."""
    logits = [[[0, 0.5], [0, 3.0]]]
    strict = BINARY.model_copy(update={"threshold": 0.7})
    output = output_of([[0.5, 0.5]], logits, BINARY)
    assert explain(output, BINARY, identity(BINARY)).agreement.tolist() == [1.0]
    assert explain(output, strict, identity(strict)).agreement.tolist() == [0.5]
    biased = identity(BINARY, scale=1.0, bias=-1.0)
    assert explain(output_of([[0.5, 0.5]], logits, BINARY, bias=-1.0), BINARY, biased).agreement.tolist() == [0.5]


@pytest.mark.parametrize("kind", list(TASKS))
def test_extreme_logits_stay_finite(kind: str) -> None:
    """No logit overflows calibration, and numpy has nothing to warn of."""
    task = TASKS[kind]
    extreme = np.float32([[1000.0, -1000.0, 500.0][: len(task.labels)], [-1000.0, 1000.0, 0.0][: len(task.labels)]])
    prediction = calibrate(extreme, task, identity(task, scale=3.0, bias=1.0))
    assert np.isfinite(prediction).all()
    if kind != "regression":
        assert prediction.min() >= 0
        assert prediction.max() <= 1


def test_calibration_is_softmax_or_sigmoid_of_the_scaled_logits() -> None:
    """The same map as in the graph, per task; regression is left alone."""
    logits = np.float32([[0.5, 2.0]])
    scores = np.array([1.0, 4.0 - 1.0])
    softmax = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(calibrate(logits, BINARY, identity(BINARY, scale=2, bias=-1))[0], softmax, rtol=1e-6)
    sigmoid = 1 / (1 + np.exp(-scores))
    np.testing.assert_allclose(calibrate(logits, MULTILABEL, identity(MULTILABEL, scale=2, bias=-1))[0], sigmoid, rtol=1e-6)
    assert calibrate(logits[:, :1], REGRESSION, identity(REGRESSION, scale=2, bias=-1)).tolist() == [[0.5]]


def test_the_threshold_belongs_to_the_event() -> None:
    """A binary risk of exactly the threshold is the event, in float32 too; other tasks answer the largest probability."""
    task = BINARY.model_copy(update={"threshold": 0.7})
    assert decide(np.float32([[0.3, 0.7], [0.31, 0.69]]), task).tolist() == [1, 0]
    assert decide(np.float32([[0.2, 0.5, 0.3]]), MULTICLASS).tolist() == [1]
    assert decide(np.float32([[0.6, 0.9]]), MULTILABEL).tolist() == [1]
    assert decide(np.float32([[-3.0]]), REGRESSION).tolist() == [0]


@pytest.mark.parametrize(
    ("risk", "band"),
    [(0.0, "low"), (0.0999, "low"), (0.1, "moderate"), (0.69, "moderate"), (0.7, "high"), (0.999, "high"), (1.0, "high")],
)
def test_a_band_begins_at_the_limit_of_the_one_below(risk: float, band: str) -> None:
    """Bands hold their lower limit and not their upper one, but certainty is in the last; float32 rounding changes nothing."""
    assert risk_band(risk, BINARY) == band
    assert risk_band(float(np.float32(risk)), BINARY) == band


def test_a_model_without_bands_names_none() -> None:
    """Bands are the model's choice."""
    assert risk_band(0.5, MULTICLASS) is None


@pytest.mark.parametrize(
    ("words", "joined"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")], ids=len
)
def test_words_are_joined_as_in_speech(words: list[str], joined: str) -> None:
    """Commas, then "and"."""
    assert joined == join_words(words)


def test_experts_are_described_for_people() -> None:
    """Each kind of expert has words; underscores are for programs."""
    names = ["labs", "vital_signs"]
    assert [describe_expert(expert, names) for expert in EXPERTS] == [
        "labs on its own",
        "vital signs on its own",
        "the interplay of labs and vital signs",
        "what labs and vital signs have in common",
    ]
    assert describe_expert(EXPERTS[2], []) == "the interplay of the modalities"


def told(explanation: Explanation, output: Output, **arguments: Any) -> str:
    """The summary of the first record."""
    return summarise(explanation.records()[0], output.prediction[0].tolist(), **arguments)


def sentence(weights: Any, logits: Any, task: TaskInfo, **calibration: float) -> str:
    """The summary of one record."""
    output = output_of([weights], [logits], task, **calibration)
    return told(explain(output, task, identity(task, **calibration)), output, task=task, experts=EXPERTS[: len(weights)])


def test_the_sentence_of_a_binary_task() -> None:
    """A nurse reads the risk and its band, the strongest evidence and where it points, and how many experts agree."""
    logits = [[0, 2], [1, 0], [0, 0], [0, 4]]
    assert sentence([0.5, 0.25, 0.125, 0.125], logits, BINARY) == (
        "Risk of death in hospital: 78 % (high); the strongest evidence, labs on its own (57 % of all evidence), "
        "points towards dead; 3 of 4 experts alone would say dead."
    )
    assert sentence([0.5, 0.25, 0.125, 0.125], [[-x for x in pair] for pair in logits], BINARY) == (
        "Risk of death in hospital: 22 % (moderate); the strongest evidence, labs on its own (57 % of all evidence), "
        "points towards alive; 2 of 4 experts alone would say alive."
    )


def test_the_sentence_says_whose_another_modalitys_feature_is() -> None:
    """An expert of one modality may name another's; one of all modalities names features alone."""
    leading = [("vital_signs.hr", 0.5), ("labs.crea", -0.4)]
    sentences = {}
    for dominant in (0, 2):
        output = output_of([np.eye(4)[dominant]], [[[0, 2]] * 4], BINARY)
        explanation = explain(output, BINARY, identity(BINARY))
        sentences[dominant] = told(explanation, output, task=BINARY, experts=EXPERTS, leading=leading)
    assert "within it hr of vital_signs (towards dead) and crea (towards alive) weigh most" in sentences[0]
    assert "within it hr (towards dead) and crea (towards alive) weigh most" in sentences[2]


def test_the_sentence_of_a_single_expert() -> None:
    """A baseline has nothing to compare: no evidence is called the strongest, and nobody agrees with itself."""
    assert sentence([1.0], [[0, 2]], BINARY) == (
        "Risk of death in hospital: 88 % (high); one network for all modalities, without experts to compare."
    )


def test_the_sentence_where_calibration_overrules_the_evidence() -> None:
    """Evidence may point away from the predicted label, and no expert may agree: the sentence says so plainly."""
    assert sentence([0.5, 0.5], [[0, 1], [0, 0.5]], BINARY, bias=-2.5) == (
        "Risk of death in hospital: 15 % (moderate); the strongest evidence, labs on its own (67 % of all evidence), "
        "points towards dead; all 2 experts alone would say alive."
    )
    assert sentence([0.5, 0.5], [[0, 9, 5], [9, 0, 5]], MULTICLASS, scale=0.5) == (
        "Predicted diagnosis: AD (39 %); the strongest evidence, labs on its own (50 % of all evidence), "
        "points towards AD; none of the 2 experts alone would say AD."
    )


def test_the_sentence_never_claims_certainty() -> None:
    """Risks that round to 0 or 100 % are told as less than 1 and more than 99 %."""
    assert sentence([1.0], [[9, 0]], BINARY).startswith("Risk of death in hospital: less than 1 % (low); ")
    assert sentence([1.0], [[0, 90]], BINARY).startswith("Risk of death in hospital: more than 99 % (high); ")


def test_the_sentence_of_a_task_of_many_labels() -> None:
    """Evidence points towards the predicted label or away from it."""
    assert sentence([0.25, 0.75], [[0, 8, 1], [0, 0, 1]], MULTICLASS) == (
        "Predicted diagnosis: MCI (67 %); the strongest evidence, labs on its own (83 % of all evidence), "
        "points towards MCI; 1 of 2 experts alone would say MCI."
    )
    assert sentence([0.5, 0.5], [[-3, -9], [-2, -9]], MULTILABEL) == (
        "Predicted genre: drama (8 %); the strongest evidence, labs on its own (60 % of all evidence), "
        "points away from drama; all 2 experts alone would say drama."
    )


def test_the_sentence_of_a_regression() -> None:
    """The value, and what moves it above or below the average of the training data."""
    assert sentence([0.75, 0.25], [[9], [1]], REGRESSION) == (
        "Predicted length of stay in days: 7; the strongest evidence, labs on its own (75 % of all evidence), "
        "points above the average of 5."
    )
    assert sentence([0.75, 0.25], [[1], [9]], REGRESSION).endswith("points below the average of 5.")


def test_a_spread_is_mean_and_quantiles() -> None:
    """Quantiles interpolate as numpy does."""
    assert spread(np.arange(101.0)).model_dump() == {"mean": 50, "q05": 5, "q25": 25, "q50": 50, "q75": 75, "q95": 95}


def test_agreement_by_hand() -> None:
    """All experts or not, right or not: the paper's Table 3 as shares of rows."""
    logits = [[[0, 1], [0, 2]], [[0, 1], [0, 2]], [[0, 3], [1, 0]], [[0, 3], [1, 0]], [[1, 0], [1, 0]]]
    output = output_of([[0.5, 0.5]] * 5, logits, BINARY)
    table = agreement_table(output, np.array([1, 0, 1, 0, 0]), BINARY, identity(BINARY))
    assert table.model_dump() == {"agree_correct": 0.4, "agree_wrong": 0.2, "disagree_correct": 0.2, "disagree_wrong": 0.2}


@settings(deadline=None)
@given(st.data())
def test_agreement_rates_add_up_to_one(data: st.DataObject) -> None:
    """Every row is in exactly one cell of the table."""
    task = data.draw(st.sampled_from([BINARY, MULTICLASS]))
    output = data.draw(outputs(task))
    target = data.draw(arrays(np.intp, len(output.logits), elements=st.integers(0, len(task.labels) - 1)))
    assert math.isclose(sum(agreement_table(output, target, task, identity(task)).model_dump().values()), 1.0)


def test_the_dataset_explanation_by_hand() -> None:
    """Means over all rows and by true class; classes without rows are left out; dominance is counted."""
    weights = [[0.75, 0.25], [0.25, 0.75]]
    output = output_of(weights, [[[0, 4], [0, 4]], [[0, 4], [0, 4]]], BINARY)
    experts = EXPERTS[:2]

    def told(target: list[int]) -> Any:
        return explain_dataset(output, np.array(target), task=BINARY, calibration=identity(BINARY), experts=experts, split="test")

    explanation = told([0, 1])
    first, second = explanation.experts
    assert (explanation.split, explanation.num_rows) == ("test", 2)
    assert (first.name, second.name) == ("unique:labs", "unique:vital_signs")
    assert first.weight.mean == 0.5
    assert first.weight_by_class == {"alive": 0.75, "dead": 0.25}
    assert first.contribution_by_class == {"alive": 3.0, "dead": 1.0}
    assert first.contribution_share.mean == 0.5
    assert (first.dominant_rate, second.dominant_rate) == (0.5, 0.5)
    assert explanation.agreement is not None
    assert explanation.agreement.agree_correct == 0.5
    assert told([1, 1]).experts[0].weight_by_class == {"dead": 0.5}


def test_the_dataset_explanation_of_many_labels() -> None:
    """A multilabel row counts for each of its labels; agreement is told of single-label tasks only."""
    output = output_of([[0.75, 0.25], [0.25, 0.75]], [[[1, 2], [3, 4]]] * 2, MULTILABEL)
    explanation = explain_dataset(
        output,
        np.array([[1, 1], [0, 1]]),
        task=MULTILABEL,
        calibration=identity(MULTILABEL),
        experts=EXPERTS[:2],
        split="test",
    )
    assert explanation.experts[0].weight_by_class == {"drama": 0.75, "comedy": 0.5}
    assert explanation.agreement is None


def test_the_dataset_explanation_of_a_regression() -> None:
    """A regression has no classes and no agreement."""
    output = output_of([[0.75, 0.25]], [[[9], [1]]], REGRESSION)
    explanation = explain_dataset(
        output, np.array([6.5]), task=REGRESSION, calibration=identity(REGRESSION), experts=EXPERTS[:2], split="test"
    )
    assert explanation.experts[0].weight_by_class == {}
    assert explanation.experts[0].contribution.mean == 3.0
    assert explanation.agreement is None


def test_some_rows_of_an_output_are_an_output() -> None:
    """Slicing keeps the four arrays together."""
    output = output_of([[1.0], [1.0]], [[[0, 1]], [[2, 0]]], BINARY)
    last = output.rows(slice(1, 2))
    assert last.logits.tolist() == [[2.0, 0.0]]
    assert [array.shape for array in (last.prediction, last.expert_weights, last.expert_logits)] == [(1, 2), (1, 1), (1, 1, 2)]
