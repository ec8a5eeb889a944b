"""What report.html promises: all sections, the evaluation's own figures, nothing from outside, nothing half-written."""

from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch

from service.bundle.explanation import calibrate, decide, explain, explain_dataset
from service.bundle.manifest import CalibrationInfo, MetricValue, TaskInfo
from service.bundle.output import Output
from service.bundle.schema import CategoricalFeature, FeatureSchema, Modality, NumericFeature
from training.checkpoint import Checkpoint
from training.data.dataset import Dataset
from training.evaluation import Evaluation, calibration_info
from training.model.build import build_model, expert_roles
from training.recipe import parse_recipe
from training.report import write_report
from training.report.curves import one_vs_rest, reliability
from training.tasks import make_task

SECTIONS = {"data", "quality", "training", "experts", "samples", "model-card", "origin"}
VOID_ELEMENTS = {"meta", "img", "br", "link", "input", "hr"}
PRIVATE = 271.828125  # a patient's value, which no report may show
EVIL = '<script>alert("x")</script>'
BINARY = TaskInfo(kind="binary", labels=("alive", "dead"), outcome="death within one year")
MULTICLASS = TaskInfo(kind="multiclass", labels=("_low", "$mid$", "high & dry"), outcome="stage")
SCHEMA = FeatureSchema(
    modalities=(
        Modality(name="labs", features=(NumericFeature(name="crea", unit="mg/dL", minimum=0.1, maximum=900.0),)),
        Modality(name="history", features=(CategoricalFeature(name="sex", vocabulary=("female", "male")),)),
    ),
    missing="learned",
)
NUM_ROWS = 60  # of each split


