"""Free text to a sentence embedding, by an ONNX graph and a Hugging Face tokenizer: the same numbers in training and in serving.

A text is cut into chunks of `max_tokens` tokens at most, special ones included, and the first `max_chunks` are read:

    chunk = mean of last_hidden_state (1, T, D) over the attention mask, or its first token ("cls"),
            or the graph's own sentence_embedding (1, D) ("graph")
    text  = sum over chunks of tokens in the chunk x chunk / tokens read, then divided by its Euclidean norm if `normalise`

Every chunk goes through the graph alone, without padding and on one thread: an int8 graph measures its scales on whatever it is
given, so beside other texts, or beside padding, a text would get other numbers. Several texts run side by side on threads.

The two files are found by their sha256, in a bundle or run folder as `encoder-<sha256>.onnx` and `tokenizer-<sha256>.json` (its
first 16 digits). Here alone is `tokenizers` imported, when the first encoder is loaded; an optional extra: i2moe-service[text].
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.errors import BundleError, InferenceError, TextEncoderError
from service.bundle.features import EmbeddedTextFeature, Embedder, Pooling, TextReading, is_missing
from service.bundle.schema import FeatureSchema

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

GRAPH_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"  # in a folder that a recipe names
_REQUIRED_INPUTS, _OPTIONAL_INPUTS = ("input_ids", "attention_mask"), ("token_type_ids",)
_OUTPUTS: dict[Pooling, tuple[str, int]] = {  # what is read of a graph, and its rank
    "mean": ("last_hidden_state", 3),
    "cls": ("last_hidden_state", 3),
    "graph": ("sentence_embedding", 2),
}
_NAME_DIGITS = 16

Texts = Mapping[tuple[str, str], Iterable[object]]  # (modality, feature) -> values, of which the strings are texts


@dataclass(frozen=True, slots=True)
class EncoderFile:
    """One of an encoder's two files, as it must be found on disk."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "EncoderFile":
        """A file as it is now. Raises `TextEncoderError`."""
        return cls(path, hashlib.sha256(_read(path)).hexdigest())

    def read(self) -> bytes:
        """The content. Raises `TextEncoderError` where it is gone or has changed."""
        content = _read(self.path)
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise TextEncoderError(f"{self.path}: expected sha256 {self.sha256[:12]}..., found {found[:12]}...: it has changed")
        return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TextEncoderError(f"{path}: expected a text encoder's file, cannot read it ({error.strerror})") from None


