"""Which sentences of a harmful response carry its score.

A window of a response is harmful as a whole. Its sentences are judged one by one, with the
question beside them, and those that are harmful by themselves are told. Where none is, the harm
lies in how they stand together, and the whole window is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protector_guardrails.sentences import passage_ranges

Span = tuple[int, int]

MOST_WINDOWS = 8
"""So many windows of a response are looked into, the most harmful ones first; further ones are told as they are."""

_LONGEST = 600
"""Characters of a sentence from which only its part in the harmful windows is judged."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is to be judged in order to attribute one response's harm.

    Attributes:
        pieces: Ranges of the response to be judged by themselves.
        windows: The windows that they stand in, merged; one is told where no piece in it is harmful.
        others: Harmful windows that are not looked into, merged.
    """

    pieces: tuple[Span, ...]
    windows: tuple[Span, ...]
    others: tuple[Span, ...]

    def spans(self, harmful: Iterable[bool]) -> tuple[Span, ...]:
        """The passages that carry the score, in order, none overlapping another.

        Args:
            harmful: For each of :attr:`pieces` whether it is harmful by itself.
        """
        found = [piece for piece, is_harmful in zip(self.pieces, harmful, strict=True) if is_harmful]
        whole = [
            (start, end)
            for start, end in self.windows
            if not any(begin < end and start < stop for begin, stop in found)
        ]
        told = sorted([*found, *whole])
        return tuple(sorted([*told, *_outside(self.others, told)]))


def candidates(response: str, windows: Sequence[tuple[float, Span]]) -> Candidates:
    """What is to be judged in a harmful response.

    Args:
        response: The response.
        windows: Logit and range of each of its harmful windows.
    """
    ranked = [span for _, span in sorted(windows, key=lambda window: (-window[0], window[1])) if span[0] < span[1]]
    regions = merged(ranked[:MOST_WINDOWS])
    pieces: list[Span] = []
    region = 0
    for start, end in passage_ranges(response):
        while region < len(regions) and regions[region][1] <= start:
            region += 1
        if region == len(regions):
            break
        if end - start <= _LONGEST:
            if regions[region][0] < end:
                pieces.append((start, end))
            continue
        for begin, stop in regions[region:]:
            if begin >= end:
                break
            pieces.append((max(start, begin), min(end, stop)))
    if len(pieces) == 1:  # no choice is left
        pieces, regions = [], pieces
    return Candidates(tuple(pieces), tuple(regions), tuple(merged(ranked[MOST_WINDOWS:])))


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same characters as ranges in order that neither overlap nor touch."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _outside(spans: Iterable[Span], taken: Sequence[Span]) -> list[Span]:
    """What of ``spans`` none of ``taken`` covers, both in order and without overlaps."""
    left: list[Span] = []
    for start, end in spans:
        free = start
        for begin, stop in taken:
            if free < begin < end:
                left.append((free, begin))
            if begin < end:
                free = max(free, stop)
        if free < end:
            left.append((free, end))
    return left
