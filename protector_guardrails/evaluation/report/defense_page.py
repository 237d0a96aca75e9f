"""The report on a defence: how attacks fare on the bare model and behind the guard, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from protector_guardrails.evaluation.defense.results import (
    ARMS,
    Arm,
    AttackRates,
    BenignCost,
    DefenseEvaluation,
    RefusalRates,
)
from protector_guardrails.evaluation.report.arms import ALL, ARM_NAMES, NOT_RUN, share_of
from protector_guardrails.evaluation.report.defense_attacks import attacks
from protector_guardrails.evaluation.report.defense_cost import benign, refusals, times
from protector_guardrails.evaluation.report.defense_details import details, examples, judges, problems
from protector_guardrails.evaluation.report.document import Alert, Block, Bullets, Document, KeyFigure, Section
from protector_guardrails.evaluation.report.figures import FEW, absent, brief, milliseconds
from protector_guardrails.masking import plain

_BY: dict[Arm, str] = {"detector": "refusing", "detoxifier": "rewriting"}

Row = TypeVar("Row", AttackRates, RefusalRates, BenignCost)


def defense_document(evaluation: DefenseEvaluation) -> Document:
    """What the report says of a defence."""
    run, judge = evaluation.run, headline_judge(evaluation)
    asked = sum(benchmark.attacks for benchmark in evaluation.benchmarks)
    cases = sum(benchmark.cases for benchmark in evaluation.benchmarks)
    judged = f" Success is judged by {plain(judge)}." if judge else ""
    return Document(
        title=f"Evaluation of the defence of {plain(evaluation.answered.model)}",
        headline=[_headline(evaluation, judge)],
        summary=(
            f"{asked:,} attacks and {cases - asked:,} harmless questions to {plain(evaluation.answered.model)}; "
            f"guard: {plain(run.detector)} at {run.threshold:g}, {plain(run.detoxifier)}.{judged}"
        ),
        key_figures=_key_figures(evaluation, judge),
        sections=list(_sections(evaluation, judge)),
    )


def headline_judge(evaluation: DefenseEvaluation) -> str | None:
    """The judge whose figures come first: the first that judged attacks and is neither circular nor crude.

    The guard's own detector would judge itself; key words take whatever does not refuse for harmful, rewrites too.
    """
    told = {row.judge for row in evaluation.attacks}
    own = _own_judges(evaluation)
    judges = [judge for judge in evaluation.judges if judge.name in told]
    return min(judges, key=lambda judge: 2 * (judge.name in own) + (judge.kind == "keyword")).name if judges else None


def _own_judges(evaluation: DefenseEvaluation) -> set[str]:
    own = evaluation.run.detector
    return {
        judge.name
        for judge in evaluation.judges
        if judge.kind == "detector" and own in (judge.name, judge.spec, judge.version)
    }


def _headline(evaluation: DefenseEvaluation, judge: str | None) -> str:
    return f"{_attack_sentence(_overall(evaluation, judge))}; {_harmless_sentence(evaluation)}."


def _attack_sentence(overall: dict[Arm, AttackRates]) -> str:
    values = {arm: value for arm in ARMS if arm in overall and (value := overall[arm].success.value) is not None}
    told = {arm: _rate(overall[arm], value) for arm, value in values.items()}
    before = values.pop("none", None)
    if before is None and not values:
        return "Nothing can be said about attacks"
    ends = " or ".join(f"{told[arm]} ({_BY[arm]})" for arm in values)
    if before is None:
        return f"Attack success behind the guard is {ends}, and not known on the bare model"
    if not values:
        return f"Attack success on the bare model is {told['none']}, and not known behind the guard"
    shown = {told[arm] for arm in values}
    if shown == {told["none"]}:
        return f"Attack success stays at {told['none']}"
    falls, rises = (all(value * sign > before * sign for value in values.values()) for sign in (-1, 1))
    verb = "falls" if falls else "rises" if rises else "goes"
    return f"Attack success {verb} from {told['none']} to {shown.pop() if len(shown) == 1 < len(values) else ends}"


def _rate(row: AttackRates, value: float) -> str:
    """In percent, which a few attacks do not deserve."""
    return brief(value) if row.judged >= FEW else f"{round(value * row.judged)} of {row.judged}"


def _harmless_sentence(evaluation: DefenseEvaluation) -> str:
    rows = _of_all(evaluation.benign) or evaluation.benign
    changed = [row.changed.value for row in rows if row.arm != "none" and row.changed.value is not None]
    if not changed:
        return "what it costs harmless questions was not measured"
    if not any(changed):
        return "no harmless answer was changed"
    upto = "" if len(set(map(brief, changed))) == 1 else "up to "
    return f"{upto}{brief(max(changed))} of the answers to harmless questions were changed"


def _of_all(rows: Sequence[Row]) -> list[Row]:
    """Those on all benchmarks together; of a single benchmark, those on it."""
    together = [row for row in rows if row.benchmark == ALL]
    return together or (list(rows) if len({row.benchmark for row in rows}) == 1 else [])


def _overall(evaluation: DefenseEvaluation, judge: str | None) -> dict[Arm, AttackRates]:
    whole = [row for row in evaluation.attacks if row.scenario == row.kind == ALL and row.judge == judge]
    return {row.arm: row for row in _of_all(whole)}


def _key_figures(evaluation: DefenseEvaluation, judge: str | None) -> list[KeyFigure]:
    overall = _overall(evaluation, judge)
    success = [
        KeyFigure(
            f"Attack success: {ARM_NAMES[arm]}",
            share_of(overall[arm].success if arm in overall else None),
            f"of {overall[arm].judged:,} judged attacks succeed" if arm in overall else "of the attacks succeed",
        )
        for arm in ARMS
    ]
    benign = {row.arm: row for row in _of_all(evaluation.benign)}
    refused = {row.arm: row for row in _of_all([row for row in evaluation.refusals if row.benign])}
    guard: Arm = "detoxifier" if "detoxifier" in {*benign, *refused} else "detector"
    cost, over, before = benign.get(guard), refused.get(guard), refused.get("none")
    answers = f"{cost.answers:,} answers" if cost else "the answers"
    bare = f"; {brief(before.refused.value)} on the bare model" if before and before.refused.value is not None else ""
    passing = {row.arm: row for row in evaluation.added_time if row.action == "pass"}
    time = passing.get(guard) or passing.get("detector")
    return [
        *success,
        KeyFigure(
            "Harmless answers changed",
            share_of(cost.changed if cost else None),
            f"of {answers} to harmless questions",
        ),
        KeyFigure("Over-refusal", share_of(over.refused if over else None), f"of harmless questions are refused{bare}"),
        KeyFigure(
            "Added time", milliseconds(time.median) if time else absent(NOT_RUN), "median, where an answer passes"
        ),
    ]


def _sections(evaluation: DefenseEvaluation, judge: str | None) -> Iterator[Section]:
    first = list(_first(evaluation, judge))
    if first:
        yield Section("What to know first", first)
    yield Section("Attack success", list(attacks(evaluation, judge)))
    if evaluation.refusals:
        yield Section("Refusals", [refusals(evaluation.refusals)])
    yield Section("Harmless questions", list(benign(evaluation.benign)))
    if evaluation.added_time:
        yield Section("Added time", [times(evaluation)])
    yield Section("Judges", list(judges(evaluation)))
    if evaluation.examples:
        yield Section("Examples", list(examples(evaluation)))
    yield Section("How it was made", list(details(evaluation)))


def _first(evaluation: DefenseEvaluation, judge: str | None) -> Iterator[Block]:
    defects = [row for row in evaluation.benign if row.changed_though_safe]
    for row in defects:
        yield Alert(
            f"{plain(row.benchmark)}, {ARM_NAMES[row.arm]}: {row.changed_though_safe:,} answers were judged safe and "
            "changed all the same. That is a defect of the guard."
        )
    kinds = {one.name: one.kind for one in evaluation.judges}
    if judge in _own_judges(evaluation):
        yield Alert(
            f"The headline rests on {plain(judge or '')}, which is the guard's own detector: what it misses as a guard "
            "it misses as a judge. Name another judge for a fair figure."
        )
    elif judge is not None and kinds[judge] == "keyword":
        yield Alert(
            f"The headline rests on {plain(judge)}, which takes whatever does not refuse in set phrases for harmful, "
            "rewrites too. Name another judge for a fair figure."
        )
    items = [*map(plain, evaluation.notes), *_other_judges(evaluation, judge), *problems(evaluation)]
    if items:
        yield Bullets(items)


def _other_judges(evaluation: DefenseEvaluation, judge: str | None) -> Iterator[str]:
    for other in evaluation.judges:
        overall = _overall(evaluation, other.name)
        told = [
            f"{brief(value)} ({ARM_NAMES[arm]})"
            for arm in ARMS
            if arm in overall and (value := overall[arm].success.value) is not None
        ]
        if other.name != judge and told:
            yield f"Judged by {plain(other.name)}, attack success is {', '.join(told)}."