class Page(HTMLParser):
    """A parsed page: its text, tables and attributes. Fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.text, self.source = "", source
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ").strip("\n")

    def values(self, tag: str, attribute: str) -> list[str]:
        return [value for t, name, value in self.attributes if (t, name) == (tag, attribute)]

    def row(self, name: str, occurrence: int = 0) -> list[str]:
        """The cells after the heading of the table row called `name`."""
        return [row[1:] for row in self.rows if row and row[0] == name][occurrence]


@dataclass
class Run:
    """What `write_report` takes, for synthetic outputs."""

    checkpoint: Checkpoint
    dataset: Dataset
    evaluations: dict[str, Evaluation]
    history: list[dict[str, Any]] = field(default_factory=list)

    def page(self, folder: Path) -> Page:
        write_report(self.checkpoint, self.dataset, self.evaluations, self.history, folder / "report.html")
        return Page((folder / "report.html").read_text(encoding="utf-8"))


def make_checkpoint(task: TaskInfo) -> Checkpoint:
    recipe = parse_recipe(
        {
            "name": "tiny",
            "version": "2.3.4",
            "data": {
                "path": "rows.csv",
                "label": "y",
                "split": {"column": "split"},
                "modalities": {"labs": {"numeric": ["crea"]}, "history": {"categorical": ["sex"]}},
            },
            "model": {"hidden_dim": 8, "num_patches": 1, "num_layers": 1, "num_heads": 2},
            "model_card": dict.fromkeys(("intended_use", "population", "exclusions", "limits", "data", "licence"), "Tests."),
        },
        "recipe",
    )
    torch.manual_seed(0)
    model = build_model(recipe.model, SCHEMA, task).eval()
    model.calibration.scale.fill_(0.75)
    num_rows = dict.fromkeys(("train", "validation", "test"), NUM_ROWS)
    provenance = {
        "seed": 7,
        "num_rows": num_rows,
        "notes": [],
        "best_epoch": 1,
        "selection": "auroc",
        "versions": {"torch": "9.9.9"},
    }
    return Checkpoint(model, recipe, SCHEMA, task, provenance)


def make_dataset(task: TaskInfo, *, num_absent: int = 0) -> Dataset:
    num_rows = 3 * NUM_ROWS
    arrays = {name: np.full((num_rows, 1), PRIVATE, np.float32) for name in SCHEMA.names}
    splits = {name: np.arange(i * NUM_ROWS, (i + 1) * NUM_ROWS) for i, name in enumerate(("train", "validation", "test"))}
    arrays["labs"][splits["test"][:num_absent]] = np.nan
    target = np.arange(num_rows) % len(task.labels)
    return Dataset(SCHEMA, task, arrays, target, splits, ("5 of 185 rows dropped: no label",))


def make_output(target: np.ndarray[Any, Any], task: TaskInfo, calibration: CalibrationInfo, *, signal: float) -> Output:
    """Experts whose logits for the true label are `signal` above chance."""
    generator = np.random.default_rng(3)
    num_experts, num_labels = len(SCHEMA.modalities) + 2, len(task.labels)
    expert_logits = generator.normal(size=(len(target), num_experts, num_labels)) + signal * np.eye(num_labels)[target][:, None]
    weights = generator.dirichlet(np.full(num_experts, 8.0), size=len(target))
    logits = (weights[:, :, None] * expert_logits).sum(axis=1)
    return Output(*(a.astype(np.float32) for a in (calibrate(logits, task, calibration), logits, weights, expert_logits)))


def make_evaluation(checkpoint: Checkpoint, dataset: Dataset, split: str, *, signal: float = 1.0) -> Evaluation:
    target = dataset.part(split)[1]
    task, calibration, experts = checkpoint.task, calibration_info(checkpoint), expert_roles(SCHEMA)
    output = make_output(target, task, calibration, signal=signal)
    metrics = make_task(task).evaluate(output.prediction, target, num_bootstraps=5)
    explanation = explain_dataset(output, target, task=task, calibration=calibration, experts=experts, split=split)
    return Evaluation(output, target, metrics, explanation)


def make_run(task: TaskInfo = BINARY, *, num_absent: int = 0, signal: float = 1.0) -> Run:
    checkpoint, dataset = make_checkpoint(task), make_dataset(task, num_absent=num_absent)
    evaluations = {split: make_evaluation(checkpoint, dataset, split, signal=signal) for split in ("validation", "test")}
    interaction = {expert.name: 0.5 for expert in expert_roles(SCHEMA)}
    validation = dict.fromkeys(("auroc", "log_loss"), 0.625)
    epoch = {"loss": 0.75, "task_loss": 0.5, "interaction": interaction, "validation": validation}
    return Run(checkpoint, dataset, evaluations, [{"epoch": number, **epoch} for number in range(3)])


def make_other(run: Run, task: TaskInfo, target: np.ndarray[Any, Any], metrics: dict[str, MetricValue]) -> Run:
    """`run` with another kind of task; its experts know nothing of the target."""
    checkpoint, dataset, experts = make_checkpoint(task), replace(run.dataset, task=task, target=target), expert_roles(SCHEMA)
    calibration, test_target = calibration_info(checkpoint), dataset.part("test")[1]
    output = make_output(np.zeros(NUM_ROWS, int), task, calibration, signal=0.0)
    explanation = explain_dataset(output, test_target, task=task, calibration=calibration, experts=experts, split="test")
    evaluations = {split: Evaluation(output, dataset.part(split)[1], metrics, explanation) for split in ("validation", "test")}
    history = [{**entry, "validation": {"auroc": 0.5}} for entry in run.history]
    return Run(checkpoint, dataset, evaluations, history)


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run()


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return run.page(tmp_path_factory.mktemp("run"))


def test_page_has_every_section_and_the_warning(page: Page) -> None:
    """Every section stands, is reachable from the top, and the research-use warning is there."""
    assert set(page.values("section", "id")) == SECTIONS
    assert {f"#{name}" for name in SECTIONS} == set(page.values("a", "href"))
    assert "Research use, not for clinical decisions." in page.text
    assert "5 of 185 rows dropped: no label" in page.text
    assert "A weight is not an importance; a contribution is." in page.text
    assert "2.3.4" in page.text


def test_page_needs_nothing_from_outside(page: Page) -> None:
    """No script, no outside address, and a size that can be mailed."""
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    addresses = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "data", "action"}]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert len(page.source) < 2_000_000


def test_figures_are_described_and_ids_distinct(page: Page) -> None:
    """Three figures with alternative text that holds figures, and no element name twice."""
    alts = page.values("img", "alt")
    assert len(alts) == len(page.values("img", "src")) == 3
    assert all(any(c.isdigit() for c in alt) for alt in alts)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_metrics_are_those_of_the_evaluations(page: Page, run: Run) -> None:
    """Both splits' values and intervals stand in the table of metrics."""
    test, validation = (run.evaluations[split].metrics for split in ("test", "validation"))
    shown = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier score", "ece": "ECE", "accuracy": "accuracy", "f1": "F1"}
    for name, title in {**shown, "log_loss": "log loss"}.items():
        wanted = [f"{m[name].value:.3f} ({m[name].low:.3f} to {m[name].high:.3f})" for m in (test, validation)]
        assert page.row(title)[:2] == wanted


