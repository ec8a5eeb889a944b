"""`python -m service.audit report URL`: what predictions were worth by their outcomes, as GET /metrics exports it."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from service.audit.entries import AuditError
from service.audit.figures import Figures, figures_by_model

_MAX_DAYS = 36_500  # a century; calendars end
_OF_95_PERCENT = 1.96  # standard errors to either side
_HEADER = f"{'model':32} {'outcomes':>8} {'events':>7} {'AUROC':>7} {'+-':>6} {'Brier':>7} {'observed - expected':>20}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; answers the exit status."""
    options = _parser().parse_args(arguments)
    try:
        from service.audit.store import PredictionStore  # says what to install where that is missing

        store = PredictionStore(options.url, keep_days=options.days, must_exist=True)
        try:
            until = datetime.now(UTC) - timedelta(days=options.delay_days)
            found = figures_by_model(store.judged(until - timedelta(days=options.days), until))
        finally:
            store.close()
    except (AuditError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(_as_json(found) if options.json else _as_table(found, options.days))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.audit", description=__doc__)
    report = parser.add_subparsers(required=True).add_parser("report", help="figures by model")
    report.add_argument("url", help="the store, as in I2MOE_AUDIT_URL")
    report.add_argument("--days", type=_days, default=90.0, help="how far back predictions count (default: 90)")
    report.add_argument("--delay-days", type=_days, default=0.0, help="how old they must be, as I2MOE_OUTCOMES_DELAY_DAYS")
    report.add_argument("--json", action="store_true", help="for a program")
    return parser


def _days(text: str) -> float:
    """Raises `ValueError`, which argparse words."""
    if not 0 <= (days := float(text)) <= _MAX_DAYS:
        raise ValueError
    return days


def _as_json(found: dict[tuple[str, str], Figures]) -> str:
    models = [
        {"name": name, "version": version, **{key: _finite(value) for key, value in asdict(told).items()}}
        for (name, version), told in found.items()
    ]
    return json.dumps({"models": models}, indent=2)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _as_table(found: dict[tuple[str, str], Figures], days: float) -> str:
    if not found:
        return f"no prediction of these {days:g} days has an outcome"
    lines = [f"{f'{name} {version}':32} {_row(told)}" for (name, version), told in found.items()]
    return "\n".join([_HEADER, *lines])


def _row(told: Figures) -> str:
    auroc = f"{told.auroc:7.3f} {_OF_95_PERCENT * told.auroc_error:6.3f}"
    return f"{told.count:8d} {told.events:7d} {auroc} {told.brier:7.3f} {told.calibration:+20.3f}"


if __name__ == "__main__":
    sys.exit(main())
