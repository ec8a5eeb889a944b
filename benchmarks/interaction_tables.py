"""What runs on planted data say together: tables per objective and per data set, and a heatmap.

Works on the documents that runs leave (benchmarks/interactions.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.interaction_scores import calibration_error, dominant, stability
from benchmarks.results import table

Document = Mapping[str, Any]
FIGURES = ("right", "top1", "mixture_top1", "lowest_group", "true_share", "ece", "stability", "gap", "seconds", "equal_share_gap")


def mean(values: Iterable[float]) -> float | None:
    """The mean of what is there; None where nothing is."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else None


def by(documents: Iterable[Document], *keys: str) -> dict[tuple[str, ...], list[Document]]:
    """Documents by their values of some keys, in order of appearance."""
    groups: dict[tuple[str, ...], list[Document]] = {}
    for document in documents:
        groups.setdefault(tuple(document[key] for key in keys), []).append(document)
    return groups


def mean_shares(documents: Sequence[Document]) -> dict[str, list[float]]:
    """Mean contribution shares over seeds of one data set, (E,) per true expert; "" where there is none."""
    of_seeds = [d.get("groups") or {"": d["mean_share"]} for d in documents]
    return {group: np.mean([shares[group] for shares in of_seeds], axis=0).tolist() for group in of_seeds[0]}


def seed_stability(documents: Sequence[Document]) -> float:
    """Stability over the seeds of one data set, mean over its true experts."""
    of_seeds = [d.get("groups") or {"": d["mean_share"]} for d in documents]
    return float(np.mean([stability([shares[group] for shares in of_seeds]) for group in of_seeds[0]]))


def summary(documents: Sequence[Document]) -> dict[str, float | None]:
    """The figures of one objective's runs: means over data sets and seeds, of a mixture over its true experts first."""
    scored = [d for d in documents if "groups" in d]
    bins = [d["bins"] for d in scored]
    mixtures = [d for d in scored if len(d["groups"]) > 1]
    figures = {
        "right": mean(np.mean(list(d["right"].values())) for d in scored),
        "top1": mean(np.mean(list(d["top1"].values())) for d in scored),
        "mixture_top1": mean(np.mean(list(d["top1"].values())) for d in mixtures),
        "lowest_group": lowest_group(mixtures),
        "true_share": mean(d["true_share"] for d in scored),
        "ece": calibration_error(np.sum(bins, axis=0)) if bins else None,
        "stability": mean(seed_stability(runs) for runs in by(documents, "data").values()),
        "gap": mean(d["ceiling"] - d["score"] for d in documents),
        "seconds": mean(d["seconds"] for d in documents),
        "equal_share_gap": mean(d["equal_share_gap"] for d in documents if "equal_share_gap" in d),
    }
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def lowest_group(mixtures: Sequence[Document]) -> float | None:
    """Of all true experts of all mixtures the lowest top-1, mean over seeds."""
    rates = [
        float(np.mean([d["top1"][group] for d in runs])) for runs in by(mixtures, "data").values() for group in runs[0]["top1"]
    ]
    return min(rates) if rates else None


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def objective_table(documents: Sequence[Document]) -> str:
    """One row per objective."""
    heading = [
        "objective",
        "right",
        "top-1",
        "top-1 in mixtures",
        "its lowest group",
        "true share",
        "ECE",
        "stability",
        "ceiling - score",
    ]
    rows = []
    for (name,), runs in by(documents, "objective").items():
        figures = summary(runs)
        rows.append([name, *(number(figures[key]) for key in FIGURES)])
    return table([*heading, "seconds", "additive: from equal"], rows)


def data_table(documents: Sequence[Document]) -> str:
    """One row per data set and objective; `read as` are the dominant experts of mean shares over seeds, per true expert."""
    heading = ["data", "objective", "read as", "right", "top-1", "true share", "ECE", "stability", "score", "ceiling"]
    rows = []
    for (data, objective), runs in sorted(by(documents, "data", "objective").items(), key=_order(documents)):
        figures = summary(runs)
        read = ", ".join(_read(group, shares, runs[0]["experts"]) for group, shares in mean_shares(runs).items())
        told = [number(figures[key]) for key in ("right", "top1", "true_share", "ece", "stability")]
        means = [number(mean(d[key] for d in runs)) for key in ("score", "ceiling")]
        rows.append([data, objective, read, *told, *means])
    return table(heading, rows)


def _order(documents: Sequence[Document]) -> Any:
    names = list(dict.fromkeys(d["data"] for d in documents))
    return lambda item: names.index(item[0][0])


def _read(group: str, shares: Sequence[float], experts: Sequence[str]) -> str:
    return f"{group or 'additive'} -> {dominant(shares, experts)} {max(shares):.2f}"


def heatmap_rows(documents: Sequence[Document]) -> list[tuple[str, str, dict[str, float]]]:
    """Label, true expert and mean share by expert: one row per data set and true expert, of one objective."""
    rows = []
    for (data,), runs in by(documents, "data").items():
        shares = mean_shares(runs)
        for group, values in shares.items():
            label = f"{data}: {group}" if len(shares) > 1 else data
            rows.append((label, group, dict(zip(runs[0]["experts"], values, strict=True))))
    return rows


def draw(documents: Sequence[Document], paths: Sequence[Path]) -> None:
    """Mean shares, data set x expert, one panel per objective; the true expert has a frame, absent experts are blank."""
    from matplotlib.figure import Figure

    panels = {name: heatmap_rows(runs) for (name,), runs in by(documents, "objective").items()}
    found = {expert for rows in panels.values() for _, _, shares in rows for expert in shares}
    experts = [*sorted(found - {"synergy", "redundancy"}), *(e for e in ("synergy", "redundancy") if e in found)]
    num_rows = max(len(rows) for rows in panels.values())
    figure = Figure(figsize=(3 + (0.55 * len(experts) + 0.3) * len(panels), 1.6 + 0.26 * num_rows), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (name, rows) in zip(axes, panels.items(), strict=True):
        image = _draw_panel(panel, name, rows, experts)
    figure.colorbar(image, ax=axes, label="mean contribution share", shrink=0.6)
    for path in paths:
        figure.savefig(path, dpi=120)


def _draw_panel(panel: Any, name: str, rows: Sequence[tuple[str, str, Mapping[str, float]]], experts: Sequence[str]) -> Any:
    from matplotlib.patches import Rectangle

    values = np.array([[shares.get(expert, np.nan) for expert in experts] for _, _, shares in rows])
    image = panel.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    panel.set_title(name, fontsize=9)
    panel.set_xticks(range(len(experts)), experts, rotation=90, fontsize=7)
    panel.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=7)
    for y, (_, truth, _) in enumerate(rows):
        for x, expert in enumerate(experts):
            if not np.isnan(values[y, x]):
                panel.text(x, y, f"{values[y, x]:.2f}", ha="center", va="center", fontsize=5.5)
            if expert == truth:
                panel.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="crimson", linewidth=1.5))
    return image