def test_expert_tables_are_those_of_the_evaluation(page: Page, run: Run) -> None:
    """Weights, contributions and agreement are the dataset-level explanation's."""
    explanation = run.evaluations["test"].explanation
    for expert in explanation.experts:
        assert page.row(expert.name) == [
            *(f"{v:.3f}" for v in (expert.weight.mean, *expert.weight_by_class.values())),
            f"{expert.weight.q05:.3f} to {expert.weight.q95:.3f}",
        ]
        assert page.row(expert.name, 1) == [
            *(f"{v:+.3f}" for v in (expert.contribution.mean, *expert.contribution_by_class.values())),
            *(f"{100 * v:.1f} %" for v in (expert.contribution_share.mean, expert.dominant_rate)),
        ]
    agreement = explanation.agreement
    assert agreement is not None
    assert page.row("all name one label")[:2] == [f"{100 * v:.1f} %" for v in (agreement.agree_correct, agreement.agree_wrong)]
    assert page.row("they disagree")[:2] == [f"{100 * v:.1f} %" for v in (agreement.disagree_correct, agreement.disagree_wrong)]


def test_origin_and_splits_are_told(page: Page) -> None:
    """Seed, versions, best epoch (from 1), calibration and the rows of each split."""
    assert page.row("train") == ["60", "50.0 %", "50.0 %"]
    assert page.row("dead")[0] == "0.750"
    assert "9.9.9" in page.text
    assert "best by AUROC is 2;" in page.text
    assert '"hidden_dim": 8' in page.text


def test_samples_follow_their_rules(page: Page, run: Run) -> None:
    """The row with the highest risk that is right comes first, with its experts' own figures."""
    test = run.evaluations["test"]
    explanation = explain(test.output, BINARY, calibration_info(run.checkpoint))
    risk = test.output.prediction[:, 1]
    row = int(np.where((test.target == 1) & (explanation.label == 1), risk, -1).argmax())
    assert f"Test row {row + 1}: the highest risk among rows with the event" in page.text
    weight, _, contribution, _, share, alone = page.row("synergy", 2)
    assert weight == f"{explanation.weight[row, 2]:.3f}"
    assert contribution == f"{explanation.contribution[row, 2]:+.3f}"
    assert share == f"{100 * explanation.share[row, 2]:.1f} %"
    assert alone == f"{explanation.expert_prediction[row, 2, 1]:.3f}"
    assert page.row("all experts")[-1] == f"{risk[row]:.3f}"
    chosen = [line.split(":")[0] for line in page.text.splitlines() if line.startswith("Test row ")]
    assert len(chosen) == len(set(chosen)) == 4


def test_sample_without_a_modality_is_shown_where_there_is_one(tmp_path: Path) -> None:
    """A row that lacks a modality is among the samples and says which."""
    page = make_run(num_absent=40).page(tmp_path)
    assert "Without a modality" in page.text
    assert "Without labs." in page.text
    assert page.row("labs")[2:] == ["0.0 %", "0.0 %", "66.7 %"]


def test_no_patient_is_in_the_page(page: Page) -> None:
    """Neither identifiers nor values of records are written."""
    assert "patient-" not in page.source
    assert "271.8" not in page.source


def test_text_is_escaped(tmp_path: Path) -> None:
    """A name, label or note cannot become markup."""
    run = make_run(BINARY.model_copy(update={"labels": ("alive", f"dead{EVIL}"), "outcome": f"death{EVIL}"}))
    recipe = run.checkpoint.recipe.model_copy(update={"name": f"tiny{EVIL}", "version": f'"{EVIL}'})
    run.checkpoint = replace(run.checkpoint, recipe=recipe)
    run.dataset = replace(run.dataset, notes=(f"note{EVIL}",))
    page = run.page(tmp_path)
    assert "script" not in page.tags
    assert {f"tiny{EVIL}", f"death{EVIL}", f"note{EVIL}"} <= {f"{part}{EVIL}" for part in page.text.replace(EVIL, "\n").split()}


def test_multiclass_is_one_against_the_rest(tmp_path: Path) -> None:
    """Every class has its curve and its columns, whatever signs are in its name."""
    run = make_run(MULTICLASS)
    page = run.page(tmp_path)
    assert [curve.label for curve in one_vs_rest(run.evaluations["test"], MULTICLASS)] == list(MULTICLASS.labels)
    assert page.row("split") == ["rows", *MULTICLASS.labels]
    assert "Most certain, right" in page.text
    assert "Each label against the rest" in page.text
    assert "$mid$" in page.values("img", "alt")[0]


