"""Sets, intervals, entropy, disagreement and flags, with thresholds that a pencil can follow."""

import json
from typing import Any

import numpy as np
import pytest

from service.bundle.answers import Explained
from service.bundle.explanation import Explanation, decide
from service.bundle.manifest import FileInfo, Manifest, TaskInfo, UncertaintyInfo
from service.bundle.output import Output
from service.bundle.uncertainty import assess, caution, disagreement, entropy, tell
from tests.tiny_bundle import tiny_example, tiny_manifest, tiny_output

BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death")
STAGES = TaskInfo(kind="multiclass", labels=("CN", "MCI", "AD"), outcome="stage")
GENRES = TaskInfo(kind="multilabel", labels=("drama", "comedy", "war"), outcome="genre")
DAYS = TaskInfo(kind="regression", labels=("days",), outcome="stay", training_mean=5.0)
MANIFEST = tiny_manifest({"model.onnx": FileInfo(sha256="0" * 64, bytes=0)})


def info(task: TaskInfo, thresholds: tuple[float | None, ...], **more: Any) -> UncertaintyInfo:
    methods: dict[str, Any] = {"regression": "absolute residual", "multilabel": "per label"}
    method = methods.get(task.kind, "class-conditional")
    return UncertaintyInfo(method=method, coverage=0.9, guarantee="exact", num_rows=40, thresholds=thresholds, **more)


def explained(prediction: np.ndarray[Any, Any], task: TaskInfo, contribution: Any = ((1.0, 1.0),)) -> Explanation:
    """As much of an explanation as uncertainty looks at."""
    contribution_BE = np.broadcast_to(np.asarray(contribution, np.float32), (len(prediction), np.shape(contribution)[1]))
    nothing = np.zeros_like(contribution_BE)
    label = decide(prediction, task)
    return Explanation(task, MANIFEST.calibration, prediction[:, None], label, nothing, contribution_BE, nothing)


def told(prediction: list[float], task: TaskInfo, known: UncertaintyInfo, contribution: Any = ((1.0, 1.0),)) -> dict[str, Any]:
    prediction_BC = np.array([prediction], np.float32)
    uncertainty = assess(prediction_BC, explained(prediction_BC, task, contribution), task, known)
    (answer,) = tell(uncertainty, prediction_BC, task=task, info=known)
    return answer


@pytest.mark.parametrize(
    ("risk", "expected"),
    [(0.1, ["alive"]), (0.25, ["alive", "dead"]), (0.45, ["alive", "dead"]), (0.6, ["dead"]), (0.9, ["dead"])],
)
def test_a_binary_set_holds_what_its_class_lets_through_and_what_is_stated(risk: float, expected: list[str]) -> None:
    """Alive within 1 - p <= 0.4, dead within 1 - p <= 0.8; at a risk of 0.45 alive is only there because it is stated."""
    answer = told([1 - risk, risk], BINARY, info(BINARY, (0.4, 0.8)))
    assert answer["set"] == expected
    assert answer["abstain"] == (len(expected) == 2)


def test_no_set_is_empty() -> None:
    """Where neither class would pass, the stated one is the set."""
    answer = told([0.45, 0.55], BINARY, info(BINARY, (0.1, 0.1)))
    assert (answer["set"], answer["abstain"]) == (["dead"], False)


def test_too_few_rows_rule_nothing_out() -> None:
    """A threshold of None lets its class into every set, however improbable it is."""
    answer = told([0.999, 0.001], BINARY, info(BINARY, (0.4, None)))
    assert answer["set"] == ["alive", "dead"]


def test_a_multiclass_set_has_a_threshold_for_every_class() -> None:
    """CN passes at 0.5 or more, MCI at 0.2 or more, AD at 0.05 or more."""
    known = info(STAGES, (0.5, 0.8, 0.95))
    assert told([0.7, 0.2, 0.1], STAGES, known)["set"] == ["CN", "MCI", "AD"]
    assert told([0.85, 0.12, 0.03], STAGES, known) | {"entropy": 0} == {
        "set": ["CN"],
        "coverage": 0.9,
        "entropy": 0,
        "disagreement": 0.0,
        "abstain": False,
        "experts_disagree": None,
    }


