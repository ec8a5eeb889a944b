"""Free text from recipe to answer: a tiny encoder trained with, exported, checked, served, and told of in explanations."""

import asyncio
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from export.__main__ import main as export
from service.api.errors import OverloadedError
from service.api.openapi import record_schema
from service.api.reading import SlowReading
from service.api.runtime import Runtime
from service.api.settings import Settings
from service.bundle.__main__ import main as bundle_command
from service.bundle.embedding import TextEncoder, embed_ahead, encoder_files
from service.bundle.errors import BundleError
from service.bundle.predictor import Predictor
from service.bundle.schema import FeatureSchema, Modality
from service.bundle.store import MANIFEST_FILE, Bundle, open_bundle
from tests.service.api.in_process import Client, serving, serving_runtime
from tests.tiny_encoder import tiny_feature, write_tiny_encoder
from tests.training.runs import one_thread
from tests.training.small_data import recipe, write_data
from training.__main__ import main as training
from training.attribution.shapley import SampledShapley
from training.checkpoint import load_checkpoint
from training.data.dataset import load_dataset
from training.errors import DataError, RecipeError, RunError
from training.evaluation import evaluate_file
from training.run import fit

__all__ = ["one_thread"]

pytestmark = pytest.mark.slow

NOTE = {"column": "note", "encoder": "onnx", "path": "encoder", "max_tokens": 4, "max_chunks": 1, "normalise": False}
MODALITIES: dict[str, Any] = {"labs": {"numeric": ["crea", "sod"]}, "note": {"categorical": ["sex"], "text": NOTE}}
PRIVATE = "Zebediah"


