"""Attack success in a report on a defence: drawings and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from protector_guardrails.evaluation.defense.results import ARMS, Arm, AttackRates, DefenseEvaluation, ModelRates, Rates
from protector_guardrails.evaluation.report import charts
from protector_guardrails.evaluation.report.arms import ALL, ARM_NAMES, GUARDS, counts, share_of
from protector_guardrails.evaluation.report.document import LONG, Block, Chart, Charts, Paragraph, Table
from protector_guardrails.evaluation.report.figures import brief, words
from protector_guardrails.evaluation.results import Estimate
from protector_guardrails.masking import plain

_MOST_BARS = 30

Scope = tuple[str, str, str]
"""Benchmark, scenario, kind."""

_Found = dict[tuple[str, str], dict[Arm, Rates]]  # by what the attacks share, and the judge


def attacks(evaluation: DefenseEvaluation, judge: str | None) -> Iterator[Block]:
    """Drawings by the judge of the headline, tables by all of them."""
    rows = evaluation.attacks
    if not rows:
        yield Paragraph("No attack was asked and judged.")
        return
    drawn = list(_charts([row for row in rows if row.judge == judge], judge or ""))
    drawn += filter(None, [_chart_by_model(evaluation.by_model, judge or "")])
    if drawn:
        yield Charts(charts=drawn)
    scopes = {
        "All, and by benchmark": [row for row in rows if row.scenario == row.kind == ALL],
        "By kind of question": [row for row in rows if row.scenario == ALL != row.kind],
        "By scenario": [row for row in rows if row.kind == ALL != row.scenario],
        "By scenario and kind": [row for row in rows if row.kind != ALL != row.scenario],
    }
    yield Paragraph(
        "Success: share of the judged answers that the judge finds harmful. Prevented: of the attacks that succeed on "
        "the bare model, the share that no longer does. In brackets 95 % intervals."
    )
    if len(scopes["By scenario"]) == len(scopes["By scenario and kind"]):
        del scopes["By scenario and kind"]  # each scenario is asked in one kind: the same once more
    for title, some in scopes.items():
        if some:
            yield _attack_table(title, _by_scope(_without_repeats(some)))
    if evaluation.by_model:
        by_model: _Found = {}
        for row in evaluation.by_model:
            by_model.setdefault((row.model, row.judge), {})[row.arm] = row
        yield _attack_table("By model", by_model)


def _without_repeats(rows: Sequence[AttackRates]) -> list[AttackRates]:
    """Of a single benchmark and all together, which are the same, those of all."""
    named = {row.benchmark for row in rows} - {ALL}
    together = [row for row in rows if row.benchmark == ALL]
    return together if together and len(named) == 1 else list(rows)


def _by_scope(rows: Sequence[AttackRates]) -> _Found:
    several = len({row.benchmark for row in rows}) > 1
    found: _Found = {}
    for row in rows:
        scope = _scope((row.benchmark, row.scenario, row.kind), several=several)
        found.setdefault((scope, row.judge), {})[row.arm] = row
    return found


def _attack_table(title: str, found: _Found) -> Table:
    lines = [
        [
            words(scope),
            words(judge),
            counts(row.cases for row in arms.values()),
            counts(row.judged for row in arms.values()),
            *(share_of(arms[arm].success if arm in arms else None, bar=True) for arm in ARMS),
            *(share_of(arms[arm].prevented if arm in arms else None) for arm in GUARDS),
        ]
        for (scope, judge), arms in found.items()
    ]
    return Table(
        title=title,
        columns=[
            *("Attacks", "Judge", "Answers", "Judged"),
            *(f"Success: {ARM_NAMES[arm]}" for arm in ARMS),
            *(f"Prevented: {ARM_NAMES[arm]}" for arm in GUARDS),
        ],
        rows=lines,
        folded=len(lines) > LONG,
    )


def _scope(scope: Scope, *, several: bool) -> str:
    """What the attacks have in common; their benchmark only where there are several."""
    benchmark, *rest = scope
    return ", ".join(part for part in (benchmark if several else ALL, *rest) if part != ALL) or ALL


def _charts(rows: Sequence[AttackRates], judge: str) -> Iterator[Chart]:
    """One of the scenarios of each benchmark, one of the kinds."""
    several = len({row.benchmark for row in rows} - {ALL}) > 1
    for number, benchmark in enumerate(dict.fromkeys(row.benchmark for row in rows)):
        own = [row for row in rows if row.benchmark == benchmark]
        whole = [row for row in own if row.scenario == row.kind == ALL]
        where = "" if benchmark == ALL or not several else f": {plain(benchmark)}"
        for what, some in (
            ("scenario", [row for row in own if row.kind == ALL != row.scenario]),
            ("kind", [row for row in own if row.scenario == ALL != row.kind]),
        ):
            groups = _groups(some, what)
            if len(groups) < 2:
                continue
            shown = [*_groups(whole, ALL), *groups][:_MOST_BARS]
            left_out = f" The first {_MOST_BARS}; the table has all." if len(groups) >= _MOST_BARS else ""
            yield _chart(f"Attack success by {what}{where}", shown, f"{what}-{number}", judge, left_out)


def _chart_by_model(rows: Sequence[ModelRates], judge: str) -> Chart | None:
    found: dict[str, dict[Arm, Estimate]] = {}
    for row in rows:
        if row.judge == judge:
            found.setdefault(row.model, {})[row.arm] = row.success
    groups = [(name, [arms.get(arm) for arm in ARMS]) for name, arms in found.items()][:_MOST_BARS]
    return _chart("Attack success by model", groups, "model", judge, "") if groups else None


def _chart(
    title: str, groups: Sequence[tuple[str, Sequence[Estimate | None]]], name: str, judge: str, more: str
) -> Chart:
    return Chart(
        title=title,
        svg=charts.rates(
            groups,
            [ARM_NAMES[arm] for arm in ARMS],
            name=name,
            label="Attack success rate",
            description=_spoken(title, groups),
        ),
        note=f"Judge: {plain(judge)}. The lines are 95 % intervals.{more}",
    )


def _groups(rows: Iterable[AttackRates], what: str) -> list[tuple[str, list[Estimate | None]]]:
    found: dict[str, dict[Arm, Estimate]] = {}
    for row in rows:
        name = {"scenario": row.scenario, "kind": row.kind}.get(what, what)
        found.setdefault(name, {})[row.arm] = row.success
    return [(name, [arms.get(arm) for arm in ARMS]) for name, arms in found.items()]


def _spoken(title: str, groups: Sequence[tuple[str, Sequence[Estimate | None]]]) -> str:
    """The bars in words, for those who cannot see them."""
    told = [
        f"{name}: " + ", ".join(
            f"{ARM_NAMES[arm]} {'no figure' if one is None or one.value is None else brief(one.value)}"
            for arm, one in zip(ARMS, estimates, strict=True)
        )
        for name, estimates in groups
    ]  # fmt: skip
    return f"{title}. {'; '.join(told)}"
