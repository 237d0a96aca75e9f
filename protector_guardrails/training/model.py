"""The network behind the embedded detector: an encoder, mean pooling, one logit per window."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel


class HarmClassifier(nn.Module):
    """A BERT-style encoder that gives each window one logit of harm.

    Windows of one exchange are combined by :func:`pool_windows`; the loss is binary
    cross-entropy on the combined logit (arXiv 2401.02906, section 3.2).

    Args:
        encoder: A transformers encoder with ``last_hidden_state``.
        dropout: Dropout before the linear head.
        label_smoothing: How far targets move from 0 and 1.
    """

    def __init__(self, encoder: nn.Module, *, dropout: float = 0.1, label_smoothing: float = 0.03) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, 1)  # type: ignore[union-attr, arg-type]
        self.label_smoothing = label_smoothing

    @classmethod
    def from_base(cls, base: Path) -> HarmClassifier:
        """Start from pretrained encoder weights (safetensors) and a new head."""
        encoder = AutoModel.from_pretrained(
            str(base), use_safetensors=True, trust_remote_code=False, add_pooling_layer=False
        )
        return cls(encoder)

    def window_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logit of harm per window; inputs (windows, tokens), result (windows,)."""
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        logits: Tensor = self.head(self.dropout(pooled)).squeeze(-1)
        return logits

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        owner: Tensor,
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """Loss and logits of a batch of exchanges.

        Args:
            input_ids: (windows, tokens).
            attention_mask: (windows, tokens).
            token_type_ids: (windows, tokens).
            owner: (windows,), which exchange a window belongs to.
            labels: (exchanges,), 1.0 for harmful.
        """
        windows = self.window_logits(input_ids, attention_mask, token_type_ids).float()
        logits = pool_windows(windows, owner, exchanges=len(labels))
        targets = labels * (1 - 2 * self.label_smoothing) + self.label_smoothing
        return {"loss": functional.binary_cross_entropy_with_logits(logits, targets), "logits": logits}


def pool_windows(logits: Tensor, owner: Tensor, *, exchanges: int) -> Tensor:
    """Combine window logits per exchange; the PyTorch twin of ``encoding.pool_logits``."""
    largest = logits.new_full((exchanges,), -torch.inf).scatter_reduce(0, owner, logits.detach(), "amax")
    weights = torch.exp(logits.detach() - largest[owner])
    total = torch.zeros_like(largest).index_add(0, owner, weights)
    return torch.zeros_like(largest).index_add(0, owner, weights / total[owner] * logits)
