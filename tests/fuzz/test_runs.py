"""Run folders: what export, evaluate and --resume read of them; and checkpoints of the authors' released code."""

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.export.released_files import HIDDEN_DIM, save, small_model
from tests.fuzz.mutations import Content, damaged, json_texts, trees, write_json
from tests.fuzz.profile import MAX_LINES, check, fuzz
from tests.fuzz.worker import Worker
from training.checkpoint import CHECKPOINT_FILE, METRICS_FILE


def _saved(document: Any) -> bytes:
    file = io.BytesIO()
    torch.save(document, file)
    return file.getvalue()


def _texts(tree: Any) -> Any:
    """A part of a checkpoint that is plain values, written and read again, so that it holds nothing else."""
    return json.loads(write_json(tree))


def _tensors(tensor: torch.Tensor) -> st.SearchStrategy[Any]:
    others = [
        *(tensor.double(), tensor.half(), tensor.to(torch.int8), tensor[None], tensor.flatten()[:1], tensor.to_sparse()),
        *(torch.full_like(tensor, float("nan")), torch.full_like(tensor, 1e30), torch.zeros(1).expand(1 << 40)),
        *(tensor.new_zeros(0), tensor.new_zeros(()), None, 1.0, "x"),
    ]
    return st.sampled_from(others)


@st.composite
def documents(draw: Callable[[Any], Any], document: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with some part or some weights changed."""
    changed = {**document, "weights": dict(document["weights"])}
    part = draw(st.sampled_from((*document, "weights", "weights")))
    if part == "weights" and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(changed["weights"])))
        changed["weights"][name] = draw(_tensors(changed["weights"][name]))
        if draw(st.booleans()):
            del changed["weights"][name]
    elif part != "weights" and isinstance(document[part], dict):
        changed[part] = _texts(draw(trees(copy.deepcopy(document[part]))))
    else:
        changed[part] = draw(st.sampled_from((None, [], {}, 1, 99, "x" * 100_000, {"format": 1}, torch.zeros(2))))
    return changed


@pytest.fixture
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("run") / "run")


def test_any_damaged_checkpoint_is_refused(worker: Worker, run: Path) -> None:
    """A file that a disk has damaged is a line, or damaged where nothing is."""
    content = (run / CHECKPOINT_FILE).read_bytes()

    @fuzz()
    @given(changed=damaged(content))
    def holds(changed: Content) -> None:
        (run / CHECKPOINT_FILE).write_bytes(changed)
        check(worker.read("run", run))

    holds()


def test_any_checkpoint_rebuilds_a_model_or_is_refused(worker: Worker, run: Path) -> None:
    """A checkpoint of whatever parts is a model to export, or a line says which part does not fit."""
    document = torch.load(run / CHECKPOINT_FILE, weights_only=True)

    @fuzz(0.2)
    @given(changed=documents(document).map(_saved).map(Content))
    def holds(changed: Content) -> None:
        (run / CHECKPOINT_FILE).write_bytes(changed)
        check(worker.read("run", run))
        check(worker.read("training", "evaluate", run, "--data", run.parent / "table.csv"), lines=MAX_LINES)

    shutil.copy(run / "recipe.json", run.parent)
    (run.parent / "table.csv").write_text("outcome,crea,sod,age,sex,ward\n0,1,140,50,male,7\n1,2,150,60,female,007\n")
    holds()


def test_any_metrics_are_exported_or_refused(worker: Worker, run: Path) -> None:
    """metrics.json of whatever content is what export needs, or a line says what is wrong."""
    document = json.loads((run / METRICS_FILE).read_text())

    @fuzz(0.5)
    @given(text=json_texts(document))
    def holds(text: Content) -> None:
        (run / METRICS_FILE).write_bytes(text)
        check(worker.read("run", run))
        check(worker.read("training", "evaluate", run))

    holds()


RELEASED_CONFIG = {
    "modalities": {"lab": 12, "note": 12},
    "num_heads": 2,
    "temperature_rw": 1.5,
    "name": "imported",
    "labels": ["alive", "dead"],
    "hidden_dim": HIDDEN_DIM,
}


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint as the authors' code saves it, and its config.json."""
    folder = tmp_path_factory.mktemp("released")
    model = small_model("switchgate", ("lab", "note"), "binary", 2, num_patches=2, num_experts=4, residual="released")
    save(folder / "whole.pth", model, "switchgate", {name: _encoder() for name in ("lab", "note")})
    (folder / "whole.json").write_text(json.dumps(RELEASED_CONFIG))
    return folder


def _encoder() -> dict[str, torch.Tensor]:
    return {"projection.weight": torch.randn(HIDDEN_DIM, 6), "projection.bias": torch.randn(HIDDEN_DIM)}


def test_a_released_checkpoint_is_read(worker: Worker, released: Path) -> None:
    """What the properties below start from is good."""
    answer = worker.read("released", released / "whole.pth", released / "whole.json")
    assert answer.status == 0, answer


def test_any_released_configuration_is_read_or_refused(worker: Worker, released: Path) -> None:
    """config.json fits the weights, or a line says where it does not."""

    @fuzz(0.5)
    @given(text=json_texts(RELEASED_CONFIG))
    def holds(text: Content) -> None:
        (released / "config.json").write_bytes(text)
        check(worker.read("released", released / "whole.pth", released / "config.json"))

    holds()


@st.composite
def released_documents(draw: Callable[[Any], Any], document: dict[str, Any]) -> dict[str, Any]:
    """A released checkpoint with some weights of another shape, under another name, or gone."""
    ensemble = dict(document["ensemble_model"])
    states = {name: dict(state) for name, state in document["encoder_dict"].items()}
    state = draw(st.sampled_from((ensemble, *states.values())))
    name = draw(st.sampled_from(sorted(state)))
    tensor = state.pop(name)
    if draw(st.integers(0, 4)):
        digits = st.sampled_from(("0", "1", "7", "99999999999999999999", "-1", "x"))
        renamed = "".join(draw(digits) if c.isdigit() and draw(st.booleans()) else c for c in name)
        state[draw(st.sampled_from((name, name, renamed, "x" * 5000)))] = draw(_tensors(tensor))
    return {"ensemble_model": ensemble, "encoder_dict": states}


def test_any_released_checkpoint_is_read_or_refused(worker: Worker, released: Path) -> None:
    """Weights of whatever names and shapes are a released model, or a line says which are not."""
    document = torch.load(released / "whole.pth", weights_only=True)
    contents = st.one_of(released_documents(document).map(_saved).map(Content), damaged((released / "whole.pth").read_bytes()))

    @fuzz(0.5)
    @given(content=contents)
    def holds(content: Content) -> None:
        (released / "changed.pth").write_bytes(content)
        check(worker.read("released", released / "changed.pth", released / "whole.json"))

    holds()
