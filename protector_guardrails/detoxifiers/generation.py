"""Letting a language model write: several prompts at a time, each stopping where its text ends."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from protector_guardrails.sentences import split_passages

if TYPE_CHECKING:
    from protector_guardrails.detoxifiers.fast_decoding import FastDecoder

_DECODER = "_protector_fast_decoder"
_STOP = re.compile(r"[.!?。！？…][\"'”’)\]」』）*_]*\s*$")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"\w+")

End = Literal["complete", "cut", "time"]


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote after one prompt.

    Attributes:
        ids: Tokens without the prompt and without the special token that ended it.
        end: ``"complete"``: the model ended it; ``"cut"``: at the limit of tokens; ``"time"``: at the limit of time.
    """

    ids: list[int]
    end: End


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
    deadline: float,
    threads: int,
    **options: Any,
) -> list[Written]:
    """Continue each prompt greedily, padded on the left, so that each gets what it gets alone.

    Args:
        model: A causal language model of ``transformers``.
        prompts: Token ids; none may be empty.
        end_ids: Tokens that end a text.
        pad_id: What fills up on the left; any token, since it is masked.
        max_new_tokens: Most tokens written per prompt, whatever the prompt's length.
        deadline: ``time.monotonic()`` at which to stop.
        threads: CPU threads of PyTorch; its setting is one for the process, and is put back afterwards.
        options: Further settings of ``transformers.GenerationConfig``.
    """
    import torch
    import transformers

    library: Any = transformers  # its classes have no types

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    if not options and (decoder := _fast_decoder(model)) is not None:
        with torch.inference_mode(), _threads(threads):
            rows = decoder.write(ids, mask, end_ids=end_ids, max_new_tokens=max_new_tokens, deadline=deadline)
        return [_written(row, end_ids, max_new_tokens) for row in rows]
    settings = library.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted(end_ids),
        pad_token_id=pad_id,
        **options,
    )
    remaining = max(deadline - time.monotonic(), 1e-3)
    with torch.inference_mode(), _threads(threads):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            stopping_criteria=library.StoppingCriteriaList([library.MaxTimeCriteria(max_time=remaining)]),
        )
    return [_written(row, end_ids, max_new_tokens) for row in output[:, longest:].tolist()]


def _fast_decoder(model: Any) -> FastDecoder | None:
    """The fast loop for a model, made once for it; None if it is a model of another kind."""
    from protector_guardrails.detoxifiers.fast_decoding import FastDecoder, fits

    if not hasattr(model, _DECODER):
        setattr(model, _DECODER, FastDecoder(model) if fits(model) else None)
    decoder: FastDecoder | None = getattr(model, _DECODER)
    return decoder


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _written(row: list[int], end_ids: Collection[int], limit: int) -> Written:
    end = next((i for i, token in enumerate(row) if token in end_ids), None)
    if end is not None:
        return Written(row[:end], "complete")
    return Written(row, "cut" if len(row) >= limit else "time")


def whole_sentences(text: str, *, min_words: int) -> str:
    """A text that was cut off, back to the end of its last whole sentence or line.

    Returns:
        The text up to there, or "" if that is less than ``min_words`` words.

    Example:
        >>> whole_sentences("Ask a pharmacist about it first. They can tell you wh", min_words=5)
        'Ask a pharmacist about it first.'
    """
    passages = split_passages(text)
    while passages and not _is_whole(passages[-1]):
        passages.pop()
    kept = "".join(passages).rstrip()
    return kept if len(_WORD.findall(kept)) >= min_words else ""


def _is_whole(passage: str) -> bool:
    if not _LETTER.search(passage) or passage.rstrip().endswith(":"):  # "2." and "Instead:" want a continuation
        return False
    return passage.endswith("\n") or _STOP.search(passage) is not None
