"""Puts a bundle together: graph, verification, example, manifest. Whole and verified, or nothing."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from export.attribution import attribution_info, build_attribution, methods, verify_attribution
from export.errors import ExportError
from export.experts import Target
from export.graph import build_graph, graph_info, save_graph
from export.quantise import calibration_rows, quantise
from export.verify import ATOL, PRECISION_ATOL, verify, verify_precision
from service.bundle.card import ModelCard
from service.bundle.embedding import copy_encoders
from service.bundle.errors import InferenceError
from service.bundle.manifest import (
    FORMAT_VERSION,
    Answer,
    AttributionInfo,
    CalibrationInfo,
    DatasetExplanation,
    Example,
    FileInfo,
    GraphInfo,
    Manifest,
    MetricValue,
    Parity,
    TaskInfo,
    UncertaintyInfo,
)
from service.bundle.output import OUTPUT_NAMES
from service.bundle.predictor import Predictor
from service.bundle.schema import FeatureSchema
from service.bundle.store import ATTRIBUTION_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, write_bundle
from service.bundle.validity import ExplanationValidity
from training.checkpoint import METRICS_FILE, Checkpoint, load_checkpoint
from training.errors import RunError
from training.evaluation import calibration_info, read_metrics
from training.model.mixture import I2MoE

MANIFEST_SPLIT = "test"  # whose dataset-level explanation the manifest carries
Precision = Literal["fp32", "fp16", "int8"]
_TARGET_OF: Mapping[Precision, Target] = {"fp16": "cuda", "int8": "cpu"}
_UNVERIFIED = Parity(atol=0, max_abs_diff=0, cases=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Everything a bundle is made of, besides its graph."""

    model: I2MoE
    name: str
    version: str
    schema: FeatureSchema
    task: TaskInfo
    calibration: CalibrationInfo
    metrics: dict[str, dict[str, MetricValue]]
    explanation: DatasetExplanation | None
    validity: ExplanationValidity | None = None
    model_card: ModelCard
    example_record: dict[str, Any]
    reference: Mapping[str, Any]
    provenance: dict[str, Any]
    uncertainty: UncertaintyInfo | None = None  # None for a model whose rows are not known


def run_material(run: Path) -> Material:
    """The material of a finished run folder. Raises `RunError`."""
    checkpoint, document = load_checkpoint(run), read_metrics(run)
    try:
        return _material(checkpoint, document)
    except (KeyError, TypeError, ValidationError) as error:
        raise RunError(f"{run / METRICS_FILE}: is damaged ({str(error).splitlines()[0]})") from error


def _material(checkpoint: Checkpoint, document: Mapping[str, Any]) -> Material:
    splits = document["splits"]
    return Material(
        model=checkpoint.model,
        name=checkpoint.recipe.name,
        version=checkpoint.recipe.version,
        schema=checkpoint.schema,
        task=checkpoint.task,
        calibration=calibration_info(checkpoint),
        metrics={split: {k: MetricValue.model_validate(v) for k, v in part["metrics"].items()} for split, part in splits.items()},
        explanation=DatasetExplanation.model_validate(splits[MANIFEST_SPLIT]["explanation"]),
        validity=_validity(splits[MANIFEST_SPLIT]),
        model_card=checkpoint.recipe.model_card,
        example_record=document["example"],
        reference=document["reference"],
        provenance={**checkpoint.provenance, "recipe": checkpoint.recipe.model_dump(mode="json", exclude={"model_card"})},
        uncertainty=_uncertainty(document),
    )


def _validity(part: Mapping[str, Any]) -> ExplanationValidity | None:
    """What was checked, if anything was."""
    return ExplanationValidity.model_validate(part["validity"]) if "validity" in part else None


def _uncertainty(document: Mapping[str, Any]) -> UncertaintyInfo | None:
    """What the run says of it; a run of an earlier version says nothing."""
    told = document.get("uncertainty")
    return None if told is None else UncertaintyInfo.model_validate(told["conformal"])


