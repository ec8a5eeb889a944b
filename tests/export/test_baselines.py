"""The paper's baselines as bundles with one expert: verified, opened, served."""

from pathlib import Path

import pytest

from export.bundle import export_bundle, run_material
from export.verify import ATOL
from service.bundle.store import open_bundle
from tests.service.api.in_process import serving
from tests.training.small_data import ALL_MODALITIES, recipe, write_data
from training.run import fit

ALONE = {"model.experts": "single", "objective.interaction_weight": 0}
BASELINES = {
    "transformer": {},
    "early": {"hidden": [16]},
    "late": {"hidden": [16, 8]},
    "low_rank_tensor": {"rank": 4, "tensor_dim": 8, "head_dim": 8},
    "moepp": {"num_experts": 4},
}


@pytest.mark.parametrize("fusion", BASELINES)
def test_a_baseline_is_served_as_a_bundle_with_one_expert(fusion: str, tmp_path: Path) -> None:
    """Graph and model agree to 1e-5; over HTTP the one expert has all the weight, and its contribution is the margin."""
    changes = ALONE | {"model.fusion": fusion, "model.fusion_options": BASELINES[fusion]}
    folder = write_data(tmp_path)
    fit(recipe(changes, modalities=ALL_MODALITIES), folder, folder / "run")
    bundle = open_bundle(export_bundle(run_material(folder / "run"), folder / "bundle").path)
    assert bundle.manifest.parity.max_abs_diff <= ATOL == 1e-5
    assert [expert.name for expert in bundle.manifest.experts] == ["fusion"]
    with serving(bundle.path, provider="cpu") as client:
        (prediction,) = client.predict({"instances": [bundle.manifest.example.record]})["predictions"]
    recorded, label = bundle.manifest.example.answer, ("alive", "dead").index(prediction["label"])
    assert prediction["probability"] == pytest.approx(recorded.prediction[1], abs=1e-5)
    (expert,) = prediction["explanation"]["experts"]
    assert (expert["kind"], expert["weight"], expert["contribution_share"]) == ("fusion", 1, 1)
    assert expert["contribution"] == pytest.approx(recorded.logits[label] - recorded.logits[1 - label], abs=1e-4)
    assert "one network for all modalities" in prediction["explanation"]["summary"]