def test_only_the_most_frequent_of_many_classes_are_drawn() -> None:
    """Seven curves are as many as a reader tells apart; a class without rows has none."""
    labels = tuple(f"class {c}" for c in range(11))
    target = np.repeat(np.arange(10), np.arange(2, 12))
    prediction = np.full((len(target), 11), 1 / 11, np.float32)
    output = Output(prediction, prediction, prediction[:, :4], prediction[:, None])
    evaluation = replace(make_run().evaluations["test"], output=output, target=target)
    curves = one_vs_rest(evaluation, MULTICLASS.model_copy(update={"labels": labels}))
    assert [curve.label for curve in curves] == list(labels[3:10])
    assert [int(curve.observed.sum()) for curve in curves] == [5, 6, 7, 8, 9, 10, 11]


def test_multilabel_rows_may_have_several_labels(tmp_path: Path) -> None:
    """A row's true labels are all told, and its probabilities are sigmoids."""
    run = make_run()
    task = TaskInfo(kind="multilabel", labels=("drama", "crime"), outcome="genre")
    target = np.stack([np.arange(3 * NUM_ROWS) % 2, np.arange(3 * NUM_ROWS) % 3 == 0], axis=1).astype(np.int64)
    page = make_other(run, task, target, {"f1": MetricValue(value=0.5)}).page(tmp_path)
    assert page.row("test") == ["60", "50.0 %", "33.3 %"]
    assert page.row("F1")[:2] == ["0.500", "0.500"]
    assert "true drama and crime" in page.text
    assert "sigmoid(scale" in page.text


def test_regression_shows_errors_instead_of_classes(tmp_path: Path) -> None:
    """A value has a mean and an error, no curve, class, agreement or calibration."""
    task = TaskInfo(kind="regression", labels=("score",), outcome="score", training_mean=0.5)
    target = np.linspace(-1, 1, 3 * NUM_ROWS)
    run = make_other(make_run(), task, target, {"mae": MetricValue(value=0.25, low=0.125, high=0.375)})
    page = run.page(tmp_path)
    assert page.row("MAE")[0] == "0.250 (0.125 to 0.375)"
    assert page.row("split") == ["rows", "mean", "standard deviation"]
    assert "Farthest off" in page.text
    assert "training mean of 0.500" in page.text
    assert "softmax" not in page.text
    assert "Do the experts agree" not in page.text


def test_reliability_bins_are_those_of_the_calibration_error(run: Run) -> None:
    """The plotted gaps, weighted by their rows, are the ECE of the table."""
    test = run.evaluations["test"]
    (curve,) = one_vs_rest(test, BINARY)
    bins = reliability(curve)
    gap = (np.abs(bins.stated - bins.observed) * bins.count).sum() / bins.count.sum()
    assert gap == pytest.approx(test.metrics["ece"].value, abs=1e-6)
    assert (bins.low <= bins.observed).all()
    assert (bins.observed <= bins.high).all()


def test_perfect_model_without_history_still_has_a_page(tmp_path: Path) -> None:
    """No wrong row, equal weights, no history: what cannot be shown is left out."""
    run = make_run(signal=50.0)
    test = run.evaluations["test"]
    assert (decide(test.output.prediction, BINARY) == test.target).all()
    run.evaluations["test"] = replace(test, output=replace(test.output, expert_weights=np.full((NUM_ROWS, 4), 0.25, np.float32)))
    run.history = []
    page = run.page(tmp_path)
    assert "Most certain, wrong" not in page.text
    assert "No history was kept." in page.text


def test_a_run_without_interaction_losses_has_a_page(run: Run, tmp_path: Path) -> None:
    """With an interaction weight of 0 there are none to draw: the figure and the text say so."""
    history = [{**entry, "interaction": {}} for entry in run.history]
    objective = run.checkpoint.recipe.objective.model_copy(update={"interaction_weight": 0.0})
    checkpoint = replace(run.checkpoint, recipe=run.checkpoint.recipe.model_copy(update={"objective": objective}))
    page = replace(run, checkpoint=checkpoint, history=history).page(tmp_path)
    assert any("no interaction losses" in alt for alt in page.values("img", "alt"))
    assert "This run trained without them (interaction weight 0)." in page.text


def test_drawing_leaves_matplotlib_as_it_was(run: Run, tmp_path: Path) -> None:
    """A report changes no setting of the process that asked for it."""
    before = mpl.rcParams.copy()
    run.page(tmp_path)
    assert mpl.rcParams.copy() == before


def test_failed_write_leaves_nothing(run: Run, tmp_path: Path) -> None:
    """When the page cannot take its place, no part of it stays."""
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        run.page(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_failed_page_keeps_the_one_before(run: Run, tmp_path: Path) -> None:
    """A page that cannot be made does not touch the file."""
    (tmp_path / "report.html").write_text("before")
    with pytest.raises(KeyError):
        replace(run, evaluations={}).page(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.html": "before"}
