"""The network behind the embedded detector: an encoder, mean pooling, one logit of harm per window, and categories."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

NO_CATEGORY = -1
"""Stands for "the category of this exchange is not known"."""


class HarmClassifier(nn.Module):
    """A BERT-style encoder that gives each window one logit of harm, and logits of what the harm is.

    Windows of one exchange are combined by :func:`pool_windows`; the loss is binary
    cross-entropy on the combined logit (arXiv 2401.02906, section 3.2), and, where the category is
    known, cross-entropy on the combined category logits beside it.

    Args:
        encoder: A transformers encoder with ``last_hidden_state``.
        categories: How many categories are told apart; 0: none.
        dropout: Dropout before the linear heads.
        label_smoothing: How far targets move from 0 and 1.
        category_weight: Weight of the categories in the loss.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        categories: int = 0,
        dropout: float = 0.1,
        label_smoothing: float = 0.03,
        category_weight: float = 0.2,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        width: int = encoder.config.hidden_size  # type: ignore[union-attr, assignment]
        self.head = nn.Linear(width, 1)
        self.category_head = nn.Linear(width, categories) if categories else None
        self.label_smoothing = label_smoothing
        self.category_weight = category_weight

    @classmethod
    def from_base(cls, base: Path, *, categories: int = 0, category_weight: float = 0.2) -> HarmClassifier:
        """Start from pretrained encoder weights (safetensors) and new heads."""
        encoder = AutoModel.from_pretrained(
            str(base), use_safetensors=True, trust_remote_code=False, add_pooling_layer=False
        )
        return cls(encoder, categories=categories, category_weight=category_weight)

    def load(self, weights: Path) -> None:
        """Take over weights of an earlier run; one that had no categories leaves that head as it is.

        Raises:
            ValueError: If they are those of another network.
        """
        result = self.load_state_dict(load_file(str(weights)), strict=False)
        lacking = [name for name in result.missing_keys if not name.startswith("category_head.")]
        if lacking or result.unexpected_keys:
            raise ValueError(f"{weights} does not fit the network: {(lacking + result.unexpected_keys)[0]}")

    def freeze_below(self, layer: int) -> None:
        """Keep the embeddings and the first ``layer`` layers as they are; 0 freezes nothing."""
        if layer:
            parts = [self.encoder.embeddings, *self.encoder.encoder.layer[:layer]]  # type: ignore[union-attr, index]
            for part in parts:
                part.requires_grad_(False)

    def window_outputs(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Logit of harm (windows,) and category logits (windows, categories); inputs (windows, tokens)."""
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = self.dropout((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        categories = self.category_head(pooled) if self.category_head is not None else None
        return self.head(pooled).squeeze(-1), categories

    def window_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logit of harm per window; inputs (windows, tokens), result (windows,)."""
        return self.window_outputs(input_ids, attention_mask, token_type_ids)[0]

    def forward(  # noqa: PLR0917 - the names of a batch, which the Trainer passes by keyword
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        owner: Tensor,
        labels: Tensor,
        categories: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss and logits of a batch of exchanges.

        Args:
            input_ids: (windows, tokens).
            attention_mask: (windows, tokens).
            token_type_ids: (windows, tokens).
            owner: (windows,), which exchange a window belongs to.
            labels: (exchanges,), 1.0 for harmful.
            categories: (exchanges,), numbers of categories or :data:`NO_CATEGORY`; None: none is known.
        """
        windows, window_categories = self.window_outputs(input_ids, attention_mask, token_type_ids)
        windows = windows.float()
        weights = window_weights(windows, owner, exchanges=len(labels))
        logits = weighted_sum(windows, weights, owner, exchanges=len(labels))
        targets = labels * (1 - 2 * self.label_smoothing) + self.label_smoothing
        loss = functional.binary_cross_entropy_with_logits(logits, targets)
        result = {"loss": loss, "logits": logits}
        if window_categories is not None:
            pooled = weighted_sum(window_categories.float(), weights, owner, exchanges=len(labels))
            result["category_logits"] = pooled
            if categories is not None and bool((categories != NO_CATEGORY).any()):
                result["loss"] = loss + self.category_weight * functional.cross_entropy(
                    pooled, categories, ignore_index=NO_CATEGORY
                )
        return result


def window_weights(logits: Tensor, owner: Tensor, *, exchanges: int) -> Tensor:
    """What each window counts for its exchange: softmax of the logits of harm, without gradient."""
    fixed = logits.detach()
    largest = fixed.new_full((exchanges,), -torch.inf).scatter_reduce(0, owner, fixed, "amax")
    weights = torch.exp(fixed - largest[owner])
    total = torch.zeros_like(largest).index_add(0, owner, weights)
    return weights / total[owner]


def weighted_sum(values: Tensor, weights: Tensor, owner: Tensor, *, exchanges: int) -> Tensor:
    """Sum of the windows' values, (windows,) or (windows, n), per exchange."""
    shape = (exchanges, *values.shape[1:])
    scaled = weights.view(-1, *[1] * (values.dim() - 1)) * values
    return values.new_zeros(shape).index_add(0, owner, scaled)


def pool_windows(logits: Tensor, owner: Tensor, *, exchanges: int) -> Tensor:
    """Combine window logits per exchange; the PyTorch twin of ``encoding.pool_logits``."""
    weights = window_weights(logits, owner, exchanges=exchanges)
    return weighted_sum(logits, weights, owner, exchanges=exchanges)