def text_recipe(**changes: Any) -> Any:
    return recipe(changes.pop("changes", None), modalities=MODALITIES | {"note": {"text": NOTE | changes}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose notes are embedded; the recipe's encoder is gone by the end. Not to be written to."""
    folder = write_data(tmp_path_factory.mktemp("text"))
    write_tiny_encoder(folder / "encoder")
    fit(recipe(modalities=MODALITIES), folder, folder / "run")
    shutil.rmtree(folder / "encoder")
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    """The same, exported. Not to be written to."""
    assert export([str(run), "--out", str(run.parent / "bundle")]) == 0
    return open_bundle(run.parent / "bundle")


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[Client]:
    """A client of an application that serves it."""
    with serving(bundle.path) as client:
        yield client


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """The bundle's folder, to be damaged."""
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


def file_of(folder: Path, start: str) -> Path:
    (file,) = folder.glob(f"{start}-*")
    return file


def test_the_dataset_holds_what_the_tokens_say(tmp_path: Path) -> None:
    """Every row of the note's array is the mean of its word vectors, NaN where there is no note."""
    folder = write_data(tmp_path)
    write_tiny_encoder(folder / "encoder")
    dataset = load_dataset(text_recipe().data, folder, seed=0)
    for note, row in zip(dataset.columns["note"]["note"], np.asarray(dataset.arrays["note"]), strict=True):
        if note is None:
            assert np.isnan(row).all()
        elif note.startswith("chronic"):  # chronic kidney failure , ...: of four tokens one is known
            assert row.tolist() == [0.75, 1.0]
        else:  # healthy heart , stable overnight: three or four of them are read
            assert row.tolist() == ([0.25, 0.5] if "stable" in note else [0.0, 0.5])


def test_run_and_bundle_carry_the_encoder(run: Path, bundle: Bundle) -> None:
    """Both files, named by their sha256, in the bundle listed like every other file."""
    files = encoder_files(bundle.manifest.features)
    assert len(files) == 2
    for name, sha256 in files.items():
        assert (run / name).read_bytes() == (bundle.path / name).read_bytes()
        assert bundle.manifest.files[name].sha256 == sha256


def test_training_file_and_server_answer_alike(run: Path, bundle: Bundle, client: Client, tmp_path: Path) -> None:
    """The checkpoint on the table, `predict` on csv and jsonl, and HTTP: the same arrays, bit for bit, and risks."""
    table = run.parent / "table.csv"
    rows = pl.read_csv(table, infer_schema=False).rows(named=True)[:40]
    features = {"labs": ("crea", "sod"), "note": ("sex", "note")}
    records = [
        {m: {k: float(r[k]) if m == "labs" else r[k] for k in names if r[k]} for m, names in features.items()} for r in rows
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    answers = []
    for name in ("rows.jsonl", "rows.csv"):
        out = tmp_path / f"out-{name}.jsonl"
        assert bundle_command(["predict", str(bundle.path), str(tmp_path / name), "--out", str(out), "--threads", "2"]) == 0
        answers.append([json.loads(line)["probability"] for line in out.read_text().splitlines()])
    answers.append([p["probability"] for p in client.predict({"instances": records})["predictions"]])
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)
    assert answers[0] == pytest.approx(answers[2], abs=1e-6)
    served = bundle.manifest.features.encode_many(records)
    trained = load_checkpoint(run).schema.encode_many(records)
    for name, array in served.items():
        np.testing.assert_array_equal(array, trained[name])


def test_evaluate_reads_texts_of_another_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the run's own encoder: the recipe's folder is gone."""
    pl.read_csv(run.parent / "table.csv", infer_schema=False).filter(pl.col("note").is_not_null()).write_csv(
        tmp_path / "other.csv"
    )
    copied = shutil.copytree(run, tmp_path / "run")
    assert training(["evaluate", str(copied), "--data", str(tmp_path / "other.csv")]) == 0
    assert "auroc" in capsys.readouterr().out


def test_the_example_holds_a_text_and_is_replayed(bundle: Bundle) -> None:
    """Nobody's sentence, through the encoder."""
    assert bundle.manifest.example.record["note"]["note"] == "The patient is stable and comfortable."
    assert Predictor(bundle, provider="cpu").replay_example() < 1e-4


def test_a_text_is_told_as_a_whole(bundle: Bundle, client: Client, run: Path) -> None:
    """One feature among the others, by gradients; by Shapley values its columns share what it is worth evenly."""
    assert bundle.manifest.attribution is not None
    record = {"labs": {"crea": 3.0}, "note": {"note": "chronic kidney failure", "sex": "male"}}
    (prediction,) = client.predict({"instances": [record], "explain": "features"})["predictions"]
    names = {f["name"] for e in prediction["explanation"]["experts"] for f in e["features"]}
    assert names <= {"labs.crea", "note.note", "note.sex"}
    assert "note.note" in names
    checkpoint = load_checkpoint(run)
    shapley = SampledShapley(checkpoint.model, checkpoint.schema, checkpoint.task)
    assert shapley.num_units == 4
    encoded = checkpoint.schema.encode_many([record])
    inputs = [torch.from_numpy(encoded[name]) for name in checkpoint.schema.names]
    note_BEF = shapley(*inputs, torch.tensor([[0.0, 1.0]])).columns[1]
    torch.testing.assert_close(note_BEF[:, :, 1], note_BEF[:, :, 2])  # sex is column 0


def test_answers_say_what_was_read(client: Client) -> None:
    """A long text warns; no text is missing; a number is refused by its place, and nothing repeats a word."""
    long, blank = {"note": {"note": f"{PRIVATE} kidney heart stable stable"}}, {"labs": {"crea": 1}, "note": {"note": " "}}
    answer = client.predict({"instances": [long, blank, {"note": {"note": [PRIVATE]}}]})
    first, second, third = answer["predictions"]
    assert first["warnings"] == ["note.note is too long: its first 4 of 5 tokens were read"]
    assert "note" in second["missing"]
    assert third["error"]["message"] == "instances.2.note.note: must be a string, found a list"
    assert PRIVATE not in json.dumps(answer)


def test_a_text_has_one_answer_whatever_is_beside_it(client: Client) -> None:
    """Alone or among others: the same risk."""
    texts = ["kidney", "heart stable", "kidney heart"]
    together = client.predict({"instances": [{"note": {"note": text}} for text in texts]})["predictions"]
    for text, prediction in zip(texts, together, strict=True):
        (alone,) = client.predict({"note": {"note": text}})["predictions"]
        assert alone["probability"] == pytest.approx(prediction["probability"], abs=1e-6)


def test_openapi_says_text(bundle: Bundle) -> None:
    """A string or null, and its kind."""
    note = record_schema(bundle.manifest.features)["properties"]["note"]["anyOf"][0]["properties"]["note"]
    assert (note["type"], note["x-kind"]) == (["string", "null"], "embedded_text")


def test_texts_are_not_read_in_the_event_loop(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is read, others are answered: the encoder waits until they are."""
    asked, answered = threading.Event(), threading.Event()
    read = TextEncoder.embed

    def slow(self: TextEncoder, text: str, feature: Any) -> Any:
        if text == PRIVATE:
            asked.set()
            assert answered.wait(10)
        return read(self, text, feature)

    monkeypatch.setattr(TextEncoder, "embed", slow)
    with serving(bundle.path) as client, ThreadPoolExecutor(1) as pool:
        slow_answer = pool.submit(client.predict, {"note": {"note": PRIVATE}})
        assert asked.wait(10)
        assert client.get("/model").status_code == 200
        answered.set()
        assert slow_answer.result()["predictions"][0]["status"] == "ok"


def test_reading_is_bounded_and_forgets_who_left() -> None:
    """Beyond the queue requests are refused; what nobody waits for any more is never begun."""

    async def scenario() -> list[str]:
        begun: list[str] = []
        free = threading.Event()
        reading = SlowReading(num_threads=1, queue_max=2)
        first = asyncio.create_task(reading.read(lambda: (begun.append("first"), free.wait(10))))
        left = asyncio.create_task(reading.read(lambda: begun.append("left")))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError, match="waiting to be read"):
            await reading.read(lambda: begun.append("refused"))
        left.cancel()
        await asyncio.sleep(0)
        free.set()
        await first
        await reading.read(lambda: begun.append("last"))
        reading.close()
        return begun

    assert asyncio.run(scenario()) == ["first", "last"]


@pytest.mark.parametrize("start", ["encoder", "tokenizer"])
def test_a_damaged_bundle_is_refused(copied: Path, start: str) -> None:
    """A file that is gone, cut off or another one: told when the bundle is opened, by its name."""
    file = file_of(copied, start)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{file.name} is damaged"):
        open_bundle(copied)
    file.unlink()
    with pytest.raises(BundleError, match=f"{file.name} is missing"):
        open_bundle(copied)


def test_a_manifest_that_names_another_encoder_is_refused(copied: Path) -> None:
    """The schema's sha256 counts, not the list of files alone."""
    manifest = json.loads((copied / MANIFEST_FILE).read_text())
    name = file_of(copied, "encoder").name
    manifest["files"][name]["sha256"] = "0" * 64
    (copied / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"expected text encoder file {name} .* the manifest names one with 000"):
        open_bundle(copied)
    del manifest["files"][name]
    (copied / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"expected text encoder file {name} .* the manifest names none"):
        open_bundle(copied)


def test_a_service_without_the_extra_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """At /readyz, with what to install."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with serving_runtime(Runtime(Settings(bundle=bundle.path, num_threads=1))) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "i2moe-service[text]" in answer.text


def test_export_refuses_an_encoder_that_changed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And leaves nothing."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    with file_of(copied, "encoder").open("ab") as file:
        file.write(b"x")
    assert export([str(copied), "--out", str(tmp_path / "bundle")]) == 1
    assert "it has changed" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
    file_of(copied, "encoder").unlink()
    with pytest.raises(DataError, match="expected a text encoder's file"):
        evaluate_file(load_checkpoint(copied), run.parent / "table.csv")


def test_a_run_is_resumed_with_its_own_encoder_alone(tmp_path: Path) -> None:
    """Another one in the recipe's folder is told, and the same goes on."""
    folder = write_data(tmp_path)
    write_tiny_encoder(folder / "encoder")
    fit(text_recipe(), folder, folder / "run")
    shutil.copytree(folder / "run", folder / "again")
    for name in ("checkpoint.pt", "metrics.json"):
        (folder / "again" / name).unlink()
    fit(text_recipe(), folder, folder / "again", resume=True)
    (folder / "again" / "checkpoint.pt").unlink()
    write_tiny_encoder(folder / "encoder", vectors=[(1.0, 2.0)] * 6)
    with pytest.raises(RunError, match="was started with another text encoder: expected encoder-"):
        fit(text_recipe(), folder, folder / "again", resume=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"path": None}, "needs the path of a folder with model.onnx and tokenizer.json"),
        ({"min_count": 2}, "min_count: no option of encoder onnx"),
        ({"encoder": "tfidf"}, "max_chunks, max_tokens, normalise, path: no option of encoder tfidf"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_options_belong_to_their_encoder(changes: Any, told: str) -> None:
    """One of the other encoder is a mistake, told by its name."""
    note = {key: value for key, value in (NOTE | changes).items() if value is not None}
    with pytest.raises(RecipeError, match=told):
        recipe(modalities=MODALITIES | {"note": {"text": note}})


def test_a_recipe_whose_encoder_is_not_there_leaves_no_run(tmp_path: Path) -> None:
    """The path and the column are told."""
    folder = write_data(tmp_path)
    with pytest.raises(DataError, match=r"column note: .*model.onnx: expected a text encoder's file"):
        fit(text_recipe(), folder, folder / "run")
    assert not (folder / "run").exists()


MINILM = "I2MOE_TEST_MINILM"  # a folder with MiniLM's model.onnx and tokenizer.json; docs/text.md says how to make it


def test_minilm_knows_what_texts_are_about(tmp_path: Path) -> None:
    """A real encoder: like texts are near each other, whatever is embedded beside them."""
    if not (folder := os.environ.get(MINILM)):
        pytest.skip(f"{MINILM} names no folder with a real encoder, which is no part of this project")
    feature = tiny_feature(Path(folder), dimension=384, normalise=True, max_tokens=256, max_chunks=4)
    texts = ["acute kidney injury on dialysis", "renal failure, haemodialysis started", "fractured wrist after a fall"]
    texts.append("The patient was seen by the team. " * 400)
    schema = FeatureSchema(modalities=(Modality(name="text", features=(feature,)),))
    _, ahead = embed_ahead(schema, {("text", "note"): texts}, num_threads=4).embedded[0]
    vectors = np.stack([np.asarray(feature.encode(text)[0]) for text in texts])
    np.testing.assert_array_equal(vectors, np.stack([np.asarray(ahead.encode(text)[0]) for text in texts]))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    alike, unlike = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert alike > 0.5 > unlike
    assert feature.encode(texts[-1])[1] == "is too long: its first 1016 of 3200 tokens were read"
