"""A text encoder whose every embedding can be checked with a pencil: a table of word vectors and a tokenizer of those words.

    kidney (3, 4)    heart (0, 2)    stable (1, 0)    any other word (0, 0)    [CLS] (8, 0)    [SEP] (0, 8)

Digits are dropped, so "123" holds no token. Special tokens are there only where they are asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from service.bundle.embedding import TextEncoder
from service.bundle.schema import EmbeddedTextFeature

VECTORS = {
    "[UNK]": (0.0, 0.0),
    "[CLS]": (8.0, 0.0),
    "[SEP]": (0.0, 8.0),
    "kidney": (3.0, 4.0),
    "heart": (0.0, 2.0),
    "stable": (1.0, 0.0),
}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def tiny_tokenizer(*, special: bool = False) -> Tokenizer:
    """Words at white space and punctuation, lower case."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VECTORS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[0-9]"), "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    # What such files often say, and must not matter here.
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=7)
    return tokenizer


def tiny_encoder_graph(
    vectors: Any = None,
    *,
    inputs: Sequence[str] = _INPUTS,
    output: str = "last_hidden_state",
    num_tokens: int | str = "tokens",
) -> onnx.ModelProto:
    """Word vectors by their number, or with `output` = sentence_embedding their sum."""
    table = np.array(list(VECTORS.values()) if vectors is None else vectors, np.float32)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    shape: list[int | str] = ["batch", num_tokens, table.shape[1]]
    constants = [numpy_helper.from_array(table, "table")]
    if output != "last_hidden_state":
        constants.append(numpy_helper.from_array(np.array([1]), "axis"))
        nodes.append(helper.make_node("ReduceSum", ["last_hidden_state", "axis"], [output], keepdims=0))
        shape.pop(1)
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", num_tokens]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def write_tiny_encoder(folder: Path, *, special: bool = False, **graph: Any) -> Path:
    """model.onnx and tokenizer.json in a folder; answers the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(tiny_encoder_graph(**graph), folder / "model.onnx")
    tiny_tokenizer(special=special).save(str(folder / "tokenizer.json"))
    return folder


def tiny_feature(folder: Path, **rules: Any) -> EmbeddedTextFeature:
    """A feature `note` with the encoder of a folder, of one chunk of eight tokens and not normalised, if nothing else is said."""
    encoder = TextEncoder.in_folder(folder)
    given = {"dimension": 2, "normalise": False, "max_tokens": 8, "max_chunks": 1} | rules
    feature = EmbeddedTextFeature(
        name="note", graph_sha256=encoder.graph.sha256, tokenizer_sha256=encoder.tokenizer.sha256, **given
    )
    return feature.with_encoder(encoder)
