"""Do the experts mean what they are called? Objectives on data sets whose interaction is known.

    python -m benchmarks.interactions --out runs/interactions [--quick] [--jobs 2] [--seeds 0-1]
        [--objectives REGEX] [--data REGEX]

Trains one configuration (benchmarks/planted_runs.py) under every objective on every data set with every seed, and explains
the test rows as the service does. Rows are drawn once per data set: seeds differ in initialisation and order alone. A run
is a JSON file in --out and is not run again while its settings are the same. Prints, per objective and per data set:

    right       dominant expert (largest mean contribution share over all rows) is the true one; of a mixture, within each true
                expert's rows
    top-1       rows whose own dominant expert is the true one, mean over true experts; rows in which noise hides a bit
                have no truth and count in "right" alone
    true share  mean contribution share of each row's true expert
    ECE         expected calibration error of the dominant share as the probability that the expert is the true one
    stability   mean over pairs of seeds of the Kendall correlation of mean shares, differences below 0.05 being ties
    score       accuracy or R2 beside the ceiling, which the answer before label noise reaches

and, for additive data, which no single expert explains, how far shares are from equal uniqueness (0 ideal, 1 worst). Leaves
heatmap.png and heatmap.svg; the last line is JSON.
"""

import argparse
import json
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.interaction_scores import score
from benchmarks.interaction_tables import data_table, draw, objective_table, summary
from benchmarks.planted_runs import RECIPE, SCORE, train_once
from training.data.planted import PlantedConfig
from training.files import write_text
from training.sweep import parse_seeds, side_by_side


def _paper(interaction_weight: float, **changes: Any) -> dict[str, Any]:
    values = {"kind": "paper", "interaction_weight": interaction_weight, **changes}
    return {f"objective.{key}": value for key, value in values.items()}


OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "decomposition": {"objective.kind": "decomposition"},
    "paper 0.5": _paper(0.5),
    "paper 0.01": _paper(0.01),
    "no interaction loss": _paper(0.0),
    "latent contrastive": _paper(0.5, on="latents"),
    "zero vector": _paper(0.5, masking="zero"),
    "mean vector": _paper(0.5, masking="mean"),
}


def _bits(*kinds: str, suffix: str = "", **changes: Any) -> dict[str, PlantedConfig]:
    """Classification data sets of some kinds, named by kind, number of modalities and what is special about them."""
    made = {kind: PlantedConfig(kind=kind, **changes) for kind in kinds}
    return {f"{kind} n={config.num_modalities}{suffix}": config for kind, config in made.items()}


def _numbers(*kinds: str, suffix: str = "", **changes: Any) -> dict[str, PlantedConfig]:
    """Regression data sets; less noise, so that the ceiling is close."""
    return _bits(*kinds, suffix=f" regression{suffix}", task="regression", noise=0.1, **changes)


QUICK_DATA_SETS: Mapping[str, PlantedConfig] = {
    **_bits("unique:m1", "redundancy", "xor", "and", "mixture", "additive"),
    **_numbers("unique:m1", "redundancy", "product"),
}
DATA_SETS: Mapping[str, PlantedConfig] = {
    **QUICK_DATA_SETS,
    **_bits("unique:m2", "xor", "mixture", suffix=" codebook", encoding="codebook"),
    **_bits("redundancy", suffix=" rotated", encoding="rotated"),
    **_numbers("product", suffix=" rotated", encoding="rotated"),
    **_bits("redundancy", "xor", "mixture", suffix=" noise 0.5", noise=0.5),
    **_bits("unique:m1", "xor", suffix=" label noise 0.1", label_noise=0.1),
    **_bits("unique:m2", "redundancy", "xor", "and", "mixture", "additive", num_modalities=3),
    **_bits("parity", num_modalities=3, num_rows=6000),  # with 3,000 the model itself does not learn it
    **_bits("unique:m3", suffix=" rotated", num_modalities=3, encoding="rotated"),
    **_numbers("unique:m2", "product", "additive", num_modalities=3),
    **_bits("unique:m4", "redundancy", "xor", "mixture", num_modalities=4),
    **_bits("redundancy", suffix=" codebook", num_modalities=4, encoding="codebook"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the benchmark."""

    data: str
    objective: str
    seed: int
    data_seed: int
    out: Path

    @property
    def path(self) -> Path:
        """The run's JSON file."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.data} {self.objective} rows {self.data_seed} seed {self.seed}")
        return self.out / f"{words}.json"

    def settings(self) -> dict[str, Any]:
        """Everything that decides the run's figures but the code."""
        names = {"data": self.data, "objective": self.objective, "seed": self.seed, "data_seed": self.data_seed}
        overrides = dict(OBJECTIVES[self.objective])
        return names | {"config": asdict(DATA_SETS[self.data]), "overrides": overrides, "recipe": dict(RECIPE)}


def finished(cell: Cell) -> dict[str, Any] | None:
    """The run's document, if it was run with these settings."""
    try:
        document: dict[str, Any] = json.loads(cell.path.read_text())
    except (OSError, ValueError):
        return None
    return document if all(document.get(key) == value for key, value in cell.settings().items()) else None


def run_cell(cell: Cell) -> None:
    """Train, score, write."""
    config = DATA_SETS[cell.data]
    run = train_once(config, OBJECTIVES[cell.objective], seed=cell.seed, data_seed=cell.data_seed)
    figures = {
        "metrics": dict(run.metrics),
        "score": run.metrics[SCORE[config.task]],
        "ceiling": run.ceiling,
        "seconds": round(run.seconds, 1),
    }
    document = cell.settings() | figures | score(run.explanation.share, run.truth, run.experts, config.whole)
    write_text(json.dumps(document, indent=1) + "\n", cell.path)


def run_all(cells: list[Cell], jobs: int) -> None:
    """What has not been run, `jobs` runs at a time, each on one thread."""
    wanted = [cell for cell in cells if finished(cell) is None]
    for count, position in enumerate(side_by_side(run_cell, [(cell,) for cell in wanted], jobs), start=1):
        print(f"{count} of {len(wanted)} {wanted[position].path.stem}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="two modalities, direct encoding only")
    parser.add_argument("--seeds", default="0-1")
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--objectives", default="", help="regular expression on the objectives' names")
    parser.add_argument("--data", default="", help="regular expression on the data sets' names")
    args = parser.parse_args()
    args.names = [name for name in OBJECTIVES if re.search(args.objectives, name)]
    args.data_names = [name for name in (QUICK_DATA_SETS if args.quick else DATA_SETS) if re.search(args.data, name)]
    if not args.names or not args.data_names:
        parser.error(f"found {len(args.names)} objectives and {len(args.data_names)} data sets; expected at least one of each")
    return args


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = parse_seeds(args.seeds)
    cells = [Cell(d, o, s, args.data_seed, args.out) for s in seeds for o in args.names for d in args.data_names]
    run_all(cells, args.jobs)
    documents = [document for cell in cells if (document := finished(cell))]
    print(objective_table(documents))
    print(data_table(documents))
    draw(documents, [args.out / "heatmap.png", args.out / "heatmap.svg"])
    summaries = {name: summary([d for d in documents if d["objective"] == name]) for name in args.names}
    versions = {"python": platform.python_version()} | {p: version(p) for p in ("torch", "numpy")}
    last = {"benchmark": "interactions", "seeds": seeds, "data_seed": args.data_seed, "data": args.data_names}
    print(json.dumps(last | {"objectives": summaries, "versions": versions}))


if __name__ == "__main__":
    main()
