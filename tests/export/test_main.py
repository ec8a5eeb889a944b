import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.__main__ import main
from service.bundle.predictor import Predictor
from service.bundle.store import open_bundle

PLAIN = ("--attribution-points", "0")  # a second graph takes long, and has tests of its own


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was told on standard error: one line that starts with error."""
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    return told


def test_a_run_is_exported(exported: Any, rich_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RUN becomes a bundle for the target that was asked for, with a report; a second export to the same place is refused."""
    assert exported.status == 0
    assert exported.told.startswith(f"bundle written to {exported.out}: 48 cases agree to ")
    assert open_bundle(exported.out).manifest.graph.target == "cuda"
    assert main([str(rich_run), "--out", str(exported.out)]) == 1
    assert "already exists; remove it or choose another name" in one_line(capsys)
    assert [p.name for p in exported.out.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("case", ["transformer_mimic", "transformer_two_modalities", "transformer_regression"])
def test_a_released_checkpoint_is_exported(
    shared_data: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its bundle opens, replays its example and answers the golden inputs as the released code did; each step is told."""
    golden, out = shared_data / "golden" / case, tmp_path / "bundle"
    assert (
        main(["released", str(golden / "checkpoint.pth"), "--config", str(golden / "config.json"), "--out", str(out), *PLAIN])
        == 0
    )
    assert capsys.readouterr().err == "tracing the graph ...\ncomparing its answers with the model's ...\n"
    bundle = open_bundle(out)
    predictor = Predictor(bundle, provider="cpu")
    assert predictor.replay_example() <= 1e-5
    expected = np.load(golden / "expected.npz")
    found = predictor.run({name: expected[f"input_{name}"].astype(np.float32) for name in bundle.manifest.features.names})
    np.testing.assert_allclose(found.logits, expected["logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.expert_weights, expected["weights"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.expert_logits, expected["expert_logits"], atol=1e-5, rtol=0)
    assert bundle.manifest.provenance["imported_from"] == "checkpoint.pth"
    assert bundle.manifest.calibration.method == "none"


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"num_heads": None}, "num_heads: is required"), ({"num_heads": 5}, "num_heads"), ({"fusion": "moepp"}, "moepp"),
     ({"modalities": {"note": 33, "lab": 20, "code": 17}}, "the configuration names ['note', 'lab', 'code']"),
     ({"hidden_dim": 64}, "hidden_dim: expected 32")],
)  # fmt: skip
def test_a_wrong_released_configuration_is_one_line(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    """Status 1, what is wrong by name, and nothing written."""
    golden, out = shared_data / "golden" / "transformer_mimic", tmp_path / "bundle"
    document = json.loads((golden / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    command = ["released", str(golden / "checkpoint.pth"), "--config", str(tmp_path / "config.json"), "--out", str(out)]
    assert main(command) == 1
    assert told in one_line(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_run_that_cannot_be_exported_is_one_line(rich_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No run, a damaged checkpoint, a checkpoint whose metrics were never written: status 1 and nothing written."""
    out = ["--out", str(tmp_path / "bundle")]
    assert main([str(tmp_path / "nowhere"), *out]) == 1
    assert "checkpoint.pt: no such file" in one_line(capsys)
    shutil.copy(rich_run / "checkpoint.pt", tmp_path)
    assert main([str(tmp_path), *out]) == 1
    assert "metrics.json: no such file" in one_line(capsys)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    assert main([str(tmp_path), *out]) == 1
    assert "is damaged or not a checkpoint" in one_line(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