class TextEncoder:
    """A graph and its tokenizer, loaded when they are first needed. `embed` may be called from several threads."""

    def __init__(self, graph: EncoderFile, tokenizer: EncoderFile) -> None:
        self.graph, self.tokenizer = graph, tokenizer
        self._loading = threading.Lock()
        self._loaded: _Loaded | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> "TextEncoder":
        """The encoder of a folder with model.onnx and tokenizer.json, whatever they are now. Raises `TextEncoderError`."""
        return cls(EncoderFile.of(folder / GRAPH_FILE), EncoderFile.of(folder / TOKENIZER_FILE))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and other processes load the files themselves."""
        return TextEncoder, (self.graph, self.tokenizer)

    def embed(self, text: str, feature: EmbeddedTextFeature) -> TextReading:
        """Read one text. Raises `InferenceError`; the first call loads the files and may raise `TextEncoderError`."""
        return self._load().embed(text, feature)

    def measure(self, *, pooling: Pooling, max_tokens: int) -> int:
        """The dimension of its embeddings, found by reading a chunk of `max_tokens`. Raises `TextEncoderError`."""
        return self._load().measure(pooling, max_tokens)

    def _load(self) -> "_Loaded":
        with self._loading:
            if self._loaded is None:
                self._loaded = _Loaded.of(self.graph, self.tokenizer)
            return self._loaded


class _Loaded:
    """What an encoder needs to run."""

    def __init__(self, session: Any, tokenizer: "Tokenizer", place: Path) -> None:
        """`place` names the encoder in errors. Raises `TextEncoderError` for a graph with other inputs."""
        self._session, self._tokenizer, self._place = session, tokenizer, place
        found = {tensor.name: f"{tensor.type} {tensor.shape}" for tensor in session.get_inputs()}
        fits = all(
            t.type == "tensor(int64)" and len(t.shape) == 2 and not isinstance(t.shape[1], int) for t in session.get_inputs()
        )
        if not fits or not set(_REQUIRED_INPUTS) <= set(found) <= {*_REQUIRED_INPUTS, *_OPTIONAL_INPUTS}:
            inputs = f"{', '.join(_REQUIRED_INPUTS)} and perhaps {', '.join(_OPTIONAL_INPUTS)}"
            raise TextEncoderError(f"{place}: expected a graph that reads {inputs}, tensor(int64) [batch, tokens]; found {found}")
        self._inputs = set(found)

    @classmethod
    def of(cls, graph: EncoderFile, tokenizer: EncoderFile) -> "_Loaded":
        """Load both files."""
        from service.bundle.predictor import text_session

        parsed = _open_tokenizer(tokenizer)
        try:
            session = text_session(graph.read())
        except BundleError as error:
            raise TextEncoderError(f"{graph.path}: {error}") from None
        return cls(session, parsed, graph.path)

    def embed(self, text: str, feature: EmbeddedTextFeature) -> TextReading:
        """The text's vector, None where it has no token."""
        chunks = self._chunks(text, feature.max_tokens)
        num_tokens = [len(chunk.ids) for chunk in chunks]
        read = num_tokens[: feature.max_chunks]
        if not sum(read):
            return TextReading(None, 0, 0)
        vectors = [self._run_chunk(chunk, feature.pooling) for chunk in chunks[: feature.max_chunks]]
        vector = np.average(np.stack(vectors), axis=0, weights=read)
        if feature.normalise:
            vector /= float(np.linalg.norm(vector)) or 1.0
        if vector.shape != (feature.dimension,) or not np.isfinite(vector).all():
            raise InferenceError("the text encoder answered with something else than finite numbers")
        return TextReading(vector.astype(np.float32), sum(read), sum(num_tokens))

    def _chunks(self, text: str, max_tokens: int) -> list["Encoding"]:
        """All chunks of a text, special tokens not yet added."""
        plain = text.encode("utf-8", "replace").decode()  # JSON may hold half characters
        encoding = self._tokenizer.encode(plain, add_special_tokens=False)
        encoding.truncate(max_tokens - self._num_special)
        return [encoding, *encoding.overflowing]

    @property
    def _num_special(self) -> int:
        return self._tokenizer.num_special_tokens_to_add(is_pair=False)

    def _run_chunk(self, chunk: "Encoding", pooling: Pooling) -> NDArray[np.float64]:
        whole = self._tokenizer.post_process(chunk)
        return self._run(whole.ids, whole.type_ids, pooling)

    def _run(self, ids: list[int], type_ids: list[int], pooling: Pooling) -> NDArray[np.float64]:
        """One chunk's tokens to its vector (D,), in float64 for the mean over chunks."""
        given = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": type_ids}
        name, rank = _OUTPUTS[pooling]
        try:
            (output,) = self._session.run([name], {key: np.array([given[key]], np.int64) for key in self._inputs})
        except Exception as error:
            raise InferenceError(f"the text encoder could not be run ({type(error).__name__})") from error
        if output.ndim != rank or len(output) != 1 or (rank == 3 and output.shape[1] != len(ids)):
            raise InferenceError(f"the text encoder answered {name} of shape {output.shape} to {len(ids)} tokens")
        answer: NDArray[np.float64] = output[0].astype(np.float64)
        if pooling == "mean":
            return np.asarray(answer.mean(axis=0))
        return np.asarray(answer[0]) if pooling == "cls" else answer

    def measure(self, pooling: Pooling, max_tokens: int) -> int:
        """Read as many tokens at once as a text may have, of the tokenizer's highest number: neither may be too much."""
        self._check_output(pooling)
        if max_tokens <= self._num_special:
            raise TextEncoderError(
                f"{self._place}: expected max_tokens above {self._num_special} special ones, found {max_tokens}"
            )
        highest = max(self._tokenizer.get_vocab().values())
        try:
            vector = self._run([highest] * max_tokens, [0] * max_tokens, pooling)
        except InferenceError as error:
            expected = f"expected a graph that reads {max_tokens} tokens numbered up to {highest}"
            hint = "is max_tokens too large, or the tokenizer another model's?"
            raise TextEncoderError(f"{self._place}: {expected}: {error}; {hint}") from None
        return len(vector)

    def _check_output(self, pooling: Pooling) -> None:
        name, rank = _OUTPUTS[pooling]
        found = {tensor.name: f"{tensor.type} {tensor.shape}" for tensor in self._session.get_outputs()}
        if not found.get(name, "").startswith("tensor(float) "):
            shape = "[batch, tokens, dimension]" if rank == 3 else "[batch, dimension]"
            raise TextEncoderError(
                f"{self._place}: pooling {pooling}: expected a graph that answers {name}, tensor(float) {shape}; found {found}"
            )


