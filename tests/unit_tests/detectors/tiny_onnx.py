"""A detector in the embedded one's form that goes by single words, so that a test knows what it will say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from protector_guardrails import EmbeddedDetector
from protector_guardrails.models import MANIFEST
from protector_guardrails.models.hashing import sha256_of

QUIET = -4.0
"""Logit of a text with no word that means anything; P(harm) 0.018."""


def word_detector(
    folder: Path,
    words: Mapping[str, Sequence[float]],
    *,
    categories: Sequence[str] = (),
    columns: int | None = None,
    **manifest: Any,
) -> EmbeddedDetector:
    """A detector whose logits of a window are, column by column, the largest among its words.

    Args:
        folder: Where its files go.
        words: Word to logit of harm and logits of the categories.
        categories: Names of the categories.
        columns: Columns of ``category_logits``, if not one per category; 0 for no such output.
        **manifest: Further fields of the manifest.
    """
    width = 1 + (len(categories) if columns is None else columns)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.full((len(tokens), width), QUIET, dtype=np.float32)
    for word, logits in words.items():
        table[tokens.index(word), : len(logits)] = logits[:width]
    onnx.save(_network(table, with_categories=width > 1), str(folder / "model.onnx"))
    fields = {"name": "words", "version": "1", "max_tokens": 16, "question_tokens": 4, "overlap": 2}
    fields |= {"temperature": 1.0, "bias": 0.0, "categories": list(categories)} | manifest
    fields["sha256"] = {name: sha256_of(folder / name) for name in ("model.onnx", "tokenizer.json")}
    (folder / MANIFEST).write_text(json.dumps(fields))
    return EmbeddedDetector(folder, threads=1)


def _network(table: np.ndarray, *, with_categories: bool) -> onnx.ModelProto:
    shape = ["windows", "tokens"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    constants = {
        "table": table,
        "tokens": np.array([1], dtype=np.int64),
        "first": np.array(0, dtype=np.int64),
        "one": np.array([1], dtype=np.int64),
        "end": np.array([table.shape[1]], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("ReduceMax", ["each", "tokens"], ["most"], keepdims=0),
        helper.make_node("Gather", ["most", "first"], ["logits"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape[:1])]
    if with_categories:
        nodes.append(helper.make_node("Slice", ["most", "one", "end", "one"], ["category_logits"]))
        kind = helper.make_tensor_value_info("category_logits", TensorProto.FLOAT, ["windows", table.shape[1] - 1])
        outputs.append(kind)
    graph = helper.make_graph(
        nodes, "words", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in constants.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
