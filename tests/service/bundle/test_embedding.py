"""Texts to embeddings, by a tiny encoder whose numbers are worked out with a pencil (tests/tiny_encoder.py)."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.embedding import TextEncoder, copy_encoders, embed_ahead, encoder_files, find_encoders, load_encoders
from service.bundle.errors import InvalidRecordError, TextEncoderError
from service.bundle.features import EmbeddedTextFeature, UnfitValueError
from service.bundle.schema import FeatureSchema, Modality
from tests.tiny_encoder import VECTORS, tiny_feature, write_tiny_encoder

PRIVATE = "Zebediah"  # stands in texts for what no message may hold


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose tokenizer adds nothing."""
    return write_tiny_encoder(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose tokenizer adds [CLS] and [SEP]."""
    return write_tiny_encoder(tmp_path_factory.mktemp("special"), special=True)


def schema_of(feature: EmbeddedTextFeature) -> FeatureSchema:
    return FeatureSchema(modalities=(Modality(name="text", features=(feature,)),))


def vector(feature: EmbeddedTextFeature, text: str) -> list[float]:
    columns, _ = feature.encode(text)
    assert isinstance(columns, np.ndarray)
    assert columns.dtype == np.float32
    return columns.tolist()


def test_a_text_is_the_mean_of_its_tokens(plain: Path) -> None:
    """kidney (3, 4) and heart (0, 2) make (1.5, 3); the file's own truncation and padding do not matter."""
    feature = tiny_feature(plain)
    assert vector(feature, "Kidney heart") == [1.5, 3.0]
    assert vector(feature, "heart stable heart stable") == [0.5, 1.0]
    assert feature.encode("kidney")[1] is None


def test_an_embedding_is_normalised_where_asked(plain: Path) -> None:
    """(3, 4) becomes (0.6, 0.8); a vector of zeros stays one."""
    feature = tiny_feature(plain, normalise=True)
    assert vector(feature, "kidney") == pytest.approx([0.6, 0.8])
    assert vector(feature, "unheard of") == [0, 0]


def test_special_tokens_are_part_of_a_chunk(special: Path) -> None:
    """[CLS] kidney [SEP]: their mean is (11/3, 12/3), the first is (8, 0)."""
    assert vector(tiny_feature(special), "kidney") == pytest.approx([11 / 3, 4])
    assert vector(tiny_feature(special, pooling="cls"), "kidney") == [8, 0]


def test_a_graph_may_pool_itself(tmp_path: Path) -> None:
    """The tiny graph's sentence_embedding is a sum."""
    folder = write_tiny_encoder(tmp_path, output="sentence_embedding", inputs=("input_ids", "attention_mask"))
    assert vector(tiny_feature(folder, pooling="graph"), "kidney heart") == [3, 6]


def test_a_long_text_is_the_mean_of_its_chunks_by_their_length(plain: Path) -> None:
    """[kidney kidney] (3, 4) counts twice, [heart] (0, 2) once: (2, 10/3), without a warning."""
    columns, warning = tiny_feature(plain, max_tokens=2, max_chunks=2).encode("kidney kidney heart")
    assert columns == pytest.approx([2, 10 / 3])
    assert warning is None


def test_what_is_beyond_the_last_chunk_is_not_read_and_told(plain: Path) -> None:
    """Four of five tokens: ((3, 4) x 2 + (0.5, 1) x 2) / 4."""
    columns, warning = tiny_feature(plain, max_tokens=2, max_chunks=2).encode("kidney kidney heart stable stable")
    assert columns == pytest.approx([1.75, 2.5])
    assert warning == "is too long: its first 4 of 5 tokens were read"


def test_special_tokens_leave_less_room(special: Path) -> None:
    """Of three tokens two are special, so each chunk reads one word."""
    columns, warning = tiny_feature(special, max_tokens=3, max_chunks=2).encode("kidney heart stable")
    assert columns == pytest.approx([(11 / 3 + 8 / 3) / 2, (4 + 10 / 3) / 2])
    assert warning == "is too long: its first 2 of 3 tokens were read"


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_no_text_is_missing(plain: Path, value: Any) -> None:
    """Null and blank text: not measured, like everywhere."""
    schema = FeatureSchema(
        modalities=(
            Modality(name="text", features=(tiny_feature(plain),)),
            Modality(name="more", features=(tiny_feature(plain),)),
        )
    )
    encoded = schema.encode({"text": {"note": value}, "more": {"note": "heart"}})
    assert encoded.missing == ("text",)
    assert np.isnan(encoded.arrays["text"]).all()
    assert encoded.warnings == ()


def test_a_text_without_a_token_is_missing_with_a_warning(plain: Path) -> None:
    """Digits alone: this tokenizer knows none."""
    columns, warning = tiny_feature(plain).encode("123")
    assert np.isnan(columns).all()
    assert warning == "holds nothing that the text encoder knows and is treated as missing"


@pytest.mark.parametrize("value", [1, True, ["heart"], {"text": PRIVATE}], ids=repr)
def test_only_strings_are_texts(plain: Path, value: Any) -> None:
    """Anything else is refused in words that do not repeat it."""
    with pytest.raises(InvalidRecordError, match=r"text\.note: must be a string, found") as caught:
        schema_of(tiny_feature(plain)).encode({"text": {"note": value}})
    assert PRIVATE not in str(caught.value)


def test_half_characters_are_read(plain: Path) -> None:
    """JSON may hold half a surrogate pair, which is no reason to fail."""
    assert vector(tiny_feature(plain), "kidney \ud800 heart") == pytest.approx([1, 2])


def test_flat_vectors_hold_embeddings(plain: Path) -> None:
    """An application that has embedded the text itself sends numbers."""
    encoded = schema_of(tiny_feature(plain)).encode({"text": [0.25, -3]})
    assert encoded.arrays["text"].tolist() == [0.25, -3]


def test_a_graph_that_fails_on_one_text_says_so_of_that_text(tmp_path: Path) -> None:
    """A number that is not finite is a refusal of its place, without a word of the text."""
    broken = {**VECTORS, "stable": (np.nan, 0.0)}
    feature = tiny_feature(write_tiny_encoder(tmp_path, vectors=list(broken.values())))
    with pytest.raises(UnfitValueError, match="cannot be embedded: the text encoder answered with something else") as caught:
        feature.encode(f"{PRIVATE} stable")
    assert PRIVATE not in str(caught.value)
    assert vector(feature, "kidney") == [3, 4]


@given(texts=st.lists(st.text(alphabet="kidneyhartsbl 1\n.") | st.sampled_from(["kidney", "heart heart", ""]), max_size=6))
@settings(max_examples=50, deadline=None)
def test_an_embedding_does_not_depend_on_its_company(plain: Path, texts: list[str]) -> None:
    """Ahead, together and on threads, or alone: bit for bit the same."""
    schema = schema_of(tiny_feature(plain, max_tokens=2, max_chunks=2))
    ahead = embed_ahead(schema, {("text", "note"): [*texts, None, 3]}, num_threads=3)
    (_, alone), (_, together) = schema.embedded[0], ahead.embedded[0]
    for text in filter(str.strip, texts):
        np.testing.assert_array_equal(alone.encode(text)[0], together.encode(text)[0])
        assert alone.encode(text)[1] == together.encode(text)[1]


def test_every_different_text_is_embedded_once(plain: Path) -> None:
    """And told of, once; later it is not embedded again."""
    feature, told = tiny_feature(plain), []
    ahead = embed_ahead(schema_of(feature), {("text", "note"): ["heart", "kidney", "heart", " "]}, told=told.append)
    assert told == [1, 1]
    assert isinstance(feature.encoder, TextEncoder)
    feature.encoder._loaded = None  # a text that is not known would load it again
    assert vector(ahead.embedded[0][1], "heart") == [0, 2]
    assert feature.encoder._loaded is None


@pytest.mark.parametrize(
    ("graph", "rules", "told"),
    [
        ({"inputs": ("input_ids",)}, {}, "expected a graph that reads input_ids, attention_mask and perhaps token_type_ids"),
        ({"inputs": ("input_ids", "attention_mask", "position_ids")}, {}, "found .*position_ids"),
        ({"num_tokens": 16}, {}, r"tensor\(int64\) \[batch, tokens\]; found .*16"),
        ({"output": "pooled"}, {}, r"pooling mean: expected a graph that answers last_hidden_state.*found \{'pooled'"),
        ({}, {"pooling": "graph"}, "pooling graph: expected a graph that answers sentence_embedding"),
        ({"vectors": [(0.0, 1.0)] * 3}, {}, "numbered up to 5: .* is max_tokens too large, or the tokenizer another model's"),
        ({}, {"dimension": 3}, "expected embeddings of 3 numbers, found 2"),
        ({"special": True}, {"max_tokens": 2}, "expected max_tokens above 2 special ones, found 2"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path, graph: Any, rules: Any, told: str) -> None:
    """With what was expected and what was found, when it is loaded and not at the first request."""
    with pytest.raises(TextEncoderError, match=told):
        load_encoders(schema_of(tiny_feature(write_tiny_encoder(tmp_path, **graph), **rules)))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("model.onnx", b"", "ONNX Runtime cannot load the text encoder's graph"),
        ("tokenizer.json", b"{}", "expected a tokenizer.json of Hugging Face"),
        ("tokenizer.json", b"\xff", "expected a tokenizer.json of Hugging Face"),
        ("tokenizer.json", None, "expected a text encoder's file, cannot read it"),
    ],
)
def test_files_that_are_no_encoder_are_refused(tmp_path: Path, file: str, content: bytes | None, told: str) -> None:
    """By their path."""
    path = write_tiny_encoder(tmp_path) / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(TextEncoderError, match=f"{file}: .*{told}"):
        TextEncoder.in_folder(tmp_path).measure(pooling="mean", max_tokens=4)


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    """The schema names an encoder by its sha256, and no other will do."""
    feature = tiny_feature(write_tiny_encoder(tmp_path))
    write_tiny_encoder(tmp_path, vectors=[(1.0, 1.0)] * 6)
    with pytest.raises(TextEncoderError, match=r"model.onnx: expected sha256 \w{12}..., found \w{12}...: it has changed"):
        feature.encode("heart")


def test_without_tokenizers_the_extra_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without the extra says what to install."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TextEncoderError, match=r'pip install "i2moe-service\[text\]"'):
        load_encoders(schema_of(tiny_feature(plain)))


def test_encoders_are_copied_and_found_by_their_sha256(plain: Path, special: Path, tmp_path: Path) -> None:
    """Features that share an encoder share its files, and the schema that is read from JSON finds them."""
    modalities = [
        Modality(name=name, features=(tiny_feature(folder),)) for name, folder in (("a", plain), ("b", plain), ("c", special))
    ]
    schema = FeatureSchema(modalities=tuple(modalities))
    copy_encoders(schema, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(encoder_files(schema))
    assert len(encoder_files(schema)) == 3  # both have the same graph
    found = find_encoders(FeatureSchema.model_validate_json(schema.model_dump_json()), tmp_path)
    record = {name: {"note": "kidney"} for name in schema.names}
    for name, array in schema.encode(record).arrays.items():
        np.testing.assert_array_equal(array, found.encode(record).arrays[name])
    assert found.embedded[0][1].encoder is found.embedded[1][1].encoder


def test_a_schema_may_be_copied_and_sent(plain: Path) -> None:
    """Encoders load their files again where they arrive."""
    schema = schema_of(tiny_feature(plain))
    schema.encode({"text": {"note": "heart"}})
    for other in (copy.deepcopy(schema), pickle.loads(pickle.dumps(schema))):
        assert other.encode({"text": {"note": "kidney"}}).arrays["text"].tolist() == [3, 4]


def test_a_schema_without_its_encoders_checks_records(plain: Path) -> None:
    """Their form alone; a manifest's example is checked before any file is opened."""
    schema = FeatureSchema.model_validate_json(schema_of(tiny_feature(plain)).model_dump_json())
    schema.check({"text": {"note": "anything"}})
    with pytest.raises(InvalidRecordError, match="must be a string"):
        schema.check({"text": {"note": 3}})
    with pytest.raises(AssertionError, match="never given its text encoders"):
        schema.encode({"text": {"note": "anything"}})
