"""What an evaluation found: the schema of ``results.json``.

A figure that the data cannot give is ``null`` and says why in ``reason``; no figure is
ever made up. Rates are between 0 and 1. A reader should check ``schema_version``: a field
may be added within a version, but keeps its meaning.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A piece of a result. Unknown fields are ignored, so that newer results can be read."""

    model_config = ConfigDict(frozen=True)


class Estimate(Part):
    """A figure and how sure it is.

    Attributes:
        value: The figure; None if the data cannot give it.
        low: Lower end of the 95 % interval, if there is one.
        high: Upper end.
        method: How the interval was made.
        reason: Why there is no figure, or no interval.
    """

    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    method: Literal["bootstrap", "wilson"] | None = None
    reason: str | None = None


class Decisions(Part):
    """What follows from deciding at one threshold.

    Attributes:
        threshold: Scores at or above it are called harmful; None if nothing is.
        target_fpr: The false positive rate that the threshold was chosen for, on these very
            answers; None if it was given.
        recall: Share of the harmful answers that are found.
        precision: Share of what is called harmful that is.
        f1: Harmonic mean of the two.
        fpr: Share of the harmless answers that are called harmful.
    """

    threshold: Number | None
    target_fpr: Share | None = None
    recall: Estimate
    precision: Estimate
    f1: Estimate
    fpr: Estimate


class Slice(Part):
    """Figures on some of the answers.

    Attributes:
        by: What they have in common.
        value: Which of it.
        answers: How many the detector scored.
        harmful: How many of them are harmful.
        questions: How many different questions they answer; what is resampled.
        auroc: Area under the ROC curve.
        auprc: Area under the precision-recall curve (average precision).
        ece: Expected calibration error, 15 bins.
        decisions: At the threshold, then at each false positive rate.
        auroc_without_refusals: The AUROC of those that are no refusals; of data sets and sources only.
    """

    by: Literal["all", "non_refusals", "data", "source", "category", "length", "model"]
    value: str
    answers: int
    harmful: int
    questions: int
    auroc: Estimate
    auprc: Estimate
    ece: Estimate
    decisions: list[Decisions]
    auroc_without_refusals: Estimate | None = None


class Benign(Part):
    """False positives on a source that holds harmless answers only.

    Attributes:
        source: The source.
        answers: How many the detector scored.
        flagged: How many are called harmful at the threshold.
        fpr: Their share, with Wilson's interval.
    """

    source: str
    answers: int
    flagged: int
    fpr: Estimate


class ReliabilityBin(Part):
    """Answers with about the same score.

    Attributes:
        low: Lower bound of the score.
        high: Upper bound.
        answers: How many.
        mean_score: What the detector says.
        harmful: What is true: share of harmful ones, with Wilson's interval.
    """

    low: Share
    high: Share
    answers: int
    mean_score: Share
    harmful: Estimate


class Curves(Part):
    """What can be drawn; thinned to a few hundred points.

    Attributes:
        roc: ``[false positive rate, recall, threshold]``, by falling threshold; None stands for infinity.
        pr: ``[recall, precision, threshold]``, by falling threshold.
        reliability: Bins that are not empty.
        sweep: ``[threshold, true positives, false positives, false negatives, true negatives]`` from 0 to 1.
    """

    roc: list[tuple[Share, Share, Number | None]]
    pr: list[tuple[Share, Share, Number]]
    reliability: list[ReliabilityBin]
    sweep: list[tuple[Share, int, int, int, int]]


class Latency(Part):
    """Milliseconds per answer: the time of a batch, shared out evenly over it.

    Attributes:
        median: Half of the answers took less.
        p95: 95 % took less.
        batch_size: Answers in a batch.
    """

    median: Number
    p95: Number
    batch_size: int


class Example(Part):
    """An error, with its texts masked unless that was asked for otherwise.

    Attributes:
        kind: A harmful answer that was missed, or a harmless one that was flagged.
        characters: Length of the response.
    """

    kind: Literal["missed", "false_alarm"]
    data: str
    source: str
    model: str | None
    categories: list[str]
    score: Share
    question: str | None
    images: list[str]
    response: str
    characters: int


class Failure(Part):
    """A way in which a detector failed, and how often; such answers have no score."""

    error: str
    answers: int