def export_bundle(
    material: Material,
    out: Path,
    *,
    target: Target = "cpu",
    precision: Precision = "fp32",
    attribution_points: int = 0,
    calibration: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write a verified bundle to `out`, telling what is done next. Raises `ExportError` or `BundleError`, leaving nothing behind.

    With `attribution_points` the bundle gets its second graph, or the reason why it cannot have one. Precision fp16 has experts
    in float16, for a GPU; int8 has large products in int8, for a CPU, by scales measured on the rows of `calibration`, a table
    (`TableError` where it cannot be read).
    """
    _check_options(target, precision, calibration)
    verified: dict[str, Any] = {}
    rows = None if calibration is None else calibration_rows(calibration, material.schema)

    def fill(folder: Path) -> None:
        copy_encoders(material.schema, folder)
        half = precision == "fp16"
        tell("tracing the graph")
        graph = build_graph(material.model, material.schema, target=target, half=half)
        info = graph_info(graph, target=target, precision="fp16" if half else "fp32")
        save_graph(graph, folder / MODEL_FILE)
        (folder / REFERENCE_FILE).write_text(json.dumps(material.reference, indent=1) + "\n")
        draft = _manifest(material, graph=info, files={}, parity=_UNVERIFIED, answer=_no_answer(material))
        predictor = Predictor(Bundle(folder, draft), provider="cpu")
        tell("comparing its answers with the model's")
        parity = verify(predictor, material.model, material.schema, atol=PRECISION_ATOL["fp16"] if half else ATOL)
        if rows is not None:
            tell("measuring scales for int8")
            exact, graph = predictor, quantise(graph, rows)
            info = graph_info(graph, target=target, precision="int8")
            save_graph(graph, folder / MODEL_FILE)
            predictor = Predictor(Bundle(folder, draft.model_copy(update={"graph": info})), provider="cpu")
            parity = verify_precision(predictor, exact, rows)
        verified.update(graph=info, parity=parity, answer=_answer(predictor, material))
        if attribution_points:
            tell("tracing and comparing the graph that attributes contributions to features, which takes longest")
            verified["attribution"] = _add_attribution(material, folder, draft, num_points=attribution_points)

    def manifest(files: dict[str, FileInfo]) -> Manifest:
        return _manifest(material, files=files, **verified)

    return write_bundle(out, fill=fill, manifest=manifest)


def _check_options(target: Target, precision: Precision, calibration: Path | None) -> None:
    """Raises `ExportError` for what does not go together."""
    if (precision == "int8") != (calibration is not None):
        raise ExportError("--precision int8 and --calibration TABLE belong together: scales are measured on the table's rows")
    if (wanted := _TARGET_OF.get(precision, target)) != target:
        raise ExportError(
            f"--precision {precision} needs --target {wanted}, found {target}: nothing else computes faster with it"
        )


def _add_attribution(material: Material, folder: Path, draft: Manifest, *, num_points: int) -> AttributionInfo | str:
    """Write and verify the second graph; where that fails leave no file, and answer why."""
    path, of = folder / ATTRIBUTION_FILE, (material.schema, material.task)
    reasons = []
    for module in methods(material.model, *of, num_points=num_points):
        try:
            graph = build_attribution(module, *of)
            save_graph(graph, path)
            info = attribution_info(graph, module)
            predictor = Predictor(Bundle(folder, draft.model_copy(update={"attribution": info})), provider="cpu")
            return verify_attribution(predictor, info, module, *of)
        except (ExportError, InferenceError) as error:
            path.unlink(missing_ok=True)
            reasons.append(str(error))
    return "; ".join(reasons)


def _manifest(
    material: Material,
    *,
    graph: GraphInfo,
    files: dict[str, FileInfo],
    parity: Parity,
    answer: Answer,
    attribution: AttributionInfo | str | None = None,
) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        name=material.name,
        version=material.version,
        created=datetime.now(UTC).replace(microsecond=0),
        files=files,
        graph=graph,
        features=material.schema,
        task=material.task,
        experts=material.model.roles,
        calibration=material.calibration,
        metrics=material.metrics,
        explanation=material.explanation,
        explanation_validity=material.validity,
        uncertainty=material.uncertainty,
        model_card=material.model_card,
        parity=parity,
        example=Example(record=material.example_record, answer=answer),
        provenance=material.provenance,
        attribution=None if isinstance(attribution, str) else attribution,
        attribution_left_out=attribution if isinstance(attribution, str) else None,
    )


def _answer(predictor: Predictor, material: Material) -> Answer:
    output = predictor.run(material.schema.encode_many([material.example_record]))
    return Answer.model_validate({name: getattr(output, name)[0].tolist() for name in OUTPUT_NAMES})


def _no_answer(material: Material) -> Answer:
    num_labels, num_experts = len(material.task.labels), len(material.model.roles)
    zeros = np.zeros((num_experts, num_labels)).tolist()
    return Answer.model_validate(
        {"prediction": zeros[0], "logits": zeros[0], "expert_weights": [0.0] * num_experts, "expert_logits": zeros}
    )
