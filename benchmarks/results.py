"""Real results: I2MoE, the same backbones alone, baselines, ablations, LightGBM and logistic regression on the same rows.

    python -m benchmarks.results RECIPE.toml --seeds 0-2 --out runs/results/NAME [--variants FILE.toml ...] [--only WORDS]

Every variant is trained as `python -m training sweep` trains it, into folders of --out, and what is finished is not run
again. A seed decides initialisation and, as the recipe says, the split. Prints tables (test rows): every model's metrics,
mean and standard deviation over seeds; how the experts behave and agree, and how well they match their parts of the evidence,
where they were given any; and the differences that matter, paired by
seed, with 95 % intervals. The last line is JSON.

The intervals are t-intervals with the variance of Nadeau and Bengio, "Inference for the generalization error", Machine
Learning 52 (2003): (1/k + tests/trains) s^2 for k resampled splits, because their training rows overlap.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import classical
from training.__main__ import fit_or_resume
from training.checkpoint import METRICS_FILE
from training.data.dataset import load_dataset
from training.evaluation import read_metrics, write_metrics
from training.files import write_text
from training.recipe import RECIPE_FILE, load_recipe
from training.sweep import Setting, is_finished, parse_seeds, read_variants, runs, sweep
from training.tasks import Classification

VARIANTS = Path("training/recipes/variants/backbones.toml")
SHOWN = {
    "binary": ("auroc", "auprc", "brier", "ece", "ece_debiased", "accuracy"),
    "multiclass": ("accuracy", "log_loss", "brier", "ece", "auroc"),
}
Document = Mapping[str, Any]


def settings(paths: Iterable[Path], only: str, recipe: Path, overrides: Sequence[str]) -> list[Setting]:
    """The wanted variants of all files; of variants that are the same recipe, the first."""
    grid = [setting for path in paths for setting in read_variants(path) if re.search(only, name_of(setting))]
    planned = runs(recipe, grid, [0], Path(), overrides)
    first = {one.model_dump_json(): setting for setting, one, _ in reversed(planned)}
    return [setting for setting in grid if setting in first.values()]


def name_of(setting: Setting) -> str:
    return setting.values[0][1]


def classical_folder(out: Path, model: str, seed: int) -> Path:
    return out / f"{model}_seed-{seed}".replace(" ", "-")


def run_classical(recipe: Path, seeds: Sequence[int], out: Path, overrides: Sequence[str]) -> None:
    """LightGBM and logistic regression, each into a folder with a metrics.json and the recipe of its rows, like a run's."""
    for seed in seeds:
        one = load_recipe(recipe, [*overrides, f"train.seed={seed}"])
        wanted = {m: classical_folder(out, m, seed) for m in classical.MODELS}
        wanted = {name: folder for name, folder in wanted.items() if not is_finished(one, folder)}
        if not wanted:
            continue
        dataset = load_dataset(one.data, recipe.parent.absolute(), seed=seed, missing=one.model.missing)
        _, target = dataset.part("test")
        for name, folder in wanted.items():
            started = time.monotonic()
            prediction = classical.MODELS[name](dataset, seed)
            seconds = round(time.monotonic() - started, 1)
            metrics = {m: {"value": f(prediction, target, dataset.task)} for m, f in Classification.metrics.items()}
            rows = {split: len(indices) for split, indices in dataset.splits.items()}
            folder.mkdir(parents=True, exist_ok=True)
            document = {"splits": {"test": {"metrics": metrics}}, "provenance": {"num_rows": rows, "training_seconds": seconds}}
            write_text(one.model_dump_json(indent=1), folder / RECIPE_FILE)
            write_metrics(document, folder / METRICS_FILE)
            print(f"run {folder.name}", file=sys.stderr, flush=True)


def values(documents: Sequence[Document], metric: str) -> np.ndarray:
    return np.array([d["splits"]["test"]["metrics"][metric]["value"] for d in documents])


def interval(difference_K: np.ndarray, documents: Sequence[Document]) -> tuple[float, float]:
    """Half the width of the 95 % interval of a mean over resampled splits, and the two-sided p value."""
    num_rows = documents[0]["provenance"]["num_rows"]
    k = len(difference_K)
    error = np.sqrt((1 / k + num_rows["test"] / num_rows["train"]) * difference_K.var(ddof=1))
    t = difference_K.mean() / error if error > 0 else 0.0
    return float(stats.t.ppf(0.975, k - 1) * error), float(2 * stats.t.sf(abs(t), k - 1))