class DetectorResult(Part):
    """One detector.

    Attributes:
        spec: What it was asked for with.
        name: Its name and version.
        fingerprint: Changes with its name, weights and source code.
        weights: File name to sha256; empty if it does not tell them.
        failures: What it failed on.
        latency: How long it took.
        overall: On all answers.
        non_refusals: On those that do not begin like a refusal.
        slices: By data set, source, category, length and model.
        not_shown: How many values of each kind have too few answers for a slice, or came after too many others.
        benign: Sources of harmless answers only; the last, if there are several, is all of them together.
        curves: Of all answers.
        examples: The worst errors.
    """

    spec: str
    name: str
    fingerprint: str
    weights: dict[str, str]
    failures: list[Failure]
    latency: Latency
    overall: Slice
    non_refusals: Slice
    slices: list[Slice]
    not_shown: dict[str, int]
    benign: list[Benign]
    curves: Curves
    examples: list[Example]


class PairedTest(Part):
    """A paired test of two detectors.

    Attributes:
        p: Two-sided p-value.
        p_holm: The same, corrected by Holm's method over the pairs.
    """

    p: Share
    p_holm: Share


class Pair(Part):
    """Two detectors on the answers that both scored.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        auroc_difference: AUROC of the first minus that of the second.
        auroc_test: Whether it is 0, by the paired bootstrap.
        only_first_right: Answers that only the first decides rightly at the threshold.
        only_second_right: And only the second.
        decisions_test: Whether the two are equally likely, by McNemar's exact test.
    """

    first: str
    second: str
    auroc_difference: Estimate
    auroc_test: PairedTest | None
    only_first_right: int
    only_second_right: int
    decisions_test: PairedTest


class Comparison(Part):
    """Several detectors on the answers that all of them scored."""

    answers: int
    harmful: int
    pairs: list[Pair]


class PublishedFigure(Part):
    """A figure that others published; not measured here.

    Attributes:
        detector: The detector.
        data: Name of the public set.
        metric: The metric.
        value: The figure, as a share.
        source: Where it stands.
        url: Its address.
        measured_by: Who measured it.
        note: What is different there.
    """

    detector: str
    data: str
    metric: Literal["f1"]
    value: Share
    source: str
    url: str
    measured_by: str
    note: str


class DataFile(Part):
    """A data set.

    Attributes:
        name: What it is called here.
        loader: Name of a public set, or ``"own"``.
        path: The file.
        sha256: Of the file.
        answers: Answers that count.
        harmful: Those labelled harmful.
        refusals: Those that begin like a refusal.
        duplicates: Answers that had been counted already, and were not counted again.
        conflicting_duplicates: Duplicates with another label; the first label counts.
        left_out: Records that give no answer to judge, by reason.
    """

    name: str
    loader: str
    path: str
    sha256: str
    answers: int
    harmful: int
    refusals: int
    duplicates: int
    conflicting_duplicates: int
    left_out: dict[str, int]


class Run(Part):
    """How it was made.

    Attributes:
        created: When, UTC.
        command: The command line; empty if it was not the command.
        package: Version of this package.
        versions: Versions of what it was computed with.
        python: Version of Python.
        platform: Operating system and processor.
        seed: Of the bootstrap.
        bootstrap: Resamples; 0 for no intervals.
        confidence: Of the intervals.
        threshold: From which a score is called harmful.
        with_question: Whether the detectors saw the question and what its images show.
        limit: Only so many answers of each data set, or None.
        masked: Whether the examples are.
    """

    created: datetime
    command: list[str]
    package: str
    versions: dict[str, str]
    python: str
    platform: str
    seed: int
    bootstrap: int
    confidence: float = 0.95
    threshold: Share
    with_question: bool
    limit: int | None
    masked: bool


class DetectorEvaluation(Part):
    """Everything; what ``results.json`` holds.

    Attributes:
        schema_version: Of this form.
        run: How it was made.
        data: The data sets.
        detectors: One result per detector.
        comparison: Of several detectors.
        published: Figures of others on the public sets that were evaluated.
        notes: What a reader must know, in sentences.
    """

    schema_version: Literal["protector.evaluation.detector/1"] = "protector.evaluation.detector/1"
    run: Run
    data: list[DataFile]
    detectors: list[DetectorResult]
    comparison: Comparison | None = None
    published: list[PublishedFigure] = []
    notes: list[str] = []
