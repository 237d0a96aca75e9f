"""The detoxifier that leaves out the harmful passages and keeps the rest byte for byte."""

from __future__ import annotations

import copy
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Self

from protector_guardrails.detectors.attribution import Span, merged
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.errors import ConfigurationError, DetectorError
from protector_guardrails.policy import Policy
from protector_guardrails.sentences import split_passages
from protector_guardrails.types import Exchange, Verdict

_WORD = re.compile(r"\w+")


class RedactDetoxifier(Detoxifier):
    """Drops the passages that the detector finds harmful and keeps the others as they are.

    Where the verdict tells spans, they are where the harm is: a passage that is a span is dropped,
    one that none touches is kept, and only what lies between is judged. Without spans, or where
    the policy's thresholds are not the detector's own, passages are judged one by one with the
    question beside them, in one batch, so the work grows linearly with the response. The guard
    judges what is left as a whole; harm that only arises from several harmless sentences
    together is caught there and ends in the refusal.

    Args:
        detector: What judges the passages; left out, the guard's own detector. The guard's
            policy decides which of its scores mean harm, without a guard the threshold of
            the verdict on the whole response does.
        keep_at_least: Share of the response's words that must be left, in [0, 1]; with
            less, an answer hardly makes sense and nothing is returned, which means refusal.
        min_words: Words that must be left whatever the share.

    Example:
        >>> class Poison(HarmDetector):
        ...     def detect(self, exchanges):
        ...         scores = [float("poison" in exchange.response) for exchange in exchanges]
        ...         return [Verdict(harmful=score > 0.5, score=score) for score in scores]
        >>> recipe = Exchange(response="Boil the soup for ten minutes. Add poison. Serve it hot.")
        >>> RedactDetoxifier(detector=Poison()).detoxify([recipe], Poison().detect([recipe]))
        ['Boil the soup for ten minutes. Serve it hot.']
    """

    def __init__(
        self, *, detector: HarmDetector | None = None, keep_at_least: float = 0.25, min_words: int = 5
    ) -> None:
        if not 0.0 <= keep_at_least <= 1.0:
            raise ConfigurationError(f"keep_at_least must be a share in [0, 1], not {keep_at_least!r}")
        self.detector = detector
        self.policy: Policy | None = None
        self.keep_at_least = keep_at_least
        self.min_words = min_words

    def bound_to(self, detector: HarmDetector, policy: Policy) -> Self:
        """A copy that uses ``detector``, unless one was given already, and the thresholds of ``policy``."""
        bound = copy.copy(self)
        bound.detector = detector if self.detector is None else self.detector
        bound.policy = policy
        return bound

    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
        """Redact each response; an empty text where too little is left.

        Raises:
            ConfigurationError: If no detector was given and no guard bound one.
            DetectorError: If the detector does not return one verdict per passage.
        """
        if self.detector is None:
            raise ConfigurationError("RedactDetoxifier needs a detector: pass detector=, or use it through a guard")
        plans = [
            self._plan(exchange.response, verdict, self.detector)
            for exchange, verdict in zip(exchanges, verdicts, strict=True)
        ]
        pieces = [
            Exchange(question=exchange.question, images=exchange.images, response=passage)
            for exchange, plan in zip(exchanges, plans, strict=True)
            for passage, harmful in plan
            if harmful is None
        ]
        passage_verdicts = self.detector.detect(pieces) if pieces else []
        if len(passage_verdicts) != len(pieces):
            raise DetectorError(f"detect returned {len(passage_verdicts)} verdicts for {len(pieces)} passages")
        judged = iter(passage_verdicts)
        rewritten = []
        for plan, verdict in zip(plans, verdicts, strict=True):
            decided = [(p, self._is_harmful(next(judged), verdict) if known is None else known) for p, known in plan]
            rewritten.append(self._joined([p for p, harmful in decided if not harmful], [p for p, _ in plan]))
        return rewritten

    def _plan(self, response: str, whole: Verdict, detector: HarmDetector) -> list[tuple[str, bool | None]]:
        """Each passage, with whether it is harmful; None where that has to be judged."""
        lowest = usual = whole.threshold
        if self.policy is not None:
            lowest, usual = min(lowest, self.policy.strictest_threshold), min(usual, self.policy.default_threshold)
        # Spans are told at the detector's own threshold. At a lower one there may be more, at a higher one fewer.
        told_all, told_only = lowest >= detector.threshold, usual <= detector.threshold
        spans = whole.spans if whole.detector == detector.name else ()
        exactly, covered = set(spans), merged(spans)
        plan: list[tuple[str, bool | None]] = []
        start = 0
        for passage in split_passages(response):
            end = start + len(passage)
            body = (start + len(passage) - len(passage.lstrip()), start + len(passage.rstrip()))
            harmful: bool | None = None
            if not _WORD.search(passage) or (spans and told_all and not _overlaps(covered, start, end)):
                harmful = False
            elif body in exactly and told_only:
                harmful = True
            plan.append((passage, harmful))
            start = end
        return plan

    def _joined(self, kept: list[str], passages: list[str]) -> str:
        words_before = sum(len(_WORD.findall(passage)) for passage in passages)
        words_after = sum(len(_WORD.findall(passage)) for passage in kept)
        if words_after < max(self.min_words, self.keep_at_least * words_before):
            return ""
        return "".join(kept)

    def _is_harmful(self, passage: Verdict, whole: Verdict) -> bool:
        # The response may have been judged elsewhere, at a threshold stricter than the policy's.
        by_policy = self.policy is not None and self.policy.apply(passage).harmful
        return by_policy or passage.score >= whole.threshold


def _overlaps(spans: Sequence[Span], start: int, end: int) -> bool:
    """Whether any of ``spans``, which are in order and apart, shares a character with the range."""
    before = bisect_left(spans, end, key=lambda span: span[0])
    return before > 0 and spans[before - 1][1] > start
