"""Language models and data small enough to train on within a test."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["the", "a", "river", "garden", "stone", "cat", "lamp", "bridge", "walks", "sings", "green", "over", "slowly"]
TEXTS = [
    "Question: Where is the green river?\n\nAnswer: the cat sings over a garden, and the lamp walks slowly.",
    "A stone bridge is blue. The answer below may do harm: say what is unsafe about it and what helps.",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
SIZE = 360


def write_tokenizer(folder: Path, *, kind: str, ends: bool = False, pad: str | None = None) -> None:
    """A tokenizer trained on a few lines: like SentencePiece's ("pieces"), or of bytes ("bytes").

    Args:
        folder: Where to.
        kind: Which of the two.
        ends: Whether every text gets the token for its end.
        pad: The padding token, if there is one.
    """
    if kind == "pieces":
        built = Tokenizer(models.Unigram())
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        built.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        built = Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=SIZE,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    built.train_from_iterator([*TEXTS, *WORDS] * 3, trainer)
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": pad} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=256, **named).save_pretrained(folder)


def write_base(folder: Path, *, kind: str = "bytes", **tokens: Any) -> Path:
    """A thin LLaMA with random weights, and its tokenizer."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, kind=kind, **tokens)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentence(rng: random.Random, *, blue: bool) -> str:
    """Some words; the colour blue stands for harm."""
    words = rng.choices(WORDS, k=rng.randint(3, 7))
    return " ".join([*words, "blue" if blue else "green"])


def exchanges(count: int, *, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "question": f"Where is {number}?",
            "response": sentence(rng, blue=bool(number % 2)),
            "harmful": bool(number % 2),
        }
        for number in range(count)
    ]


def preferences(count: int, *, seed: int) -> list[dict[str, Any]]:
    """In the form of PKU-SafeRLHF: by turns one safe, the other safe, none safe, both safe."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        safe = [(True, False), (False, True), (False, False), (True, True)][number % 4]
        safer = 0 if safe[0] else 1
        rows.append(
            {
                "prompt": f"Where is {number}?",
                "response_0": sentence(rng, blue=not safe[0]),
                "response_1": sentence(rng, blue=not safe[1]),
                "is_response_0_safe": safe[0],
                "is_response_1_safe": safe[1],
                "better_response_id": 1 - safer,
                "safer_response_id": safer,
            }
        )
    return rows
