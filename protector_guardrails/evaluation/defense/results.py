"""What an evaluation of the defence found: the schema of its ``results.json``.

A figure that the data cannot give is ``null`` and says why; none is made up. Rates are
between 0 and 1. The three arms are the bare model (``"none"``), a guard that refuses what the
detector finds harmful (``"detector"``), and one that rewrites it (``"detoxifier"``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from protector_guardrails.evaluation.results import Estimate, Failure, Number, Part, Share

Arm = Literal["none", "detector", "detoxifier"]

ARMS: tuple[Arm, ...] = ("none", "detector", "detoxifier")


class BenchmarkData(Part):
    """A benchmark that was run.

    Attributes:
        name: What it is called here.
        path: Its folder or file.
        sha256: Of what was read.
        cases: How many questions.
        attacks: How many of them are attacks; the others are benign.
        images: How many show an image.
        problems: What is missing or unusable there, in sentences.
    """

    name: str
    path: str
    sha256: str
    cases: int
    attacks: int
    images: int
    problems: list[str]


class Answered(Part):
    """What the multimodal model answered.

    Attributes:
        spec: How it was asked for.
        model: Its name.
        answers: How many answers there are.
        empty: How many of them are empty.
        failures: Why others are missing.
        recorded_before: How many were taken over from an earlier run or a file.
    """

    spec: str
    model: str
    answers: int
    empty: int
    failures: list[Failure]
    recorded_before: int


class Rates(Part):
    """How attacks fared in one arm, by one judge.

    Attributes:
        arm: With which guard.
        judge: Name of the judge.
        cases: Attacks with an answer.
        judged: Those on which the judge said yes or no; the others count for nothing.
        success: Attack success rate: share of the judged that the judge finds harmful.
        prevented: Of the attacks that succeed on the bare model, the share that no longer does; None for ``"none"``.
    """

    arm: Arm
    judge: str
    cases: int
    judged: int
    success: Estimate
    prevented: Estimate | None = None


class AttackRates(Rates):
    """How the attacks of a part of the benchmarks fared.

    Attributes:
        benchmark: Name of the benchmark, or ``"all"``.
        scenario: A scenario, or ``"all"``.
        kind: A kind of question, or ``"all"``.
    """

    benchmark: str
    scenario: str
    kind: str


class ModelRates(Rates):
    """How attacks on one model fared, where answers of several were recorded.

    Attributes:
        model: The model that answered.
    """

    model: str


class RefusalRates(Part):
    """How often an answer is a refusal, by its words or because the guard's own refusal left.

    Attributes:
        benchmark: Name of the benchmark, or ``"all"``.
        benign: Whether of benign questions (then it is over-refusal) or of attacks.
        arm: With which guard.
        answers: How many answers.
        refused: Their share.
        by_guard: Share in which the guard's refusal took the answer's place.
    """

    benchmark: str
    benign: bool
    arm: Arm
    answers: int
    refused: Estimate
    by_guard: Estimate


class BenignCost(Part):
    """What the guard costs harmless questions.

    Attributes:
        benchmark: Name of the benchmark, or ``"all"``.
        arm: With which guard.
        answers: How many answers.
        changed: Share of the answers that left otherwise than they came.
        changed_though_safe: How many of those were judged safe; anything but 0 is a defect.
        with_reference: Answers whose question has a right answer.
        accuracy_before: Share of them that is right on the bare model; exact match after normalising, or the
            letter of the choice, or the reference as whole words in a short answer.
        accuracy_after: The same behind the guard.
    """

    benchmark: str
    arm: Arm
    answers: int
    changed: Estimate
    changed_though_safe: int
    with_reference: int
    accuracy_before: Estimate
    accuracy_after: Estimate


class AddedTime(Part):
    """Milliseconds that the guard adds to an answer.

    Attributes:
        arm: With which guard.
        action: What it did: ``"pass"``, ``"refuse"``, ``"detoxify"``.
        answers: How many.
        median: Half of them took less.
        p95: 95 % took less.
    """

    arm: Arm
    action: str
    answers: int
    median: Number
    p95: Number


class JudgeResult(Part):
    """One judge.

    Attributes:
        name: What it is called here.
        kind: Its kind.
        spec: How it was asked for.
        version: Version of its prompt, list or weights.
        answered: Texts on which it said yes or no.
        unusable: Texts on which it said neither, or failed, by reason.
    """

    name: str
    kind: Literal["keyword", "detector", "chat_model", "labels"]
    spec: str
    version: str
    answered: int
    unusable: list[Failure]


class Agreement(Part):
    """How two judges compare on the texts that both judged.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        texts: How many both judged.
        both_harmful: Both find harmful.
        only_first: Only the first does.
        only_second: Only the second does.
        both_harmless: Neither does.
        kappa: Cohen's kappa.
    """

    first: str
    second: str
    texts: int
    both_harmful: int
    only_first: int
    only_second: int
    both_harmless: int
    kappa: Estimate


class DefenseExample(Part):
    """An answer and what became of it, masked unless that was asked for otherwise.

    Attributes:
        kind: An attack that still succeeds, one that was prevented, or a harmless answer that was changed.
    """

    kind: Literal["leaked", "prevented", "needlessly_changed"]
    case: str
    scenario: str
    arm: Arm
    score: Share | None
    question: str
    response: str
    text: str


class DefenseRun(Part):
    """How it was made.

    Attributes:
        created: When, UTC.
        command: The command line; empty if it was not the command.
        package: Version of this package.
        versions: Versions of what it was computed with.
        python: Version of Python.
        platform: Operating system and processor.
        detector: Name of the guard's detector.
        detector_weights: File name to sha256.
        detoxifier: Name of the guard's detoxifier.
        describer: What put images into words that the benchmark does not describe; None for nothing.
        threshold: From which a score is called harmful.
        policy: The guard's policy, but for what is done on harm, in which the arms differ.
        failures: How often the guard's detector or detoxifier failed, and in which way; the policy says what left then.
        limit: Only so many cases of each benchmark, or None.
        seed: Of anything drawn at random.
        masked: Whether the examples are.
    """

    created: datetime
    command: list[str]
    package: str
    versions: dict[str, str]
    python: str
    platform: str
    detector: str
    detector_weights: dict[str, str]
    detoxifier: str
    describer: str | None = None
    threshold: Share
    policy: dict[str, JsonValue] = Field(default_factory=dict)
    failures: list[Failure] = Field(default_factory=list)
    limit: int | None
    seed: int
    masked: bool


class DefenseEvaluation(Part):
    """Everything; what ``results.json`` of ``protector evaluate defense`` holds.

    Attributes:
        schema_version: Of this form.
        run: How it was made.
        benchmarks: What was asked.
        answered: What the model answered.
        judges: Who judged.
        attacks: Attack success: all, by benchmark, by kind, by scenario, by scenario and kind; per arm and judge.
        by_model: Attack success by the model that answered, where there are several.
        refusals: Refusals, of attacks and of benign questions.
        benign: What the guard costs harmless questions.
        added_time: Milliseconds added.
        agreement: How the judges disagree.
        examples: A few answers.
        notes: What a reader must know, in sentences.
    """

    schema_version: Literal["protector.evaluation.defense/1"] = "protector.evaluation.defense/1"
    run: DefenseRun
    benchmarks: list[BenchmarkData]
    answered: Answered
    judges: list[JudgeResult]
    attacks: list[AttackRates]
    by_model: list[ModelRates] = Field(default_factory=list)
    refusals: list[RefusalRates]
    benign: list[BenignCost]
    added_time: list[AddedTime]
    agreement: list[Agreement]
    examples: list[DefenseExample]
    notes: list[str]
