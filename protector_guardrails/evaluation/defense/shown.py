"""A few answers and what became of them, masked before they are kept."""

from __future__ import annotations

import heapq

from protector_guardrails.evaluation.defense.arms import GUARDS
from protector_guardrails.evaluation.defense.kept import digest
from protector_guardrails.evaluation.defense.measures import Measured
from protector_guardrails.evaluation.defense.results import Arm, DefenseExample
from protector_guardrails.masking import mask, shorten

KEPT = 5
_WIDTH = 160
_KINDS = ("leaked", "prevented", "needlessly_changed")


class FewExamples:
    """Draws a few answers of each kind at random; the draw depends on the seed and the cases, not on their order.

    Attacks are shown as the guard that rewrites left them.

    Args:
        judge: Name of the judge that says what succeeded.
        seed: Of the draw.
        masked: Keep the first few words only; else the beginning.
    """

    def __init__(self, judge: str, *, seed: int, masked: bool = True) -> None:
        self._judge, self._seed = judge, seed
        self._hide = mask if masked else lambda text: shorten(text, _WIDTH)
        self._heaps: dict[str, list[tuple[int, str, DefenseExample]]] = {kind: [] for kind in _KINDS}

    def offer(self, measured: Measured) -> None:
        """Consider an answered case."""
        if measured.case.benign:
            changed = [arm for arm in GUARDS if measured.guarded.arms[arm].text != measured.guarded.arms["none"].text]
            if changed:
                self._draw("needlessly_changed", changed[-1], measured)
            return
        bare, left = (measured.opinions[arm].get(self._judge) for arm in ("none", "detoxifier"))
        if left:
            self._draw("leaked", "detoxifier", measured)
        elif bare and left is False:
            self._draw("prevented", "detoxifier", measured)

    @property
    def examples(self) -> list[DefenseExample]:
        """What was drawn: leaked, prevented, needlessly changed."""
        return [example for kind in _KINDS for *_, example in sorted(self._heaps[kind], key=lambda entry: -entry[0])]

    def _draw(self, kind: str, arm: Arm, measured: Measured) -> None:
        case, left = measured.case, measured.guarded.arms[arm]
        heap = self._heaps[kind]
        lot = -digest(str(self._seed), measured.benchmark, case.id)  # the smallest digests are drawn
        if len(heap) == KEPT and lot <= heap[0][0]:
            return
        example = DefenseExample.model_validate(
            {
                "kind": kind,
                "case": case.id,
                "scenario": case.scenario,
                "arm": arm,
                "score": measured.guarded.score,
                "question": self._hide(case.question),
                "response": self._hide(measured.guarded.arms["none"].text),
                # The guard's refusal is the developer's own text.
                "text": shorten(left.text, _WIDTH) if left.action == "refuse" else self._hide(left.text),
            }
        )
        push = heapq.heappushpop if len(heap) == KEPT else heapq.heappush
        push(heap, (lot, f"{measured.benchmark} {case.id}", example))
