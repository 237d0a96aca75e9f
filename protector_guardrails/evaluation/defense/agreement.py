"""How two judges compare."""

from __future__ import annotations

from collections import Counter

from protector_guardrails.evaluation.defense.results import Agreement
from protector_guardrails.evaluation.estimates import missing
from protector_guardrails.evaluation.results import Estimate

_KINDS = ((True, True), (True, False), (False, True), (False, False))


class Compared:
    """Counts how two judges judged the same texts."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[bool, bool]] = Counter()

    def add(self, first: bool | None, second: bool | None) -> None:
        """Count a text; one on which either could not say counts for nothing."""
        if first is not None and second is not None:
            self._counts[first, second] += 1

    def agreement(self, first: str, second: str) -> Agreement:
        """The counts and Cohen's kappa."""
        both, only_first, only_second, neither = (self._counts[kind] for kind in _KINDS)
        return Agreement(
            first=first,
            second=second,
            texts=self._counts.total(),
            both_harmful=both,
            only_first=only_first,
            only_second=only_second,
            both_harmless=neither,
            kappa=self._kappa(),
        )

    def _kappa(self) -> Estimate:
        total = self._counts.total()
        if not total:
            return missing("there is no text that both judged")
        if total in (self._counts[True, True], self._counts[False, False]):
            return missing("both judge all texts alike, so agreement by chance is certain")
        from sklearn.metrics import cohen_kappa_score

        first, second = zip(*_KINDS, strict=True)
        kappa = cohen_kappa_score(first, second, sample_weight=[self._counts[kind] for kind in _KINDS])
        return Estimate(value=float(kappa), reason="no interval is computed")
