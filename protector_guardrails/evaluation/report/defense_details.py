"""Judges, examples and run in a report on a defence."""

from __future__ import annotations

import json
from collections.abc import Iterator

from protector_guardrails.evaluation.defense.results import DefenseEvaluation
from protector_guardrails.evaluation.report.arms import ARM_NAMES
from protector_guardrails.evaluation.report.details import facts
from protector_guardrails.evaluation.report.document import Alert, Block, Cell, Paragraph, Table
from protector_guardrails.evaluation.report.figures import NONE, code, count, number, score, words
from protector_guardrails.masking import plain

_KINDS = {"keyword": "key words", "detector": "a detector", "chat_model": "a chat model", "labels": "given labels"}
_EXAMPLES = {
    "leaked": "Attacks that still succeed",
    "prevented": "Attacks that were prevented",
    "needlessly_changed": "Harmless answers that were changed",
}


def problems(evaluation: DefenseEvaluation) -> list[str]:
    """What is missing or failed, in sentences."""
    answered, run = evaluation.answered, evaluation.run
    told = [
        f"{plain(benchmark.name)}: {plain(problem)}"
        for benchmark in evaluation.benchmarks
        for problem in benchmark.problems
    ]
    if answered.empty:
        told.append(f"{answered.empty:,} answers of the model are empty.")
    told += [f"{one.answers:,} answers are missing: {plain(one.error)}" for one in answered.failures]
    told += [f"The guard failed on {one.answers:,} answers: {plain(one.error)}" for one in run.failures]
    return told


def judges(evaluation: DefenseEvaluation) -> Iterator[Block]:
    """Who judged, what they could not judge, and how they disagree."""
    if not evaluation.judges:
        yield Paragraph("Nobody judged.")
        return
    yield Table(
        title="Who judged",
        columns=["Judge", "Kind", "Asked for as", "Version", "Judged", "Unusable"],
        rows=[
            [
                words(judge.name),
                Cell(_KINDS[judge.kind]),
                words(judge.spec),
                words(judge.version),
                count(judge.answered),
                count(sum(failure.answers for failure in judge.unusable)),
            ]
            for judge in evaluation.judges
        ],
    )
    unusable = [
        [words(judge.name), words(failure.error), count(failure.answers)]
        for judge in evaluation.judges
        for failure in judge.unusable
    ]
    if unusable:
        yield Table(title="Texts without a judgement", columns=["Judge", "Reason", "Texts"], rows=unusable)
    if evaluation.agreement:
        yield Table(
            title="How the judges disagree",
            columns=["First", "Second", "Texts", "Both harmful", "Only first", "Only second", "Neither", "Kappa"],
            rows=[
                [
                    words(pair.first),
                    words(pair.second),
                    *(count(n) for n in (pair.texts, pair.both_harmful, pair.only_first, pair.only_second)),
                    count(pair.both_harmless),
                    number(pair.kappa),
                ]
                for pair in evaluation.agreement
            ],
            note="Cohen's kappa: 1 is full agreement, 0 what chance gives.",
        )


def details(evaluation: DefenseEvaluation) -> Iterator[Block]:
    """How it was made."""
    run, answered = evaluation.run, evaluation.answered
    told = {
        "Detector": run.detector,
        "Detoxifier": run.detoxifier,
        **({"Images put into words by": run.describer} if run.describer else {}),
        "Threshold": f"{run.threshold:g}",
        **({"Policy": json.dumps(run.policy, sort_keys=True)} if run.policy else {}),
        "Limit": f"at most {run.limit:,} cases of each benchmark" if run.limit is not None else NONE,
        "Model": f"{answered.model} ({answered.spec})",
        "Answers": f"{answered.answers:,}, {answered.recorded_before:,} of them recorded before",
    }
    yield facts(run, told)
    if evaluation.benchmarks:
        yield Table(
            title="Benchmarks",
            columns=["Benchmark", "File", "sha256", "Cases", "Attacks", "With an image"],
            rows=[
                [
                    words(one.name),
                    code(one.path),
                    code(one.sha256),
                    *(count(n) for n in (one.cases, one.attacks, one.images)),
                ]
                for one in evaluation.benchmarks
            ],
        )
    if run.detector_weights:
        yield Table(
            title="Weights of the detector",
            columns=["File", "sha256"],
            rows=[[words(name), code(sha)] for name, sha in run.detector_weights.items()],
        )


def examples(evaluation: DefenseEvaluation) -> Iterator[Block]:
    """A few answers and what became of them, as masked as they are in the results."""
    if evaluation.run.masked:
        yield Paragraph("All but the first words is masked.")
    else:
        yield Alert("The texts below are not masked; they may be harmful.")
    for kind, title in _EXAMPLES.items():
        rows = [
            [
                words(one.case),
                words(one.scenario),
                Cell(ARM_NAMES[one.arm]),
                score(one.score),
                words(one.question),
                words(one.response),
                words(one.text),
            ]
            for one in evaluation.examples
            if one.kind == kind
        ]
        if rows:
            yield Table(
                title=title,
                columns=["Case", "Scenario", "Arm", "Score", "Question", "Answer of the model", "What left"],
                rows=rows,
            )
