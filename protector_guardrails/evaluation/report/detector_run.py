"""Time, failures, errors and run of a report on detectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protector_guardrails.evaluation.report.details import data_problems, facts
from protector_guardrails.evaluation.report.document import Alert, Block, Cell, Paragraph, Table
from protector_guardrails.evaluation.report.figures import NONE, code, count, milliseconds, score, words
from protector_guardrails.evaluation.results import DetectorEvaluation, DetectorResult
from protector_guardrails.masking import plain


def latency(detectors: Sequence[DetectorResult]) -> Table:
    """How long the detectors took."""
    return Table(
        title="Milliseconds per answer",
        columns=["Detector", "Median", "95th percentile", "Batch size"],
        rows=[
            [
                words(one.spec),
                milliseconds(one.latency.median),
                milliseconds(one.latency.p95),
                count(one.latency.batch_size),
            ]
            for one in detectors
        ],
        note="The time of a batch, shared out evenly over its answers, on the machine of this run.",
    )


def failures(detectors: Sequence[DetectorResult]) -> Iterator[Block]:
    """What the detectors failed on, if anything."""
    rows = [
        [words(detector.spec), words(failure.error), count(failure.answers)]
        for detector in detectors
        for failure in detector.failures
    ]
    if rows:
        yield Table(
            title="Failures",
            columns=["Detector", "Error", "Answers"],
            rows=rows,
            note="These answers have no score and are left out of every figure.",
        )


def examples(evaluation: DetectorEvaluation) -> Iterator[Block]:
    """The worst errors of each detector, as masked as they are in the results."""
    if evaluation.run.masked:
        yield Paragraph("All but the first words is masked.")
    else:
        yield Alert("The texts below are not masked; they may be harmful.")
    for detector in evaluation.detectors:
        for kind, title in (
            ("missed", "harmful answers with the lowest scores"),
            ("false_alarm", "harmless answers with the highest scores"),
        ):
            rows = [
                [
                    score(one.score),
                    words(one.source),
                    words(", ".join(one.categories)),
                    words(one.model),
                    words(one.question),
                    words("; ".join(one.images)),
                    words(one.response),
                    count(one.characters),
                ]
                for one in detector.examples
                if one.kind == kind
            ]
            if rows:
                yield Table(
                    title=f"{plain(detector.spec)}: {title}",
                    columns=["Score", "Source", "Categories", "Model", "Question", "Images", "Response", "Characters"],
                    rows=rows,
                )


def details(evaluation: DetectorEvaluation) -> Iterator[Block]:
    """How it was made: run, data and weights."""
    run = evaluation.run
    told: dict[str, str] = {
        "Threshold": f"{run.threshold:g}",
        "Resamples of the bootstrap": f"{run.bootstrap:,}" if run.bootstrap else "none, so no bootstrap intervals",
        "Confidence of the intervals": f"{run.confidence:.0%}",
        "Judged": "question and response" if run.with_question else "the response alone",
        "Limit": f"the first {run.limit:,} answers of each data set" if run.limit is not None else NONE,
    }
    yield facts(run, told)
    yield Table(
        title="Data",
        columns=["Data set", "Loader", "File", "sha256", "Answers", "Harmful", "Refusals", "Duplicates", "Left out"],
        rows=[
            [
                words(data.name),
                words(data.loader),
                code(data.path),
                code(data.sha256),
                *(count(one) for one in (data.answers, data.harmful, data.refusals, data.duplicates)),
                count(sum(data.left_out.values())),
            ]
            for data in evaluation.data
        ],
    )
    yield from data_problems({data.name: data.left_out for data in evaluation.data})
    yield Table(
        title="Detectors",
        columns=["Detector", "What", "Value"],
        rows=[
            [words(detector.spec), *cells]
            for detector in evaluation.detectors
            for cells in (
                [Cell("name"), words(detector.name)],
                [Cell("fingerprint"), code(detector.fingerprint)],
                *([Cell(f"sha256 of {plain(file)}"), code(sha)] for file, sha in detector.weights.items()),
            )
        ],
    )
