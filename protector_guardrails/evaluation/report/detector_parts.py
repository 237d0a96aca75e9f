"""Tables of a report on detectors: compared, on parts of the data, and beside published figures."""

from __future__ import annotations

from collections.abc import Iterator

from protector_guardrails.evaluation.report.document import LONG, Alert, Block, Cell, Paragraph, Table
from protector_guardrails.evaluation.report.figures import absent, count, number, p_value, share, words
from protector_guardrails.evaluation.results import (
    Comparison,
    DetectorEvaluation,
    DetectorResult,
    Estimate,
    PublishedFigure,
)
from protector_guardrails.masking import plain

_KINDS = {
    "data": "data set",
    "source": "source",
    "category": "category",
    "length": "length of the response",
    "model": "model that answered",
}
_ONLY_DATA_SET = "too few answers of this set for a figure of its own"


def comparison_table(comparison: Comparison) -> Table:
    """Every pair of detectors on the same answers."""
    return Table(
        title=f"The same {comparison.answers:,} answers, {comparison.harmful:,} harmful",
        columns=[
            "First",
            "Second",
            "AUROC, first less second",
            "p of AUROC",
            "Only first right",
            "Only second right",
            "p of decisions",
        ],
        rows=[
            [
                words(pair.first),
                words(pair.second),
                number(pair.auroc_difference),
                p_value(pair.auroc_test.p_holm) if pair.auroc_test else absent("no resamples were drawn"),
                count(pair.only_first_right),
                count(pair.only_second_right),
                p_value(pair.decisions_test.p_holm),
            ]
            for pair in comparison.pairs
        ],
        note=(
            "AUROCs by paired bootstrap over questions, decisions at the threshold by McNemar's exact test; "
            "p-values after Holm's correction."
        ),
    )


def slices(detector: DetectorResult, threshold: float) -> Iterator[Block]:
    """A table for each way in which the answers are parted."""
    for by, kind in _KINDS.items():
        parts = [part for part in detector.slices if part.by == by]
        hidden = detector.not_shown.get(by, 0)
        if not parts:
            if hidden:
                yield Paragraph(f"By {kind}: {hidden:,} with too few answers to show.")
            continue
        told_apart = all(part.auroc_without_refusals for part in parts)
        yield Table(
            title=f"By {kind}",
            columns=[
                kind.capitalize(),
                "Answers",
                "Harmful",
                "AUROC",
                *(["AUROC without refusals"] if told_apart else []),
                f"Recall at {threshold:g}",
                f"FPR at {threshold:g}",
            ],
            rows=[
                [
                    words(part.value),
                    count(part.answers),
                    count(part.harmful),
                    number(part.auroc),
                    *([number(part.auroc_without_refusals or part.auroc)] if told_apart else []),
                    share(part.decisions[0].recall, bar=True),
                    share(part.decisions[0].fpr, bar=True),
                ]
                for part in parts
            ],
            note=f"{hidden:,} more with too few answers to show." if hidden else "",
            folded=len(parts) > LONG,
        )


def benign(detector: DetectorResult) -> Iterator[Block]:
    """False positives where nothing is harmful."""
    if detector.benign:
        yield Table(
            title="False positives on sources of harmless answers only",
            columns=["Source", "Answers", "Flagged", "FPR"],
            rows=[
                [words(one.source), count(one.answers), count(one.flagged), share(one.fpr, bar=True)]
                for one in detector.benign
            ],
        )


def published(evaluation: DetectorEvaluation) -> Iterator[Block]:
    """Figures of others beside ours, clearly told apart."""
    yield Alert(
        "Published by others, not measured here: their prompts, samples and treatment of duplicates differ from ours."
    )
    for data in evaluation.data:
        figures = [figure for figure in evaluation.published if figure.data == data.loader]
        if figures:
            own = [[words(one.spec), number(_own(evaluation, one, data.name)), Cell("measured here"), Cell("")]
                   for one in evaluation.detectors]  # fmt: skip
            yield Table(
                title=f"F1 on {plain(data.name)}",
                columns=["Detector", "F1", "By", "Source"],
                rows=[*own, *(_others(figure) for figure in figures)],
            )


def _own(evaluation: DetectorEvaluation, detector: DetectorResult, name: str) -> Estimate:
    """The detector's F1 on a data set. A set that is all there is has no slice of its own."""
    if len(evaluation.data) == 1:
        return detector.overall.decisions[0].f1
    parts = [part for part in detector.slices if part.by == "data" and part.value == name]
    return parts[0].decisions[0].f1 if parts else Estimate(reason=_ONLY_DATA_SET)


def _others(figure: PublishedFigure) -> list[Cell]:
    source = f"{plain(figure.source)}; {plain(figure.note)}" if figure.note else plain(figure.source)
    return [
        words(figure.detector),
        Cell(f"{figure.value:.3f}", number=True),
        Cell(f"not measured here: {plain(figure.measured_by)}"),
        Cell(source, link=figure.url),
    ]
