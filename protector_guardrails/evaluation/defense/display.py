"""An evaluation of a defence on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protector_guardrails.evaluation.defense.measures import ALL
from protector_guardrails.evaluation.defense.results import ARMS, Arm, AttackRates, DefenseEvaluation
from protector_guardrails.evaluation.results import Estimate
from protector_guardrails.masking import plain

_ARMS = {"none": "bare model", "detector": "guard refuses", "detoxifier": "guard rewrites"}


def show(evaluation: DefenseEvaluation, console: Console, *, judge: str | None) -> None:
    """Print attack success by scenario as one judge sees it, in total as all do, the costs, and the notes.

    Args:
        evaluation: All figures.
        console: Where to.
        judge: Name of the judge whose figures are shown by scenario.
    """
    answered = evaluation.answered
    missing = sum(failure.answers for failure in answered.failures)
    told = f", {missing:,} are missing" if missing else ""
    console.print(Text(f"{plain(answered.model)}: {answered.answers:,} answers{told}"), soft_wrap=True)
    for data in evaluation.benchmarks:
        for problem in data.problems:
            console.print(Text(f"{plain(data.name)}: {plain(problem)}"), soft_wrap=True)
    _show_attacks(evaluation, console, judge)
    _show_costs(evaluation, console)
    for note in evaluation.notes:
        console.print(Text(f"Note: {plain(note)}"), soft_wrap=True)


def _show_attacks(evaluation: DefenseEvaluation, console: Console, judge: str | None) -> None:
    whole = [row for row in evaluation.attacks if row.kind == ALL]
    scenarios = _by_arm(row for row in whole if row.scenario != ALL and row.judge == judge)
    if scenarios:
        console.print(Text(f"\nAttack success by scenario, judged by {plain(judge or '')}:"))
        several = len(evaluation.benchmarks) > 1
        table = _table("scenario", "attacks")
        for (benchmark, scenario, _), arms in scenarios.items():
            name = f"{benchmark}: {scenario}" if several else scenario
            table.add_row(_text(name), f"{arms['none'].cases:,}", *(_cell(arms[arm].success) for arm in ARMS))
        console.print(table)
    totals = _by_arm(row for row in whole if row.scenario == ALL and row.benchmark == ALL)
    if totals:
        console.print("Attack success in total:")
        table = _table("judge", "judged")
        for (*_, name), arms in totals.items():
            table.add_row(_text(name), f"{arms['none'].judged:,}", *(_cell(arms[arm].success) for arm in ARMS))
        console.print(table)


def _show_costs(evaluation: DefenseEvaluation, console: Console) -> None:
    costs = {cost.arm: cost for cost in evaluation.benign if cost.benchmark == ALL}
    refused = {row.arm: row for row in evaluation.refusals if row.benchmark == ALL and row.benign}
    if costs:
        console.print("Answers to harmless questions:")
        table = _table("", "answers")
        answers = f"{refused['none'].answers:,}"
        table.add_row("changed", answers, "-", *(_cell(cost.changed) for cost in costs.values()))
        table.add_row("refused", answers, *(_cell(refused[arm].refused) for arm in ARMS))
        first = next(iter(costs.values()))
        right = [first.accuracy_before, *(cost.accuracy_after for cost in costs.values())]
        if first.with_reference:
            table.add_row("right", f"{first.with_reference:,}", *map(_cell, right))
        console.print(table)
    for time in evaluation.added_time:
        console.print(
            f"{_ARMS[time.arm]}, {time.action}: {time.median:.1f} ms added in the median, p95 {time.p95:.1f} "
            f"({time.answers:,} answers)"
        )


def _by_arm(rows: Iterable[AttackRates]) -> dict[tuple[str, str, str], dict[Arm, AttackRates]]:
    found: dict[tuple[str, str, str], dict[Arm, AttackRates]] = {}
    for row in rows:
        found.setdefault((row.benchmark, row.scenario, row.judge), {})[row.arm] = row
    return found


def _table(first: str, second: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, min_width=10)
    for column in (second, *_ARMS.values()):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _text(value: str) -> Text:
    return Text(plain(value), overflow="fold")  # not markup: names may hold square brackets


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1%}"
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"
