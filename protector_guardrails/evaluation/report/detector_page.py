"""The report on detectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protector_guardrails.evaluation.report.detector_curves import curves
from protector_guardrails.evaluation.report.detector_parts import benign, comparison_table, published, slices
from protector_guardrails.evaluation.report.detector_run import details, examples, failures, latency
from protector_guardrails.evaluation.report.document import (
    Bullets,
    Cell,
    Decided,
    Document,
    KeyFigure,
    Section,
    Table,
    Threshold,
)
from protector_guardrails.evaluation.report.figures import (
    absent,
    count,
    milliseconds,
    number,
    out_of,
    percent,
    score,
    share,
    words,
)
from protector_guardrails.evaluation.results import Decisions, DetectorEvaluation, DetectorResult, Slice
from protector_guardrails.masking import plain


def detector_document(evaluation: DetectorEvaluation) -> Document:
    """What the report says of one detector or several."""
    detectors, run = evaluation.detectors, evaluation.run
    answers = sum(data.answers for data in evaluation.data)
    harmful = sum(data.harmful for data in evaluation.data)
    seen = "question and response" if run.with_question else "the response alone"
    what = f"{len(detectors)} detectors" if len(detectors) > 1 else plain(detectors[0].name) if detectors else "nothing"
    return Document(
        title=f"Evaluation of {what}",
        headline=[_headline(detector, name=len(detectors) > 1) for detector in detectors] or ["No detector was run."],
        summary=(
            f"{answers:,} labelled answers, {harmful:,} of them harmful. Judged: {seen}. "
            f"Harmful is what scores {run.threshold:g} or more."
        ),
        key_figures=_key_figures(detectors[0]) if len(detectors) == 1 else (),
        sections=list(_sections(evaluation)),
    )


def _headline(detector: DetectorResult, *, name: bool) -> str:
    overall, at = detector.overall, detector.overall.decisions[0]
    who = plain(detector.spec) if name else "The detector"
    harmless = overall.answers - overall.harmful
    found = f"finds {out_of(at.recall, overall.harmful)} harmful answers" if at.recall.value is not None else ""
    flags = f"flags {out_of(at.fpr, harmless)} harmless ones" if at.fpr.value is not None else ""
    if found and flags:
        return f"{who} {found} and {flags}."
    if found:
        return f"{who} {found}; there are no harmless ones to tell them from."
    if flags:
        return f"{who} {flags.replace('ones', 'answers')}; there are no harmful ones to find."
    return f"{who} scored no answer."


def _key_figures(detector: DetectorResult) -> list[KeyFigure]:
    overall, at, took = detector.overall, detector.overall.decisions[0], detector.latency
    return [
        KeyFigure("Recall", share(at.recall), f"of {overall.harmful:,} harmful answers are found"),
        KeyFigure(
            "False positives", share(at.fpr), f"of {overall.answers - overall.harmful:,} harmless answers are flagged"
        ),
        KeyFigure("Precision", share(at.precision), "of what is flagged is harmful"),
        KeyFigure("AUROC", number(overall.auroc), "0.5 is chance, 1 is perfect"),
        KeyFigure("Calibration error", number(overall.ece), "0 is best: a score of 0.7 then means 70\u00a0% harm"),
        KeyFigure("Time per answer", milliseconds(took.median), f"median, in batches of {took.batch_size}"),
    ]


def _sections(evaluation: DetectorEvaluation) -> Iterator[Section]:
    detectors, run = evaluation.detectors, evaluation.run
    if evaluation.notes:
        yield Section("What to know first", [Bullets([plain(note) for note in evaluation.notes])])
    if detectors:
        yield Section("Threshold", [_threshold(evaluation)])
        yield Section("Figures", [_figures(detectors, run.threshold), _at_rates(detectors)])
        yield Section("Curves", list(curves(detectors)))
    if evaluation.comparison is not None:
        yield Section("Comparison", [comparison_table(evaluation.comparison)])
    for detector in detectors:
        parts = [*slices(detector, run.threshold), *benign(detector)]
        if parts:
            yield Section("Parts" if len(detectors) == 1 else f"Parts: {plain(detector.spec)}", parts)
    if evaluation.published:
        yield Section("Published figures of others", list(published(evaluation)))
    yield Section("Time and failures", [latency(detectors), *failures(detectors)])
    if any(detector.examples for detector in detectors):
        yield Section("Worst errors", list(examples(evaluation)))
    yield Section("How it was made", list(details(evaluation)))


def _threshold(evaluation: DetectorEvaluation) -> Threshold:
    threshold = evaluation.run.threshold
    decided = [
        Decided(
            name=plain(detector.spec),
            counts=_counts(detector.overall),
            recall=share(detector.overall.decisions[0].recall),
            precision=share(detector.overall.decisions[0].precision),
            fpr=share(detector.overall.decisions[0].fpr),
            sweep=detector.curves.sweep,
        )
        for detector in evaluation.detectors
    ]
    table = Table(
        title=f"Decisions at threshold {threshold:g}",
        columns=["Detector", "Found", "Missed", "False alarms", "Rightly passed", "Recall", "Precision", "FPR"],
        rows=[
            [words(one.name), *(count(one.counts[index]) for index in (0, 2, 1, 3)), one.recall, one.precision, one.fpr]
            for one in decided
        ],
        note="FPR: false positive rate, the share of harmless answers that are flagged. In brackets 95 % intervals.",
    )
    return Threshold(title="What a threshold does", threshold=threshold, detectors=decided, table=table)


def _counts(part: Slice) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives; the rates are shares of whole answers."""
    at, harmless = part.decisions[0], part.answers - part.harmful
    found, flagged = round((at.recall.value or 0) * part.harmful), round((at.fpr.value or 0) * harmless)
    return found, flagged, part.harmful - found, harmless - flagged