def test_a_multilabel_answer_says_what_is_sure_and_what_is_possible() -> None:
    """Presence passes at 0.3 or more, absence at 0.4 or less; drama is sure, comedy open, war ruled out."""
    known = info(GENRES, (0.7,) * 3, thresholds_absent=(0.4,) * 3)
    answer = told([0.9, 0.35, 0.1], GENRES, known)
    assert (answer["set"], answer["sure"], answer["abstain"]) == (["drama", "comedy"], ["drama"], False)
    answer = told([0.35, 0.2, 0.1], GENRES, known)
    assert (answer["set"], answer["sure"], answer["abstain"]) == (["drama"], [], True)


def test_a_multilabel_label_is_never_neither_present_nor_absent() -> None:
    """Where neither passes, the side of 0.5 counts."""
    known = info(GENRES, (0.1,) * 3, thresholds_absent=(0.1,) * 3)
    answer = told([0.6, 0.4, 0.3], GENRES, known)
    assert (answer["set"], answer["sure"]) == (["drama"], ["drama"])


def test_an_interval_lies_around_the_prediction() -> None:
    """From and to are the prediction less and plus the half-width; without one both are open, which a model cannot commit to."""
    answer = told([7.25], DAYS, info(DAYS, (2.5,)))
    assert answer == {
        "interval": [4.75, 9.75],
        "coverage": 0.9,
        "half_width": 2.5,
        "disagreement": 0.0,
        "abstain": False,
        "experts_disagree": None,
    }
    answer = told([7.25], DAYS, info(DAYS, (None,)))
    assert (answer["interval"], answer["half_width"], answer["abstain"]) == ([None, None], None, True)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_entropy_is_a_share_of_its_maximum() -> None:
    """1 for even odds, 0 for certainty, 0.811278 bits for a quarter; multilabel: the mean over labels."""
    np.testing.assert_allclose(entropy(np.array([[0.5, 0.5], [0, 1], [0.25, 0.75]]), BINARY), [1, 0, 0.811278], atol=1e-6)
    np.testing.assert_allclose(entropy(np.full((1, 3), 1 / 3), STAGES), [1])
    np.testing.assert_allclose(entropy(np.array([[0.5, 1.0, 0.25]]), GENRES), [(1 + 0 + 0.811278) / 3], atol=1e-6)


