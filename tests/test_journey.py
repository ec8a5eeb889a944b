"""From a recipe to an explained answer over HTTP: every stage real, only the training is short."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.__main__ import main as export
from service.bundle.__main__ import main as bundle_command
from service.bundle.store import open_bundle
from tests.readme import curl_commands, json_samples
from tests.serving import Server, running_server
from training.__main__ import main as train
from training.data.source import DATASETS

pytestmark = pytest.mark.slow

RECIPE = Path("training/recipes/support2.toml")
SHORT = (
    "train.epochs=1",
    "objective.decomposition.min_steps=0",
    "train.num_bootstraps=5",
    "model.hidden_dim=8",
    "model.encoders.default.num_bins=4",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SUPPORT2, trained for one short epoch and exported, by the commands of the README."""
    folder = tmp_path_factory.mktemp("journey")
    overrides = [argument for value in SHORT for argument in ("--set", value)]
    assert train(["fit", str(RECIPE), "--out", str(folder / "run"), *overrides]) == 0
    assert {file.name for file in (folder / "run").iterdir()} == {
        "checkpoint.pt",
        "explanations.npz",
        "metrics.json",
        "recipe.json",
        "report.html",
    }
    assert export([str(folder / "run"), "--out", str(folder / "bundle")]) == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real `bentoml serve` process of that bundle."""
    with running_server(bundle, tmp_path_factory.mktemp("server")) as running:
        yield running


def keys(document: object) -> object:
    """The shape of a JSON document: its keys, all the way down; of a list, its first entry's."""
    if isinstance(document, dict):
        return {key: keys(value) for key, value in document.items()}
    return [keys(document[0])] if isinstance(document, list) and document else None


def test_a_patient_gets_a_risk_whose_explanation_adds_up(server: Server, bundle: Path) -> None:
    """The served answer to the manifest's example is the recorded one, and contributions add up to its margin."""
    manifest = open_bundle(bundle).manifest
    answer = server.post("/predict", {"instances": [{"id": "p", **manifest.example.record}]}).json()
    prediction = answer["predictions"][0]
    recorded = manifest.example.answer
    assert prediction["probability"] == pytest.approx(recorded.prediction[1], abs=1e-4)
    label = manifest.task.labels.index(prediction["label"])
    margin = recorded.logits[label] - recorded.logits[1 - label]
    experts = prediction["explanation"]["experts"]
    assert sum(expert["contribution"] for expert in experts) == pytest.approx(margin, abs=1e-4)
    assert sum(expert["weight"] for expert in experts) == pytest.approx(1, abs=1e-4)
    assert [expert["name"] for expert in experts] == [
        *("unique:labs", "unique:demographics", "unique:diagnosis"),
        *("synergy", "redundancy"),
    ]


def test_the_readmes_curl_example_works_and_answers_in_the_shape_shown(server: Server) -> None:
    """The request printed in the README is answered, with exactly the fields of the response printed below it."""
    (command,) = curl_commands()
    assert command.path == "/predict"
    response = server.post(command.path, json.loads(command.body))
    assert response.status_code == 200
    shown = json_samples()[0]
    assert keys(response.json()) == keys(shown)


def test_a_missing_modality_is_answered_and_named(server: Server) -> None:
    """A patient without laboratory values gets a risk, and the answer says that labs are missing."""
    prediction = server.post("/predict", {"demographics": {"age": 70}, "diagnosis": {"dzgroup": "CHF"}}).json()["predictions"][0]
    assert prediction["status"] == "ok"
    assert "labs" in prediction["missing"]


def test_metrics_count_what_was_served(server: Server) -> None:
    """After an answered request /metrics has its batch, its expert weights and the model's identity."""
    server.post("/predict", {"demographics": {"age": 70}})
    text = server.get("/metrics").text
    for name in ("i2moe_batch_size_count", 'i2moe_expert_weight_count{expert="unique:labs"}', "i2moe_model_info{"):
        assert name in text


def test_the_same_bundle_scores_a_file_without_a_server(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line scores the shipped table, one prediction for every row."""
    out = tmp_path / "scored.jsonl"
    assert bundle_command(["predict", str(bundle), str(DATASETS["support2"].default_path), "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 9105
    assert json.loads(lines[0])["explanation"]["experts"][0]["name"] == "unique:labs"
