"""Turning an exchange into overlapping windows of tokens.

Training, calibration and inference all go through :class:`PairEncoder`, so a
response is cut the same way when a detector learns from it and when it judges
it. Only the ``tokenizers`` library is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


@dataclass(frozen=True, slots=True)
class Window:
    """One model input: ``[CLS] question [SEP] a piece of the passage [SEP]``.

    Attributes:
        ids: Token ids, special tokens included.
        question_length: How many leading ids belong to segment 0 (``[CLS]``,
            the question and its ``[SEP]``); the rest are segment 1.
        passage: Index of the passage that the piece was cut from.
        start: First character of the piece within its passage.
        end: One past the last character of the piece within its passage.
    """

    ids: tuple[int, ...]
    question_length: int
    passage: int
    start: int
    end: int


def window_bounds(length: int, *, size: int, overlap: int) -> list[tuple[int, int]]:
    """Cut ``length`` tokens into windows of at most ``size`` that overlap.

    Every token is in at least one window, consecutive windows share ``overlap``
    tokens, and no window lies inside another. An empty text gives one empty window.

    Args:
        length: Number of tokens.
        size: Tokens per window, at least 1.
        overlap: Tokens that consecutive windows share, below ``size``.

    Returns:
        Half-open ``(start, end)`` token ranges in order.

    Raises:
        ValueError: If ``overlap`` is not in ``[0, size)``.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap must be at least 0 and below size; got overlap={overlap}, size={size}")
    if length <= size:
        return [(0, length)]
    step = size - overlap
    starts = range(0, length - overlap, step)
    return [(start, min(start + size, length)) for start in starts]


def printable(text: str) -> str:
    """Replace lone surrogates, which the tokenizer cannot encode, one character for one.

    Offsets into the result are therefore offsets into ``text``.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    return text


_Offsets = Sequence[tuple[int, int]] | NDArray[np.int64]
_Tokens = tuple[list[int], _Offsets]
_SPECIAL_TOKENS = 3  # [CLS] question [SEP] piece [SEP]
_FEW_TEXTS = 8
"""So many are tokenised one by one: waking the tokenizer's threads for them takes longer, on busy cores by far."""