def test_disagreement_is_the_share_of_evidence_that_cancels() -> None:
    """All one way 0, all cancelled 1, 3 against 1 a half; no evidence at all is no disagreement."""
    contribution = np.array([[1, 2, 3], [2, -1, -1], [3, -1, 0], [-3, 0, -3], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(disagreement(contribution), [0, 1, 0.5, 0, 0])


@pytest.mark.parametrize(("limit", "flagged"), [(0.4, True), (0.5, False), (None, None)])
def test_experts_are_said_to_disagree_beyond_the_limit(limit: float | None, flagged: bool | None) -> None:
    """Above the held-out rows' limit, not at it; without one nothing is said."""
    answer = told([0.9, 0.1], BINARY, info(BINARY, (0.4, 0.8), disagreement_limit=limit), [[3.0, -1.0]])
    assert (answer["disagreement"], answer["experts_disagree"]) == (0.5, flagged)


def test_a_single_expert_disagrees_with_nobody() -> None:
    """There is no disagreement to tell, and no flag."""
    answer = told([0.9, 0.1], BINARY, info(BINARY, (0.4, 0.8)), [[3.0]])
    assert (answer["disagreement"], answer["experts_disagree"]) == (None, None)


def test_cautions_are_sentences_for_a_person() -> None:
    """One sentence per raised flag, in the labels' own words; none where none is raised."""
    known = info(BINARY, (0.4, 0.8), disagreement_limit=0.4)
    quiet = told([0.95, 0.05], BINARY, known)
    assert caution(quiet, "alive", known) == ""
    loud = told([0.6, 0.4], BINARY, known, [[3.0, -1.0]])
    assert caution(loud, "alive", known) == (
        "Caution: the model does not commit itself, alive and dead both remain possible (such lists hold the truth in 90 % of "
        "cases). Caution: the evidence is divided, parts of it cancel each other more than in 95 % of earlier cases."
    )
    stages = info(STAGES, (None, None, None))
    assert "CN, MCI and AD all remain possible" in caution(told([0.8, 0.1, 0.1], STAGES, stages), "CN", stages)
    genres = info(GENRES, (0.7,) * 3, thresholds_absent=(0.4,) * 3)
    assert caution(told([0.35, 0.2, 0.1], GENRES, genres), "drama", genres).startswith("Caution: drama may also be absent;")
    days = info(DAYS, (None,))
    assert "too few cases were set aside" in caution(told([7.0], DAYS, days), "days", days)


def answers(manifest: Manifest, *, with_explanation: bool = True) -> dict[str, Any]:
    """The tiny model's answer to its example: risk 0.512497, contributions 0.8, 0.6, 0.6, 0.1 towards dead."""
    encoded = [manifest.features.encode(tiny_example())]
    output = tiny_output(**manifest.features.stack([encoded[0].arrays]))
    (answer,) = Explained.of(output, manifest).answers().predictions(encoded, ["a"], with_explanation=with_explanation)
    return answer


def test_answers_carry_their_uncertainty_explained_or_not() -> None:
    """Uncertainty belongs to the prediction; the flags are told in the summary's words, and warnings stay about inputs."""
    manifest = MANIFEST.model_copy(update={"uncertainty": info(BINARY, (0.6, 0.8), disagreement_limit=0.2)})
    whole, short = answers(manifest), answers(manifest, with_explanation=False)
    assert (
        whole["uncertainty"]
        == short["uncertainty"]
        == {
            "set": ["alive", "dead"],
            "coverage": 0.9,
            "entropy": pytest.approx(0.999549, abs=1e-6),
            "disagreement": 0.0,
            "abstain": True,
            "experts_disagree": False,
        }
    )
    assert whole["explanation"]["summary"].endswith(
        "3 of 4 experts alone would say dead. Caution: the model does not commit itself, alive and dead both remain possible "
        "(such lists hold the truth in 90 % of cases)."
    )
    assert whole["warnings"] == []


def test_a_bundle_that_does_not_say_is_answered_without() -> None:
    """A bundle of format version 1 has no thresholds: the field is left out."""
    old = Manifest.model_validate_json(MANIFEST.model_copy(update={"format_version": 1}).model_dump_json(exclude={"uncertainty"}))
    assert old.uncertainty is None
    assert "uncertainty" not in answers(old)


def test_a_single_network_has_its_cautions_too() -> None:
    """The baseline's summary ends with the caution as well."""
    experts = (MANIFEST.experts[2].model_copy(update={"name": "fusion", "kind": "fusion"}),)
    known = info(BINARY, (None, None))
    manifest = MANIFEST.model_copy(update={"experts": experts, "uncertainty": known})
    logits = np.float32([[0.0, 1.0]])
    output = Output(np.float32([[0.4, 0.6]]), logits, np.float32([[1.0]]), logits[:, None])
    (answer,) = Explained.of(output, manifest).answers().predictions([manifest.features.encode(tiny_example())], [None])
    assert "without experts to compare. Caution: the model does not commit itself" in answer["explanation"]["summary"]
    assert (answer["uncertainty"]["disagreement"], answer["uncertainty"]["experts_disagree"]) == (None, None)


@pytest.mark.parametrize(
    ("task", "known"),
    [(BINARY, info(BINARY, (0.4,))),
     (BINARY, info(DAYS, (0.4, 0.4))),
     (BINARY, info(BINARY, (0.4,) * 2, thresholds_absent=(0.1,)))],
)  # fmt: skip
def test_a_manifest_refuses_the_uncertainty_of_another_task(task: TaskInfo, known: UncertaintyInfo) -> None:
    """Another number of thresholds or another method is not opened."""
    document = MANIFEST.model_copy(update={"uncertainty": known}).model_dump(mode="json")
    with pytest.raises(ValueError, match="uncertainty: expected that of a binary task of 2 labels"):
        Manifest.model_validate(document)
