"""What a reader of a defence's evaluation must know, in sentences, beyond what its fields tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protector_guardrails.evaluation.breakdown import FEWEST
from protector_guardrails.evaluation.defense.accuracy import RULE
from protector_guardrails.evaluation.defense.judge_specs import DEFAULT
from protector_guardrails.evaluation.defense.keyword_judge import NAME
from protector_guardrails.evaluation.defense.measures import ALL
from protector_guardrails.evaluation.defense.results import DefenseEvaluation


def notes_on(
    evaluation: DefenseEvaluation, undescribed: int, *, named: Sequence[str], own: Sequence[bool]
) -> list[str]:
    """The notes.

    Args:
        evaluation: All figures.
        undescribed: Answers whose image nothing is told of in words.
        named: The judges that were asked for.
        own: Of each judge, whether it is the guard's own detector.
    """
    return [
        *_on_judges(evaluation, named=named, own=own),
        *_on_questions(evaluation, undescribed),
        *_on_harmless(evaluation),
    ]


def _on_judges(evaluation: DefenseEvaluation, *, named: Sequence[str], own: Sequence[bool]) -> Iterator[str]:
    if not set(named) - {NAME}:
        yield f"No other judge was named, so {DEFAULT} judges beside the keywords."
    for judge, circular in zip(evaluation.judges, own, strict=True):
        if circular:
            yield (
                f"The judge {judge.name} is the guard's own detector. What it missed as a guard it misses as a judge, "
                "so its figures behind the guard are circular and look better than they are."
            )
    yield (
        f"The judge {NAME} takes every answer that does not refuse in set phrases for harmful. Its figures are for "
        "comparison with others' and say little by themselves."
    )
    yield (
        "An empty text and the guard's own refusal count as harmless, and no judge is asked; only a human label of "
        "that very text counts more."
    )
    for judge in evaluation.judges:
        unusable = sum(failure.answers for failure in judge.unusable)
        if unusable and judge.kind == "labels":
            yield (
                f"{judge.name} says nothing of {unusable:,} texts; its figures leave them out. "
                "A rewrite needs a label of its own."
            )
        elif unusable:
            yield f"{judge.name} gave no usable verdict on {unusable:,} texts; its figures leave them out."


def _on_questions(evaluation: DefenseEvaluation, undescribed: int) -> Iterator[str]:
    run = evaluation.run
    attacks = sum(benchmark.attacks for benchmark in evaluation.benchmarks)
    if not attacks:
        yield "No attack was asked, so nothing can be said about attack success."
    if run.limit is not None:
        yield f"At most {run.limit:,} questions of each benchmark were asked."
    if undescribed:
        yield (
            f"The images behind {undescribed:,} answers are not described in words: the guard judged without knowing "
            "what they show (--describe has them described)."
        )
    few = {
        (row.benchmark, row.scenario): row.cases
        for row in evaluation.attacks
        if row.scenario != ALL and row.kind == ALL and row.cases < FEWEST
    }
    if few:
        yield f"{len(few):,} scenarios have fewer than {FEWEST} answered attacks; their intervals are wide."
    if run.failures:
        policy = "refuses" if run.policy.get("on_error") == "closed" else "lets the answer pass"
        yield (
            "Where the guard's detector fails the policy "
            f"{policy}, and where a rewrite fails the refusal leaves; such attacks count as whatever left."
        )


def _on_harmless(evaluation: DefenseEvaluation) -> Iterator[str]:
    if not evaluation.benign:
        yield "No harmless question was asked, so what the guard costs them is not known: name a set with --benign."
        return
    for cost in evaluation.benign:
        if cost.benchmark == ALL and cost.changed_though_safe:
            yield (
                f"{cost.changed_though_safe:,} harmless answers that were judged safe did not leave as they came "
                f"({cost.arm}). This is a defect of the guard."
            )
    if any(cost.with_reference for cost in evaluation.benign):
        yield f"Accuracy follows a rule, not a judge. {RULE}"
