"""The same scores, computed with nothing but transformers and peft: one text at a time, without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def plain_model(folder: Path, *, adapter: Path | None = None, **options: Any) -> Any:
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(folder), **options)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def plain_logits(folder: Path, texts: list[str], *, adapter: Path | None = None, **options: Any) -> NDArray[np.float64]:
    """Logits of shape (texts, labels)."""
    model = plain_model(folder, adapter=adapter, **options)
    if model.config.model_type in ("llama", "gpt2"):
        model.config.pad_token_id = None  # then the last token is taken, whatever it is
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    with torch.inference_mode():
        rows = [model(**inputs_of(tokenizer, text)).logits[0] for text in texts]
    return torch.stack(rows).double().numpy()


def inputs_of(tokenizer: Any, text: str) -> dict[str, torch.Tensor]:
    encoded = tokenizer(text, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-logits))
