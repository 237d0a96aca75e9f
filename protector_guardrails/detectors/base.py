"""What a harm detector is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from protector_guardrails.threads import run_in_thread
from protector_guardrails.types import Exchange, Verdict


class HarmDetector(ABC):
    """Scores responses. Subclass it and write :meth:`detect`; everything else follows.

    ``detect`` may be called from several threads at once. It may raise: the guard then
    fails closed. It need not care for policy: :class:`~protector_guardrails.Policy`
    applies its own thresholds to the scores.

    Attributes:
        name: Name and version, as written into every verdict.
        threshold: Score from which its own verdicts are harmful, and tell spans.
        thresholds: Scores that have a name, such as ``"fpr-1%"``, for ``Policy(threshold="fpr-1%")``.
        categories: The harm categories that it can tell; None where that is not known. A guard refuses a policy
            with a threshold for another one, which would never apply.

    Example:
        >>> from protector_guardrails import Exchange, HarmDetector, Verdict
        >>> class Shouting(HarmDetector):
        ...     name = "shouting@1"
        ...     def detect(self, exchanges):
        ...         scores = [float(e.response.isupper()) for e in exchanges]
        ...         return [Verdict(harmful=s >= 0.5, score=s, detector=self.name) for s in scores]
        >>> Shouting().detect([Exchange(response="STOP"), Exchange(response="go on")])[0].harmful
        True
    """

    name: str = "unnamed"
    threshold: float = 0.5
    thresholds: Mapping[str, float] = MappingProxyType({})
    categories: Sequence[str] | None = None

    @abstractmethod
    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge a batch; exactly one verdict per exchange, in order."""

    async def adetect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge a batch without blocking the event loop: :meth:`detect` in a thread, unless overridden."""
        return await run_in_thread(self.detect, exchanges)