def _each_part(detectors: Sequence[DetectorResult]) -> Iterator[tuple[list[Cell], Slice]]:
    for detector in detectors:
        for told, part in (("all", detector.overall), ("without refusals", detector.non_refusals)):
            yield [words(detector.spec), Cell(told)], part


def _figures(detectors: Sequence[DetectorResult], threshold: float) -> Table:
    return Table(
        title=f"All answers, and those that are no refusals; decisions at {threshold:g}",
        columns=[
            *("Detector", "Answers", "Count", "Harmful", "AUROC", "AUPRC", "Calibration error"),
            *("Recall", "Precision", "F1", "FPR"),
        ],
        rows=[
            [
                *first,
                count(part.answers),
                count(part.harmful),
                *(number(one) for one in (part.auroc, part.auprc, part.ece)),
                *_decision_cells(part.decisions[0]),
            ]
            for first, part in _each_part(detectors)
        ],
        note=(
            "Telling “I can't help with that” from compliance is easy; figures without refusals leave that out. "
            "In brackets 95 % intervals."
        ),
    )


def _decision_cells(at: Decisions) -> list[Cell]:
    return [share(at.recall), share(at.precision), number(at.f1), share(at.fpr)]


def _at_rates(detectors: Sequence[DetectorResult]) -> Table:
    return Table(
        title="At a chosen false positive rate",
        columns=["Detector", "Answers", "At most", "Threshold", "Recall", "Precision", "F1", "FPR"],
        rows=[
            [*first, Cell(percent(at.target_fpr), number=True), _threshold_cell(at), *_decision_cells(at)]
            for first, part in _each_part(detectors)
            for at in part.decisions
            if at.target_fpr is not None
        ],
        note="The threshold was chosen on these very answers, so the figures flatter a little.",
    )


def _threshold_cell(at: Decisions) -> Cell:
    if at.threshold is None:
        return absent(at.recall.reason or at.fpr.reason or "even the highest score flags more")
    return score(at.threshold)
