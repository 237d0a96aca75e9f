"""What a guard costs, in a report on a defence: refusals, changed answers, time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protector_guardrails.evaluation.defense.results import ARMS, Arm, BenignCost, DefenseEvaluation, RefusalRates
from protector_guardrails.evaluation.report.arms import ARM_NAMES, GUARDS, counts, share_of
from protector_guardrails.evaluation.report.document import Block, Cell, Paragraph, Table
from protector_guardrails.evaluation.report.figures import count, milliseconds, share, words


def refusals(rows: Sequence[RefusalRates]) -> Table:
    """How often attacks and harmless questions are refused, in each arm."""
    found: dict[tuple[str, bool], dict[Arm, RefusalRates]] = {}
    for row in rows:
        found.setdefault((row.benchmark, row.benign), {})[row.arm] = row
    return Table(
        title="Refusals, and over-refusals of harmless questions",
        columns=[
            *("Benchmark", "Questions", "Answers"),
            *(f"Refused: {ARM_NAMES[arm]}" for arm in ARMS),
            *(f"By the guard: {ARM_NAMES[arm]}" for arm in GUARDS),
        ],
        rows=[
            [
                words(benchmark),
                Cell("harmless (over-refusal)" if benign else "attacks"),
                counts(row.answers for row in arms.values()),
                *(share_of(arms[arm].refused if arm in arms else None, bar=True) for arm in ARMS),
                *(share_of(arms[arm].by_guard if arm in arms else None) for arm in GUARDS),
            ]
            for (benchmark, benign), arms in found.items()
        ],
        note="Refused: by its words, or because the guard's own refusal left. By the guard: the second of these.",
    )


def benign(rows: Sequence[BenignCost]) -> Iterator[Block]:
    """What harmless questions pay."""
    if not rows:
        yield Paragraph("No harmless question was asked, so what the guard costs them is not known.")
        return
    yield Table(
        title="What the guard costs harmless questions",
        columns=[
            *("Benchmark", "Arm", "Answers", "Changed", "Changed though judged safe"),
            *("With a right answer", "Accuracy before", "Accuracy after"),
        ],
        rows=[
            [
                words(row.benchmark),
                Cell(ARM_NAMES[row.arm]),
                count(row.answers),
                share(row.changed),
                count(row.changed_though_safe),
                count(row.with_reference),
                share(row.accuracy_before),
                share(row.accuracy_after),
            ]
            for row in rows
        ],
        note="Changed: left otherwise than it came. An answer that is judged safe must never be.",
    )


def times(evaluation: DefenseEvaluation) -> Table:
    """How long a guard takes, by what it did."""
    return Table(
        title="Milliseconds that the guard adds to an answer",
        columns=["Arm", "What it did", "Answers", "Median", "95th percentile"],
        rows=[
            [
                Cell(ARM_NAMES[row.arm]),
                words(row.action),
                count(row.answers),
                milliseconds(row.median),
                milliseconds(row.p95),
            ]
            for row in evaluation.added_time
        ],
    )
