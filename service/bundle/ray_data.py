"""The same scoring on Ray Data: several workers or machines, for a history that one machine would take a night for.

    python -m service.bundle predict BUNDLE history/ --out risks/ --ray 8

Ray reads parquet files (local, or any storage that pyarrow knows), hands batches to workers that each hold the model once, and
writes parquet files into a folder: the rows of a single machine's table, in the same order. The bundle's folder and this package
must be where the workers are. An optional extra: `pip install "i2moe-service[ray]"`.
"""

import os
from pathlib import Path

import pyarrow as pa

from service.bundle.encoding import encode_table
from service.bundle.machine import usable_cpus
from service.bundle.prediction_files import tabulate
from service.bundle.predictor import Predictor, ProviderChoice
from service.bundle.score import score_batch
from service.bundle.store import open_bundle
from service.bundle.tables import TableError


class Scorer:
    """One worker: opens the bundle once, then scores batches."""

    def __init__(self, bundle: str, provider: ProviderChoice, batch_size: int) -> None:
        self._batch_size = batch_size
        self._predictor = Predictor(open_bundle(Path(bundle)), provider=provider)
        self._predictor.replay_example()
        self._experts = [expert.name for expert in self._predictor.manifest.experts]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The answers to some rows, as `prediction_files` tabulates them."""
        schema, parts = self._predictor.manifest.features, rows.combine_chunks().to_batches(max_chunksize=self._batch_size)
        told = [tabulate(score_batch(self._predictor, encode_table(part, schema)), self._experts) for part in parts]
        return pa.Table.from_batches([tabulate([], self._experts), *told])


def predict_on_ray(
    bundle: Path, source: str, out: Path, *, num_workers: int, batch_size: int, provider: ProviderChoice
) -> dict[str, int]:
    """Score parquet files into the folder `out`, which must not hold anything yet; answers how many rows have which status.

    Uses the Ray cluster that RAY_ADDRESS names, else starts one on this machine. Raises `TableError`.
    """
    try:
        import ray
    except ImportError:
        raise TableError('Ray is not installed: pip install "i2moe-service[ray]"') from None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TableError(f"{out}: expected a folder that is empty or not there yet")
    if not os.environ.get("RAY_ADDRESS"):  # a slot beside the workers, or nobody would be left to read for them
        ray.init(num_cpus=max(usable_cpus(), num_workers + 1), include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    rows = ray.data.read_parquet(source)
    answers = rows.map_batches(
        Scorer,
        fn_constructor_args=(str(bundle.resolve()), provider, batch_size),
        batch_format="pyarrow",
        batch_size=None,  # whole blocks: Ray does not keep the order of what it cuts out of them
        concurrency=(1, num_workers),
        num_gpus=None if provider != "cuda" else 1,
    )
    answers.write_parquet(str(out.resolve()))
    statuses = ray.data.read_parquet(str(out.resolve()), columns=["status"]).groupby("status").count().take_all()
    return {row["status"]: int(row["count()"]) for row in statuses}
