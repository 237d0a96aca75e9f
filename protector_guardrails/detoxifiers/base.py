"""What a detoxifier is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.policy import Policy
from protector_guardrails.threads import run_in_thread
from protector_guardrails.types import Exchange, Verdict


class Detoxifier(ABC):
    """Rewrites harmful responses. Subclass it and write :meth:`detoxify`.

    What it returns is judged again by the guard, so it may fail: an empty text, a text
    still harmful or an exception all end in the refusal.

    Attributes:
        refuses: True if the texts are fixed by the developer and owe nothing to the
            response; they are then not judged again and count as refusals.

    Example:
        >>> class FirstSentence(Detoxifier):
        ...     def detoxify(self, exchanges, verdicts):
        ...         return [exchange.response.partition(". ")[0] + "." for exchange in exchanges]
        >>> FirstSentence().detoxify([Exchange(response="At nine. Or never.")], [Verdict(harmful=True, score=0.9)])
        ['At nine.']
    """

    refuses: ClassVar[bool] = False

    @abstractmethod
    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
        """Rewrite a batch; exactly one text per exchange, in order, empty where there is none to give."""

    async def adetoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
        """Rewrite a batch off the event loop: :meth:`detoxify` in a thread, unless overridden."""
        return await run_in_thread(self.detoxify, exchanges, verdicts)

    def bound_to(self, detector: HarmDetector, policy: Policy) -> Self:  # noqa: ARG002
        """This detoxifier for use in a guard; most need neither of the two and return themselves.

        Args:
            detector: The guard's detector.
            policy: The guard's policy; its thresholds say which verdicts mean harm.
        """
        return self