def pairs(names: Sequence[str], reference: str) -> list[tuple[str, str]]:
    """I2MoE against the same backbone alone, and everything against the reference."""
    backbones = [n.removeprefix("I2MoE ") for n in names if n.startswith("I2MoE ")]
    own = [(f"I2MoE {b}", f"vanilla {b}") for b in backbones if f"vanilla {b}" in names]
    return own + [(reference, name) for name in names if name != reference and (reference, name) not in own]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def metrics_table(found: Mapping[str, Sequence[Document]], shown: Sequence[str]) -> str:
    def cell(documents: Sequence[Document], metric: str) -> str:
        v = values(documents, metric)
        return f"{v.mean():.4f} ± {v.std(ddof=1):.4f}" if len(v) > 1 else f"{v[0]:.4f}"

    def seconds(documents: Sequence[Document]) -> str:
        return f"{np.mean([d['provenance']['training_seconds'] for d in documents]):.0f}"

    rows = [[name, *(cell(documents, metric) for metric in shown), seconds(documents)] for name, documents in found.items()]
    return table(["model", *shown, "seconds"], rows)


def explanations(documents: Sequence[Document]) -> list[Document]:
    """The dataset-level explanations of models that have experts."""
    found = [d["splits"]["test"]["explanation"] for d in documents if "explanation" in d["splits"]["test"]]
    return [explanation for explanation in found if len(explanation["experts"]) > 1]


def experts_table(found: Mapping[str, Sequence[Document]]) -> str:
    """Per expert: mean weight, mean share of the contributions, how often it is dominant."""
    rows = []
    for name, documents in found.items():
        for experts in zip(*(e["experts"] for e in explanations(documents)), strict=True):
            figures = [(e["weight"]["mean"], e["contribution_share"]["mean"], e["dominant_rate"]) for e in experts]
            rows.append([name, experts[0]["name"], *(f"{figure:.3f}" for figure in np.mean(figures, axis=0))])
    return table(["model", "expert", "mean weight", "mean contribution share", "dominant in"], rows)


def agreement_table(found: Mapping[str, Sequence[Document]]) -> str:
    """Shares of rows by: do all experts name one label, and is the mixture right? (the paper's Table 3)."""
    keys = ("agree_correct", "agree_wrong", "disagree_correct", "disagree_wrong")
    rows = []
    for name, documents in found.items():
        if agreements := [e["agreement"] for e in explanations(documents) if e["agreement"]]:
            rows.append([name, *(f"{np.mean([a[key] for a in agreements]):.3f}" for key in keys)])
    return table(["model", *(key.replace("_", ", ") for key in keys)], rows)


def matching_table(found: Mapping[str, Sequence[Document]]) -> str:
    """How well experts say their parts of the evidence: R2 on validation rows, of models trained by the decomposition."""
    keys = ("r2_contributions", "r2_sum")
    told = {name: [d["provenance"].get("decomposition") for d in documents] for name, documents in found.items()}
    rows = [[n, *(f"{np.mean([p[key] for p in parts]):.3f}" for key in keys)] for n, parts in told.items() if all(parts)]
    return table(["model", "R2 of contributions", "R2 of their sum"], rows) if rows else ""


def differences(found: Mapping[str, Sequence[Document]], metric: str, reference: str) -> list[dict[str, Any]]:
    result = []
    for first, second in pairs(list(found), reference):
        difference_K = values(found[first], metric) - values(found[second], metric)
        half, p = interval(difference_K, found[first])
        result.append({"model": first, "minus": second, "metric": metric, "mean": difference_K.mean(), "half": half, "p": p})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--variants", type=Path, action="append")
    parser.add_argument("--only", default="", help="regular expression on the variants' names")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--reference", default="I2MoE transformer")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    seeds = parse_seeds(args.seeds)
    grid = settings(args.variants or [VARIANTS], args.only, args.recipe, args.overrides)
    sweep(args.recipe, grid, seeds, args.out, fit_or_resume, overrides=args.overrides, jobs=args.jobs)
    run_classical(args.recipe, seeds, args.out, args.overrides)
    names = {name_of(s): [read_metrics(args.out / s.folder(seed)) for seed in seeds] for s in grid}
    names |= {m: [read_metrics(classical_folder(args.out, m, seed)) for seed in seeds] for m in classical.MODELS}
    shown = SHOWN[load_recipe(args.recipe, args.overrides).data.task]
    compared = differences(names, shown[0], args.reference) if len(seeds) > 1 else []
    print(metrics_table(names, shown))
    print(experts_table(names))
    print(agreement_table(names))
    if matching := matching_table(names):
        print(matching)
    rows = [[d["model"], d["minus"], f"{d['mean']:+.4f} ± {d['half']:.4f}", f"{d['p']:.3f}"] for d in compared]
    print(table(["model", "minus", f"{shown[0]}, 95 % interval", "p"], rows))
    means = {name: {m: round(float(values(d, m).mean()), 4) for m in shown} for name, d in names.items()}
    versions = {"python": platform.python_version()} | {p: version(p) for p in ("torch", "lightgbm", "scikit-learn", "numpy")}
    document = {"benchmark": "results", "recipe": args.recipe.stem, "seeds": seeds, "models": means, "versions": versions}
    print(json.dumps(document | {"differences": [d | {"mean": round(d["mean"], 4)} for d in compared]}))


if __name__ == "__main__":
    main()