def _open_tokenizer(file: EncoderFile) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TextEncoderError('texts are read by the package tokenizers: pip install "i2moe-service[text]"') from None
    content = file.read()
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:
        raise TextEncoderError(f"{file.path}: expected a tokenizer.json of Hugging Face ({type(error).__name__})") from None
    tokenizer.no_truncation()  # what is cut off, and what is padded, is decided here
    tokenizer.no_padding()
    return tokenizer


def _file_names(feature: EmbeddedTextFeature) -> tuple[str, str]:
    return f"encoder-{feature.graph_sha256[:_NAME_DIGITS]}.onnx", f"tokenizer-{feature.tokenizer_sha256[:_NAME_DIGITS]}.json"


def encoder_files(schema: FeatureSchema) -> dict[str, str]:
    """The files of all text encoders in a bundle or run folder, by name their sha256; those that features share once."""
    files: dict[str, str] = {}
    for _, feature in schema.embedded:
        files |= zip(_file_names(feature), (feature.graph_sha256, feature.tokenizer_sha256), strict=True)
    return files


def find_encoders(schema: FeatureSchema, folder: Path) -> FeatureSchema:
    """The schema with the encoders of a bundle or run folder, whose files are read when they are needed."""
    encoders: dict[tuple[str, str], TextEncoder] = {}

    def encoder_of(_modality: str, feature: EmbeddedTextFeature) -> TextEncoder:
        names = graph, tokenizer = _file_names(feature)
        files = EncoderFile(folder / graph, feature.graph_sha256), EncoderFile(folder / tokenizer, feature.tokenizer_sha256)
        return encoders.setdefault(names, TextEncoder(*files))

    return schema.with_encoders(encoder_of)


def copy_encoders(schema: FeatureSchema, folder: Path) -> None:
    """Put the files of a schema's encoders into a folder, under the names that are looked for. Raises `TextEncoderError`."""
    for _, feature in schema.embedded:
        assert isinstance(feature.encoder, TextEncoder)
        for name, file in zip(_file_names(feature), (feature.encoder.graph, feature.encoder.tokenizer), strict=True):
            partial_copy = folder / f".{name}.partial"
            try:
                partial_copy.write_bytes(file.read())
                partial_copy.replace(folder / name)
            finally:
                partial_copy.unlink(missing_ok=True)


def load_encoders(schema: FeatureSchema) -> None:
    """Load all encoders of a schema and let each read the longest chunk that it may. Raises `TextEncoderError`."""
    for _, feature in schema.embedded:
        assert isinstance(feature.encoder, TextEncoder)
        found = feature.encoder.measure(pooling=feature.pooling, max_tokens=feature.max_tokens)
        if found != feature.dimension:
            path = feature.encoder.graph.path
            raise TextEncoderError(f"{path}: expected embeddings of {feature.dimension} numbers, found {found}")


class _Known:
    """Texts that are embedded already; others go to the encoder."""

    def __init__(self, known: Mapping[str, TextReading], encoder: Embedder) -> None:
        self._known, self._encoder = known, encoder

    def embed(self, text: str, feature: EmbeddedTextFeature) -> TextReading:
        return self._known.get(text) or self._encoder.embed(text, feature)


def embed_ahead(
    schema: FeatureSchema, texts: Texts, *, num_threads: int = 1, told: Callable[[int], object] = lambda _count: None
) -> FeatureSchema:
    """The schema with these texts embedded already: each different one once, `num_threads` at a time.

    `told` hears of every text that is done.
    """

    def embed(feature: EmbeddedTextFeature, text: str) -> TextReading | None:
        try:
            return feature.encoder.embed(text, feature)
        except InferenceError:  # told when it is asked for
            return None
        finally:
            told(1)

    def known(modality: str, feature: EmbeddedTextFeature) -> _Known:
        different = distinct_texts(texts.get((modality, feature.name), ()))
        readings = zip(different, pool.map(partial(embed, feature), different), strict=True)
        return _Known({text: reading for text, reading in readings if reading is not None}, feature.encoder)

    if not schema.embedded:
        return schema
    with ThreadPoolExecutor(num_threads, thread_name_prefix="texts") as pool:
        return schema.with_encoders(known)


def distinct_texts(values: Iterable[object]) -> list[str]:
    """The different texts among values, in order."""
    return list(dict.fromkeys(value for value in values if isinstance(value, str) and not is_missing(value)))


def texts_of_records(schema: FeatureSchema, records: Iterable[Mapping[str, Any]]) -> Texts:
    """What records hold where texts are to be embedded; whatever is no object is passed over."""
    records = list(records) if schema.embedded else []
    parts = {name: [part for r in records if isinstance(part := r.get(name), Mapping)] for name, _ in schema.embedded}
    return {(name, feature.name): [part.get(feature.name) for part in parts[name]] for name, feature in schema.embedded}
