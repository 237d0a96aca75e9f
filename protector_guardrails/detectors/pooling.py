"""Running a sequence classifier over windows: batches by token budget, pooled at the last real token.

Classifiers made from language models score every token and take the score of the last that
is not padding, which transformers finds by comparing ids with the pad token's. Where that is
also the end-of-text token, a text that ends with it is read one token too early; without a pad token a
batch fails. So the scores are taken where the head gives them, and pooled by the attention mask.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from protector_guardrails.detectors.checkpoints import first_line
from protector_guardrails.errors import DetectorError, WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

Ids = tuple[int, ...]


class PooledClassifier:
    """A sequence classifier whose logits do not depend on what it is batched with.

    Safe to call from several threads: one batch runs at a time.

    Args:
        model: The classifier.
        head: Name of the module that gives the logits.
        pad_id: What fills up a batch.
        probe: Tokens of a short text, on which the pooling is checked.

    Raises:
        WeightsError: If the classifier takes its score from elsewhere than the last token or a pooled text, or
            gives none.
    """

    def __init__(self, model: Any, *, head: str, pad_id: int, probe: Sequence[int]) -> None:
        self.model = model.eval()
        self.pad_id = pad_id
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._lock = threading.Lock()
        self._scored: list[Tensor] = []
        model.get_submodule(head).register_forward_hook(self._note)
        for config in (model.config, model.config.get_text_config()):
            config.use_cache = False
            if getattr(config, "pad_token_id", None) is None:
                config.pad_token_id = pad_id  # batches would raise; what it is makes no difference here
        self._check(list(probe))

    def logits(self, texts: Sequence[Ids], *, max_batch_tokens: int) -> NDArray[np.float64]:
        """Logits of each text, float64 of shape (texts, labels).

        Raises:
            DetectorError: If the memory does not suffice, or a logit is not a number.
        """
        rows: list[NDArray[np.float64] | None] = [None] * len(texts)
        for batch in batches([len(text) for text in texts], max_batch_tokens=max_batch_tokens):
            for index, row in zip(batch, self._batch([texts[index] for index in batch]), strict=True):
                rows[index] = row
        result = np.stack([row for row in rows if row is not None])
        if not np.isfinite(result).all():
            raise DetectorError("the model gave logits that are not numbers: use dtype='bfloat16' or 'float32'")
        return result

    def _batch(self, texts: Sequence[Ids]) -> NDArray[np.float64]:
        import torch

        texts = [text or (self.pad_id,) for text in texts]
        largest = max(max(text) for text in texts)
        if largest >= self.vocabulary:
            raise DetectorError(
                f"the tokenizer gives token {largest}, the model knows {self.vocabulary}: they do not belong together"
            )
        longest = max(len(text) for text in texts)
        ids = torch.full((len(texts), longest), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        try:
            with self._lock, torch.inference_mode():
                logits, _ = self._forward(ids.to(self.model.device), mask.to(self.model.device))
                return logits.cpu().double().numpy()
        except Exception as error:
            if out_of_memory(error):
                raise DetectorError(
                    f"out of memory with {len(texts)} windows of {longest} tokens: set a smaller max_batch_tokens, "
                    "or load the model with dtype='bfloat16' or quantization='8bit' or '4bit'"
                ) from error
            raise DetectorError(f"the model failed: {type(error).__name__}: {first_line(error)}") from error

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits pooled by the mask, and as the model pools them."""
        import torch

        self._scored.clear()
        try:
            own: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
            scored = self._scored[-1] if self._scored else own
        finally:
            self._scored.clear()
        if scored.ndim == 2:  # pooled before the head, by [CLS] or a mean
            return own, own
        return scored[torch.arange(len(ids), device=scored.device), mask.sum(dim=1).to(scored.device) - 1], own

    def _note(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._scored.append(output)

    def _check(self, probe: list[int]) -> None:
        """On one text without padding, the model itself and our pooling must agree."""
        import torch

        pad = self.model.config.get_text_config().pad_token_id
        while len(probe) > 1 and probe[-1] == pad:  # where the model would look one token too early
            probe = probe[:-1]
        ids = torch.tensor([probe or [self.pad_id]], device=self.model.device)
        with torch.inference_mode():
            pooled, own = self._forward(ids, torch.ones_like(ids))
        if not torch.isfinite(own).all():
            raise WeightsError("its logits for a short text are not numbers: the weights are damaged")
        if pooled.shape != own.shape or not torch.equal(pooled.float(), own.float()):
            raise WeightsError(
                f"{type(self.model).__name__} does not take its score from the last token, nor from a pooled text: "
                "such classifiers are not supported"
            )


def batches(lengths: Sequence[int], *, max_batch_tokens: int) -> Iterator[list[int]]:
    """Indices of texts that run together: of like length, and with padding not more tokens than allowed.

    A text longer than that runs alone.

    Example:
        >>> list(batches([3, 9, 4, 1], max_batch_tokens=9))
        [[1], [2, 0], [3]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        count = max(1, max_batch_tokens // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of a device or of the machine did not suffice."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "not enough memory", "can't allocate memory")
    )
