"""Texts to sentence embeddings in training, by the service's own code: `service.bundle.embedding`."""

from pathlib import Path

from service.bundle.embedding import TextEncoder, Texts, distinct_texts, embed_ahead
from service.bundle.errors import TextEncoderError
from service.bundle.machine import usable_cpus
from service.bundle.progress import progress
from service.bundle.schema import EmbeddedTextFeature, FeatureSchema
from training.data.config import TextConfig
from training.errors import DataError


def fit_embedded_text(config: TextConfig, path: Path, loinc: tuple[str, ...]) -> EmbeddedTextFeature:
    """The feature of a text column whose encoder lies in the folder `path`. Raises `DataError`."""
    rules = config.model_dump(include={"pooling", "normalise", "max_tokens", "max_chunks"})
    try:
        encoder = TextEncoder.in_folder(path)
        dimension = encoder.measure(pooling=config.pooling, max_tokens=config.max_tokens)
    except TextEncoderError as error:
        raise DataError(f"column {config.column}: {error}") from error
    feature = EmbeddedTextFeature(
        name=config.column,
        loinc=loinc,
        graph_sha256=encoder.graph.sha256,
        tokenizer_sha256=encoder.tokenizer.sha256,
        dimension=dimension,
        **rules,
    )
    return feature.with_encoder(encoder)


def embed_texts(schema: FeatureSchema, texts: Texts) -> FeatureSchema:
    """The schema with these texts embedded already, each different one once, by all cores. Raises `DataError`."""
    if not schema.embedded:
        return schema
    num_texts = sum(len(distinct_texts(values)) for values in texts.values())
    try:
        with progress(num_texts, unit="texts") as told:
            return embed_ahead(schema, texts, num_threads=usable_cpus(), told=told)
    except TextEncoderError as error:
        raise DataError(str(error)) from error
