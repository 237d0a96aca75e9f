"""An evaluation on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protector_guardrails.evaluation.results import (
    Decisions,
    DetectorEvaluation,
    DetectorResult,
    Estimate,
    Slice,
)
from protector_guardrails.masking import plain

_KINDS = {"data": "data set"}
_WIDE = 110  # a narrower terminal has no room for the intervals of the parts


def show(evaluation: DetectorEvaluation, console: Console) -> None:
    """Print the tables: data, each detector, their comparison, published figures, and the notes."""
    _show_data(evaluation, console)
    for detector in evaluation.detectors:
        _show_detector(evaluation, detector, console)
    _show_comparison(evaluation, console)
    _show_published(evaluation, console)
    for note in evaluation.notes:
        console.print(Text(f"Note: {plain(note)}"), soft_wrap=True)


def _show_data(evaluation: DetectorEvaluation, console: Console) -> None:
    table = _table("data", "answers", "harmful", "refusals", "duplicates", "left out")
    for data in evaluation.data:
        counts = (data.answers, data.harmful, data.refusals, data.duplicates, sum(data.left_out.values()))
        table.add_row(_text(data.name), *(f"{count:,}" if count else "-" for count in counts))
    console.print(table)


def _show_detector(evaluation: DetectorEvaluation, detector: DetectorResult, console: Console) -> None:
    run = evaluation.run
    seen = "question and response" if run.with_question else "the response alone"
    title = f"{detector.spec}: {detector.name}, judging {seen}"
    console.print(Text(plain(title), style="bold"), soft_wrap=True)
    _show_figures([detector.overall, detector.non_refusals], console)
    if detector.slices:
        table = _table(
            "part", "answers", "harmful", "AUROC", f"recall at {run.threshold:g}", f"FPR at {run.threshold:g}"
        )
        bare = console.width < _WIDE
        last = None
        for part in detector.slices:
            if part.by != last:
                table.add_section()
                table.add_row(Text(f"by {_KINDS.get(part.by, part.by)}", style="italic"))
            last = part.by
            at = part.decisions[0]
            figures = (
                _cell(part.auroc, bare=bare),
                *(_cell(one, share=True, bare=bare) for one in (at.recall, at.fpr)),
            )
            table.add_row(_text(part.value), f"{part.answers:,}", f"{part.harmful:,}", *figures)
        console.print(table)
    for kind, count in detector.not_shown.items():
        console.print(f"by {_KINDS.get(kind, kind)}: {count:,} more with too few answers to show")
    if detector.benign:
        table = _table("harmless answers only", "answers", "flagged", "false positives")
        for benign in detector.benign:
            rate = _cell(benign.fpr, share=True)
            table.add_row(_text(benign.source), f"{benign.answers:,}", f"{benign.flagged:,}", rate)
        console.print(table)
    for failure in detector.failures:
        console.print(Text(f"failed on {failure.answers:,} answers: {plain(failure.error)}"), soft_wrap=True)
    took = detector.latency
    console.print(
        f"milliseconds per answer: median {took.median:.1f}, p95 {took.p95:.1f} (in batches of {took.batch_size})\n"
    )


def _show_figures(slices: Iterable[Slice], console: Console) -> None:
    slices = list(slices)
    table = _table("", *(f"{part.value} ({part.answers:,}, {part.harmful:,} harmful)" for part in slices))
    for title, name in (("AUROC", "auroc"), ("AUPRC", "auprc"), ("calibration error", "ece")):
        table.add_row(title, *(_cell(getattr(part, name)) for part in slices))
    for number, first in enumerate(slices[0].decisions):
        table.add_section()
        decisions = [part.decisions[number] for part in slices]
        table.add_row(_when(first), *("" if first.target_fpr is None else _threshold(at) for at in decisions))
        for title, name in (("recall", "recall"), ("precision", "precision"), ("F1", "f1"), ("false positives", "fpr")):
            table.add_row(f"  {title}", *(_cell(getattr(at, name), share=name == "fpr") for at in decisions))
    console.print(table)
    for part in slices:
        told = {part.auroc.reason, *(at.recall.reason for at in part.decisions)} - {None}
        for reason in sorted(map(str, told)):
            console.print(Text(f"{part.value}: {reason}"), soft_wrap=True)


def _show_comparison(evaluation: DetectorEvaluation, console: Console) -> None:
    comparison = evaluation.comparison
    if comparison is None:
        return
    console.print(
        f"The same {comparison.answers:,} answers, {comparison.harmful:,} harmful. "
        "p after Holm; AUROC by paired bootstrap, decisions by McNemar:"
    )
    table = _table("first, second", "AUROC first - second", "p", "only first right", "only second right", "p")
    for pair in comparison.pairs:
        test = "-" if pair.auroc_test is None else _p(pair.auroc_test.p_holm)
        table.add_row(
            Text(f"{plain(pair.first)}, {plain(pair.second)}", overflow="fold"),
            _cell(pair.auroc_difference),
            test,
            f"{pair.only_first_right:,}",
            f"{pair.only_second_right:,}",
            _p(pair.decisions_test.p_holm),
        )
    console.print(table)


def _show_published(evaluation: DetectorEvaluation, console: Console) -> None:
    if not evaluation.published:
        return
    console.print("F1, published figures of others beside ours (published, not measured here):")
    table = Table("set", "detector", "F1", "source", box=box.SIMPLE_HEAD, pad_edge=False)
    for data in evaluation.data:
        figures = [figure for figure in evaluation.published if figure.data == data.loader]
        if not figures:
            continue
        table.add_section()
        for detector in evaluation.detectors:
            own = next((part for part in detector.slices if part.by == "data" and part.value == data.name), None)
            if own is None and len(evaluation.data) == 1:
                own = detector.overall  # a set with too few answers for a slice of its own
            measured = _cell(own.decisions[0].f1) if own else "–"
            where = f"measured here at {evaluation.run.threshold:g}"
            table.add_row(_text(data.name), _text(detector.spec), measured, where)
        for figure in figures:
            source = f"{figure.url}, {figure.note}"
            table.add_row(_text(data.name), figure.detector, f"{figure.value:.3f}", source)
    console.print(table)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, min_width=18)
    for column in columns:
        table.add_column(column, justify="right", no_wrap="(" not in column)
    return table


def _text(value: str) -> Text:
    return Text(plain(value), overflow="fold")  # not markup: names may hold square brackets


def _cell(estimate: Estimate, *, share: bool = False, bare: bool = False) -> str:
    if estimate.value is None:
        return "-"
    scale, form = (100, "{:.1f}") if share else (1, "{:.3f}")
    told = form.format(scale * estimate.value) + ("%" if share else "")
    if bare or estimate.low is None or estimate.high is None:
        return told
    low, high = (form.format(scale * end) for end in (estimate.low, estimate.high))
    return f"{told} ({low}–{high})"


def _when(at: Decisions) -> str:
    return f"at threshold {at.threshold:g}" if at.target_fpr is None else f"at {at.target_fpr:.0%} false positives"


def _threshold(at: Decisions) -> str:
    return "-" if at.threshold is None else f"threshold {at.threshold:.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
