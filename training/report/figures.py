"""The report's three figures: training, discrimination and calibration, experts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn import metrics as sk

from service.bundle.explanation import Explanation, Floats
from service.bundle.manifest import DatasetExplanation, ExpertInfo, TaskInfo
from training.evaluation import Evaluation
from training.report.curves import Versus, one_vs_rest, reliability
from training.report.metrics import metric_title
from training.report.style import (
    BLACK,
    BLUE,
    CURVE_COLORS,
    GREY,
    LINE_STYLES,
    ORANGE,
    VERMILLION,
    Picture,
    add_legend,
    dress,
    expert_colors,
    new_figure,
    picture,
    plain,
)
from training.tasks.metrics import ECE_BINS

_BODY_ALPHA = 0.35
_HEADROOM = 0.4  # above the curves, for the legend
_SLANT = 25  # degrees, of expert names below an axis
_MAX_DOTS = 2000  # more are an image inside the figure: every dot of an SVG costs 100 bytes
_DIGITS = 6  # values closer than this are one value: a density of nearly equal ones has no width


def validation_metrics(selection: str, known: Iterable[str]) -> list[str]:
    """The two validation curves shown, of those `known`: what chose the epoch first, then AUROC and log loss."""
    names = list(known)
    return [name for name in dict.fromkeys((selection, "auroc", "log_loss", *names)) if name in names][:2]


def draw_training(
    history: Sequence[Mapping[str, Any]], experts: Sequence[ExpertInfo], selection: str, best_epoch: int
) -> Picture | None:
    """Losses and validation values by epoch; None without a history. Epochs count from 1, as on the terminal."""
    if not history:
        return None
    epochs = [entry["epoch"] + 1 for entry in history]
    figure = new_figure(5.8)
    axes = figure.subplots(2, 2, sharex=True)
    for name, label, color, style in (
        ("loss", "total", BLUE, "solid"),
        ("task_loss", "task only", ORANGE, "dashed"),
    ):
        axes[0, 0].plot(epochs, [entry[name] for entry in history], color=color, linestyle=style, label=label)
    dress(axes[0, 0], "Training loss", y_label="loss")
    _draw_interaction(axes[0, 1], epochs, history, experts)
    for panel, metric in zip(axes[1], validation_metrics(selection, history[0]["validation"]), strict=False):
        panel.plot(epochs, [entry["validation"][metric] for entry in history], color=VERMILLION, marker=".")
        dress(panel, f"Validation {metric_title(metric)}", x_label="epoch", y_label=metric_title(metric))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes.flat:
        _mark_epoch(panel, best_epoch + 1, named=panel is axes[1, 0])
    add_legend(axes[0, 0])
    add_legend(axes[1, 0])
    return picture(figure, _training_alt(history, selection, best_epoch))


def _draw_interaction(axes: Axes, epochs: list[int], history: Sequence[Mapping[str, Any]], experts: Sequence[ExpertInfo]) -> None:
    if not history[0]["interaction"]:
        axes.text(0.5, 0.5, "none in this training", transform=axes.transAxes, ha="center", color=GREY)
        dress(axes, "Interaction loss of each expert", y_label="loss")
        return
    for e, (expert, color) in enumerate(zip(experts, expert_colors(experts), strict=True)):
        values = [entry["interaction"][expert.name] for entry in history]
        axes.plot(epochs, values, color=color, linestyle=LINE_STYLES[e % len(LINE_STYLES)], label=expert.name)
    dress(axes, "Interaction loss of each expert", y_label="loss")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + _HEADROOM * (high - low))
    add_legend(axes, "upper right", num_columns=2)


def _mark_epoch(axes: Axes, epoch: int, *, named: bool) -> None:
    label = f"best epoch: {epoch}" if named else None
    axes.axvline(epoch, color=GREY, linestyle="dashed", linewidth=1, label=label)


def _training_alt(history: Sequence[Mapping[str, Any]], selection: str, best_epoch: int) -> str:
    first, last = history[0], history[-1]
    interaction = "interaction losses" if first["interaction"] else "no interaction losses"
    told = [f"Training loss, {interaction} and validation curves over {len(history)} epochs."]
    told.append(f"The total loss goes from {first['loss']:.3f} to {last['loss']:.3f}.")
    if best := next((entry for entry in history if entry["epoch"] == best_epoch), None):
        value = best["validation"][selection]
        told.append(f"Validation {metric_title(selection)} is best at epoch {best_epoch + 1}, {value:.3f}.")
    return " ".join(told)


def draw_quality(evaluation: Evaluation, task: TaskInfo) -> Picture:
    """Regression: predicted against true values and errors. Else ROC curves and calibration."""
    return _draw_errors(evaluation) if task.kind == "regression" else _draw_curves(evaluation, task)


def _draw_errors(evaluation: Evaluation) -> Picture:
    predicted, true = evaluation.output.prediction[:, 0], evaluation.target.reshape(-1)
    figure = new_figure(4.4)
    values, errors = figure.subplots(1, 2)
    values.scatter(true, predicted, s=8, color=BLUE, alpha=0.5, linewidths=0, rasterized=len(true) > _MAX_DOTS)
    values.axline((float(true.mean()), float(true.mean())), slope=1, color=GREY, linewidth=1, linestyle="dotted")
    errors.hist(predicted - true, bins=30, color=BLUE, alpha=0.6)
    errors.axvline(0, color=GREY, linewidth=1, linestyle="dotted")
    dress(values, "Predicted and true, test rows", x_label="true", y_label="predicted")
    dress(errors, "Error, test rows", x_label="predicted - true", y_label="rows")
    told = f"The mean error is {float((predicted - true).mean()):.3f} over {len(true)} test rows."
    return picture(figure, f"Predicted against true values, and a histogram of the errors. {told}")


def _draw_curves(evaluation: Evaluation, task: TaskInfo) -> Picture:
    curves = one_vs_rest(evaluation, task)
    figure = new_figure(5.2)
    grid = figure.add_gridspec(4, 2)
    roc, histogram = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[3, 1])
    calibration = figure.add_subplot(grid[:3, 1], sharex=histogram)
    for curve, color in zip(curves, CURVE_COLORS, strict=False):
        _draw_roc(roc, curve, color)
        _draw_reliability(calibration, curve, color, with_interval=len(curves) == 1)
        _draw_histogram(histogram, curve, color, filled=len(curves) == 1)
    for panel in (roc, calibration):
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="dotted")
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    dress(roc, "ROC curve, test rows", x_label="false positive rate", y_label="true positive rate")
    dress(calibration, "Calibration, test rows", y_label="observed rate")
    dress(histogram, "", x_label="stated probability", y_label="rows")
    calibration.tick_params(labelbottom=False)
    add_legend(roc, "lower right")
    return picture(figure, _quality_alt(evaluation, curves))


def _draw_roc(axes: Axes, curve: Versus, color: str) -> None:
    false_rate, true_rate, _ = sk.roc_curve(curve.observed, curve.stated)
    area = sk.auc(false_rate, true_rate)
    axes.plot(false_rate, true_rate, color=color, label=plain(f"AUROC {area:.3f}: {curve.label}"))


def _draw_reliability(axes: Axes, curve: Versus, color: str, *, with_interval: bool) -> None:
    bins = reliability(curve)
    if with_interval:
        axes.vlines(bins.stated, bins.low, bins.high, color=color, linewidth=1.2, alpha=0.6)
    axes.plot(bins.stated, bins.observed, color=color, marker="o", markersize=4, linewidth=1.2)


def _draw_histogram(axes: Axes, curve: Versus, color: str, *, filled: bool) -> None:
    edges = np.linspace(0, 1, ECE_BINS + 1).tolist()
    axes.hist(curve.stated, bins=edges, histtype="stepfilled" if filled else "step", color=color, alpha=0.6 if filled else 1)


def _quality_alt(evaluation: Evaluation, curves: Sequence[Versus]) -> str:
    areas = ", ".join(f"{c.label} {sk.roc_auc_score(c.observed, c.stated):.3f}" for c in curves)
    ece = evaluation.metrics.get("ece")
    told = f" The expected calibration error is {ece.value:.3f}." if ece else ""
    return f"ROC curves (area: {areas}) and calibration curves with a histogram of {len(evaluation.target)} test rows.{told}"


def draw_experts(explanation: Explanation, summary: DatasetExplanation, experts: Sequence[ExpertInfo]) -> Picture:
    """Violins of every expert's weights (the paper's Figure 4) beside those of its contribution shares."""
    figure = new_figure(4.4)
    weight, share = figure.subplots(1, 2, sharey=True)
    _draw_violins(weight, explanation.weight, experts)
    _draw_violins(share, explanation.share, experts)
    dress(weight, "Expert weights")
    dress(share, "Contribution shares")
    weight.set_ylim(bottom=0)
    means = "; ".join(f"{e.name} {e.weight.mean:.2f} and {e.contribution_share.mean:.2f}" for e in summary.experts)
    return picture(figure, f"Violins of expert weights and contribution shares, test rows. Means of weight and share: {means}.")


def _draw_violins(axes: Axes, values_BE: Floats, experts: Sequence[ExpertInfo]) -> None:
    columns = [np.round(column, _DIGITS) for column in values_BE.T.astype(np.float64)]
    positions = range(1, len(columns) + 1)
    parts: dict[str, Any] = axes.violinplot(columns, positions, showextrema=False, widths=0.8)
    for body, column, position, color in zip(parts["bodies"], columns, positions, expert_colors(experts), strict=True):
        body.set(facecolor=color, edgecolor=color, alpha=_BODY_ALPHA)
        low, middle, high = np.quantile(column, [0.25, 0.5, 0.75])
        axes.vlines(position, low, high, color=color, linewidth=5)
        axes.plot(position, middle, marker="o", color="white", markeredgecolor=color, markersize=5)
    axes.axhline(1 / len(columns), color=BLACK, linestyle="dotted", linewidth=1)
    axes.set_xticks(positions, [expert.name for expert in experts], rotation=_SLANT, ha="right", rotation_mode="anchor")