class PairEncoder:
    """Encodes (question, passages) as windows for a BERT-style sequence classifier.

    Args:
        tokenizer: A ``tokenizers.Tokenizer`` with ``[CLS]`` and ``[SEP]``. Its
            own truncation, padding and special-token template are not used.
        max_tokens: Tokens of one window, special tokens included.
        question_tokens: At most so many tokens of the question are kept: its
            first and last halves, since a request often ends with what it wants.
        overlap: Tokens that consecutive windows of a passage share.

    Raises:
        ValueError: If the tokenizer has no such tokens, or if beside the longest question
            a window would not hold more than ``overlap`` tokens of a passage.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, max_tokens: int = 192, question_tokens: int = 64, overlap: int = 32
    ) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # A response that spells out "[SEP]" has not ended: what is written is text, never a special token.
        self.tokenizer.encode_special_tokens = True
        if question_tokens < 0 or not 0 <= overlap < max_tokens - question_tokens - _SPECIAL_TOKENS:
            raise ValueError(
                f"windows of {max_tokens} tokens have no room for {question_tokens} of a question"
                f" and pieces of a passage that share {overlap}"
            )
        self.max_tokens = max_tokens
        self.question_tokens = question_tokens
        self.overlap = overlap
        self.cls_id = self._special("[CLS]")
        self.sep_id = self._special("[SEP]")

    def _special(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(
                f"the tokenizer has no {token} token, so it cannot encode a question and a response as a pair"
            )
        return int(token_id)

    def encode(self, pairs: Sequence[tuple[str | None, Sequence[str]]]) -> list[list[Window]]:
        """Encode a batch; one list of windows per pair, at least one window each.

        Args:
            pairs: ``(question, passages)``; the question may be None or empty,
                and each passage is windowed on its own.

        Returns:
            For each pair its windows, passage by passage, in reading order.
        """
        texts: list[str] = []
        for question, passages in pairs:
            texts.append(_ends(question or ""))
            texts.extend(passages)
        tokenised = iter(self._tokenise([printable(text) for text in texts]))
        batch: list[list[Window]] = []
        for _, passages in pairs:
            question_ids, _offsets = next(tokenised)
            prefix = (self.cls_id, *self._shorten(question_ids), self.sep_id)
            windows: list[Window] = []
            for index in range(len(passages)):
                windows.extend(self._windows(prefix, *next(tokenised), passage=index))
            batch.append(windows)
        return batch

    def _tokenise(self, texts: Sequence[str]) -> list[_Tokens]:
        """Ids and character offsets of each text; long ones in segments, to bound the memory."""
        segmented = [_segments(text) for text in texts]
        short = iter(self._encoded([parts[0] for parts in segmented if len(parts) == 1]))
        result: list[_Tokens] = []
        for parts in segmented:
            if len(parts) == 1:
                encoding = next(short)
                result.append((encoding.ids, encoding.offsets))
                continue
            ids: list[int] = []
            offsets: list[NDArray[np.int64]] = []
            begin = 0
            for part in parts:
                encoding = self.tokenizer.encode(part, add_special_tokens=False)
                ids.extend(encoding.ids)
                offsets.append(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + begin)
                begin += len(part)
            result.append((ids, np.concatenate(offsets)))
        return result

    def _encoded(self, texts: Sequence[str]) -> Sequence[Encoding]:
        if len(texts) > _FEW_TEXTS:
            return self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def _shorten(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.question_tokens:
            return ids
        head = self.question_tokens // 2
        return ids[:head] + ids[len(ids) - (self.question_tokens - head) :]

    def _windows(self, prefix: tuple[int, ...], ids: list[int], offsets: _Offsets, *, passage: int) -> list[Window]:
        size = self.max_tokens - len(prefix) - 1
        return [
            Window(
                ids=(*prefix, *ids[start:end], self.sep_id),
                question_length=len(prefix),
                passage=passage,
                start=int(offsets[start][0]) if end > start else 0,
                end=int(offsets[end - 1][1]) if end > start else 0,
            )
            for start, end in window_bounds(len(ids), size=size, overlap=self.overlap)
        ]


def _ends(question: str, *, characters: int = 4000) -> str:
    """A very long question reduced to its two ends, of which few tokens are kept anyway."""
    if len(question) <= 2 * characters:
        return question
    return f"{question[:characters]} {question[-characters:]}"


def _segments(text: str, *, characters: int = 50_000) -> list[str]:
    """Cut a long text at white space where there is some; joined, the segments are the text."""
    segments: list[str] = []
    start = 0
    while len(text) - start > characters:
        cut = max(text.rfind(space, start, start + characters) for space in " \n\t")
        end = cut if cut > start else start + characters
        segments.append(text[start:end])
        start = end
    return [*segments, text[start:]]


def pad_windows(windows: Sequence[Window], *, pad_id: int = 0) -> dict[str, NDArray[np.int64]]:
    """Stack windows into arrays padded to the longest of them.

    Returns:
        ``input_ids``, ``attention_mask`` and ``token_type_ids``, each int64 of
        shape (number of windows, longest window).
    """
    longest = max(len(window.ids) for window in windows)
    input_ids = np.full((len(windows), longest), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(windows), longest), dtype=np.int64)
    token_type_ids = np.zeros((len(windows), longest), dtype=np.int64)
    for row, window in enumerate(windows):
        length = len(window.ids)
        input_ids[row, :length] = window.ids
        attention_mask[row, :length] = 1
        token_type_ids[row, window.question_length : length] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def pool_weights(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """How much each window of an exchange counts: the softmax of the windows' logits of harm.

    Args:
        logits: Logits of harm, of shape (windows,).

    Returns:
        Weights of shape (windows,) that sum to 1.
    """
    weights = np.exp(np.asarray(logits, dtype=np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


def pool_logits(logits: NDArray[np.floating]) -> float:
    """Combine the logits of one exchange's windows into one.

    Each window is weighted by the softmax of the logits themselves: one harmful
    paragraph in a long answer decides, yet the result never exceeds the largest
    logit, so a long answer is not suspect for its length alone.
    """
    # Rounding may lift a mean of equal logits by a bit, which at a threshold would matter.
    return float(min((pool_weights(logits) * logits).sum(), logits.max()))
