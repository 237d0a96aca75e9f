"""Drawings of a report on detectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protector_guardrails.evaluation.report import charts
from protector_guardrails.evaluation.report.document import Block, Chart, Charts, Paragraph
from protector_guardrails.evaluation.report.figures import number
from protector_guardrails.evaluation.results import DetectorResult
from protector_guardrails.masking import plain


def curves(detectors: Sequence[DetectorResult]) -> Iterator[Block]:
    """ROC and precision-recall curves of all detectors over each other, and the calibration of each."""
    drawn = [detector for detector in detectors if detector.curves.roc and detector.curves.pr]
    for detector in detectors:
        if detector not in drawn:
            reason = detector.overall.auroc.reason or "there is nothing to draw"
            yield Paragraph(f"No ROC and precision-recall curves of {plain(detector.spec)}: {plain(reason)}.")
    both = []
    if drawn:
        names = ", ".join(plain(detector.spec) for detector in drawn)
        told = "; ".join(f"{plain(one.spec)}: AUROC {number(one.overall.auroc).text}" for one in drawn)
        both = [
            Chart(
                title="ROC curve",
                svg=charts.roc(
                    [(one.spec, one.curves.roc, one.overall.decisions[0]) for one in drawn],
                    description=f"ROC curve of {told}",
                ),
                note="The mark is the threshold of this evaluation; the dotted line is chance.",
            ),
            Chart(
                title="Precision-recall curve",
                svg=charts.precision_recall(
                    [(one.spec, one.curves.pr, one.overall.decisions[0]) for one in drawn],
                    prevalence=drawn[0].overall.harmful / drawn[0].overall.answers,
                    description=f"Precision-recall curve of {names}; the same figures stand in the tables",
                ),
                note="The dotted line is the share of harmful answers: what flagging at random would give.",
            ),
        ]
    calibration = [
        Chart(
            title="Calibration" if len(detectors) == 1 else f"Calibration of {plain(detector.spec)}",
            svg=charts.reliability(
                detector.curves.reliability,
                name=f"reliability-{index}",
                index=index,
                description=f"Reliability diagram of {plain(detector.spec)}: "
                f"calibration error {number(detector.overall.ece).text}",
            ),
            note="On the dotted line a score means what it says. Below: how many answers get such a score.",
        )
        for index, detector in enumerate(detectors)
        if detector.curves.reliability
    ]
    if both or calibration:
        yield Charts(charts=[*both, *calibration])
