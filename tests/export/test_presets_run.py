"""Presets of the paper's data sets go the whole way on small files in the released layout: read, train, export, answer."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import export_bundle, run_material
from service.bundle.store import Bundle
from training.data import mosi
from training.recipe import load_recipe
from training.run import fit

RECIPES = Path("training/recipes")
SMALL = ("model.hidden_dim=8", "model.reweighting.hidden_dim=8", "train.epochs=1", "train.num_bootstraps=0", "train.device=cpu")


def write_mosi(root: Path) -> None:
    """mosi_data.pkl with a few clips whose text tells the sentiment."""
    generator, parts = np.random.default_rng(0), {}
    for split, size in {"train": 24, "valid": 8, "test": 8}.items():
        scores = np.resize([-1.0, 1.0, -2.0, 2.0], size).astype(np.float32)
        part: dict[str, Any] = {
            name: generator.normal(size=(size, *shape)).astype(np.float32) for name, shape in mosi.SHAPES.items()
        }
        part["text"] += scores[:, None, None]
        part["labels"] = scores.reshape(size, 1, 1)
        part["id"] = np.array([[f"{split}{i}".encode(), b"0", b"1"] for i in range(size)])
        parts[split] = part
    (root / mosi.FILE).write_bytes(pickle.dumps(parts))


def write_mimic(root: Path) -> None:
    """The processed MIMIC-IV layout with a few patients."""
    ids = list(range(100, 148))
    (root / "labels.csv").write_text("subject_id,one_year_mortality\n" + "".join(f"{i},{i % 2}\n" for i in ids))
    splits = {"training": ids[:32], "validation": ids[32:40], "testing": ids[40:]}
    (root / "PTID_splits_mimic.json").write_text(json.dumps(splits))
    generator = np.random.default_rng(0)
    for name, width in {"lab": 20, "note": 33, "code": 17}.items():
        torch.save(generator.normal(size=(len(ids), width)), root / f"{name}_x.pt")


def run_preset(preset: str, root: Path, *changes: str) -> Bundle:
    """The preset on the files of `root`, small and short, exported."""
    path = RECIPES / f"{preset}.toml"
    recipe = load_recipe(path, [*SMALL, f"data.root={json.dumps(str(root))}", *changes])
    fit(recipe, path.parent.absolute(), root / "run")
    return export_bundle(run_material(root / "run"), root / "bundle")


def test_mosi_with_gru_encoders(tmp_path: Path) -> None:
    """Sequences are read from the pickle and encoded by GRUs; experts are named by modality in the released order."""
    write_mosi(tmp_path)
    gru = '{kind="gru", hidden=8, padding="zero"}'
    bundle = run_preset("mosi/transformer", tmp_path, *(f"model.encoders.{m}={gru}" for m in mosi.MODALITIES))
    assert [expert.name for expert in bundle.manifest.experts][:3] == ["unique:vision", "unique:audio", "unique:text"]
    assert bundle.manifest.features.modalities[0].width == 50 * 20


@pytest.mark.parametrize("backbone", ["transformer", "switchgate", "interpretcc", "moepp"])
def test_processed_mimic_with_every_backbone(tmp_path: Path, backbone: str) -> None:
    """The vectors of the processed MIMIC-IV layout train and export with each backbone's preset."""
    write_mimic(tmp_path)
    bundle = run_preset(f"mimic_iv/{backbone}", tmp_path)
    assert [modality.width for modality in bundle.manifest.features.modalities] == [20, 33, 17]
    assert bundle.manifest.features.missing == "reject"
    assert bundle.manifest.task.labels == ("alive", "dead")
