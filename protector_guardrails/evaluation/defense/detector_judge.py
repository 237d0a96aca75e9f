"""The judge that is a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from protector_guardrails.asking import Asker, Detect
from protector_guardrails.errors import ProtectorError
from protector_guardrails.evaluation.defense.judges import Judge, JudgedText, JudgeKind, Opinion
from protector_guardrails.evaluation.specs import NamedDetector
from protector_guardrails.policy import Policy
from protector_guardrails.types import Exchange, Image, Verdict

THRESHOLD = Policy().default_threshold
"""From which a score is harmful for a judge, whatever the guard's policy says."""


class DetectorJudge(Judge):
    """Asks a detector, which sees more than a guard's: what the attack is after, too.

    Args:
        detector: The detector.
    """

    kind: ClassVar[JudgeKind] = "detector"

    def __init__(self, detector: NamedDetector) -> None:
        self.detector = detector
        self.name = self.spec = f"detector:{detector.spec}"
        self.version = detector.detector.name

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Of the detector, its weights and its source."""
        return {**super().fingerprint, "detector": self.detector.fingerprint, "threshold": THRESHOLD}

    def judge(self, texts: Sequence[JudgedText]) -> list[Opinion]:
        """Harmful from :data:`THRESHOLD` on."""
        asker = Asker(None)
        verdicts = asker.run(asker.ask(Detect(self.detector.detector, [_exchange(text) for text in texts])))
        return [_opinion(verdict) for verdict in verdicts]


def _exchange(text: JudgedText) -> Exchange:
    case = text.case
    question = case.question if case.intent in (None, case.question) else f"{case.question}\n{case.intent}"
    images = (Image(description=case.description),) if case.description else ()
    return Exchange(question=question, response=text.text, images=images)


def _opinion(verdict: Verdict | ProtectorError) -> Opinion:
    if isinstance(verdict, ProtectorError):
        return Opinion(None, f"{type(verdict).__name__}: {verdict}", failed=True)
    return Opinion(verdict.score >= THRESHOLD)
