"""Models small enough to train within a test."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

WORDS = ["the", "a", "river", "garden", "stone", "cat", "lamp", "bridge", "walks", "sings", "green", "over", "slowly"]


def write_tiny_base(folder: Path, *, layers: int) -> Path:
    """A BERT with thin layers and a vocabulary of a few words, in the files of a base encoder."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", ":", "image", "blue", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(str(folder))
    return folder
