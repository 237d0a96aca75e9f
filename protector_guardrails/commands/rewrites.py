"""``protector evaluate detoxifier``: what becomes of harmful answers. Needs the extra ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from protector_guardrails.evaluation.rewrites import DetoxifierEvaluation


def detoxifier(  # noqa: PLR0917 - options of the command line
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Labelled answers, JSON Lines (.gz); the harmful ones count.")
    ],
    spec: Annotated[
        str, typer.Option("--detoxifier", metavar="SPEC", help="A known name, or package.module:object.")
    ] = "embedded",
    source: Annotated[list[str] | None, typer.Option(help="Only this source; may be repeated.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Folder for results.json.")
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="Write the rewrites there too, beside questions that may be harmful.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many answers of every source.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers rewritten at a time.")] = 8,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no table.")] = False,
) -> None:
    """Have harmful answers rewritten once, and measure what comes of it, before any fallback."""
    from protector_guardrails.commands.evaluate import counting
    from protector_guardrails.detectors import resolve_detector
    from protector_guardrails.evaluation.data import open_data
    from protector_guardrails.evaluation.defense.arms import load_detoxifier
    from protector_guardrails.evaluation.rewrites import evaluate_detoxifier
    from protector_guardrails.evaluation.run import RESULTS, require_extra, write_whole

    require_extra("evaluating a detoxifier")
    if texts and report is None:
        raise ConfigurationError("--texts needs --report: the folder where they are written")
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
    words = ["protector", "evaluate", "detoxifier", *data, "--detoxifier", spec, "--batch-size", str(batch_size)]
    words += [word for name in source or () for word in ("--source", name)]
    words += ["--limit", str(limit)] if limit is not None else []
    with counting(shown=not quiet) as progress:
        found = evaluate_detoxifier(
            open_data(data),
            load_detoxifier(spec).detoxifier,
            name=spec,
            detector=resolve_detector("embedded"),
            sources=source or (),
            limit=limit,
            batch_size=batch_size,
            texts=report / "rewrites.jsonl" if report is not None and texts else None,
            command=words,
            progress=progress,
        )
    if not quiet:
        _show(found)
    if report is not None:
        write_whole(report / RESULTS, found.model_dump_json(indent=1))
        typer.echo(f"written: {report / RESULTS}")


def _show(found: DetoxifierEvaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("per cent of the answers", *(one.source for one in found.figures))
    table.add_row("answers", *(f"{one.answers:,}" for one in found.figures))
    rates = ("empty", "echoing", "still_harmful", "refusing", "on_topic", "on_topic_by_chance", "repeated")
    for rate in rates:
        values = [getattr(one, rate).value for one in found.figures]
        table.add_row(rate.replace("_", " "), *("–" if value is None else f"{100 * value:.1f}" for value in values))
    table.add_row("words, median", *(f"{one.words:.0f}" for one in found.figures))
    table.add_row("seconds, median", *(f"{one.seconds:.2f}" for one in found.figures))
    table.add_row("words per second", *(f"{one.words_per_second:.1f}" for one in found.figures))
    Console(highlight=False).print(table)
