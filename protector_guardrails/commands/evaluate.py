"""``protector evaluate``: how good a detector or a guard is, with intervals. Needs the extra ``evaluate``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from protector_guardrails.commands.defense import defense
from protector_guardrails.commands.pages import write_pages
from protector_guardrails.commands.report import report as report_again
from protector_guardrails.commands.rewrites import detoxifier
from protector_guardrails.errors import ConfigurationError

app = typer.Typer(help="Measure how good a detector or a whole guard is (extra: evaluate).", rich_markup_mode=None)

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA", help="Labelled answers, JSON Lines (.gz), or NAME:PATH of a public set on your disk."
    ),
]
NoQuestion = Annotated[
    bool, typer.Option("--no-question", help="Judge the response alone, without question and image descriptions.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many answers of every file, to try it out.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Answers judged at a time.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no tables.")]


@app.callback(invoke_without_command=True)
def evaluate(context: typer.Context) -> None:
    """Measure how good a detector or a whole guard is (extra: evaluate)."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def detector(  # noqa: PLR0917 - options of the command line
    data: Data,
    detectors: Annotated[
        list[str] | None,
        typer.Option(
            "--detector",
            metavar="SPEC",
            help="embedded, or package.module:object; may be repeated. [default: embedded]",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Folder for results.json, pages and scores.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Score from which it is harmful, 0 to 1.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 13,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the intervals; 0 for none.")] = 1000,
    no_question: NoQuestion = False,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    unmask: Annotated[bool, typer.Option("--unmask", help="Leave the examples in results.json readable.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Take over the scores in the report folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure detectors on labelled answers, with 95 % intervals.

    Several detectors are compared on the same answers. Exit status 1: done, but a
    detector failed on some answers.
    """
    check_threshold(threshold)
    from protector_guardrails.evaluation.run import RESULTS, evaluate_detectors, require_extra

    require_extra("evaluating a detector")
    specs = detectors or ["embedded"]
    words = ["protector", "evaluate", "detector", *data, *(word for spec in specs for word in ("--detector", spec))]
    # Written out in full, so that the line says the same when a default changes.
    words += ["--threshold", f"{threshold:g}", "--seed", str(seed), "--bootstrap", str(bootstrap)]
    words += ["--batch-size", str(batch_size), *(["--limit", str(limit)] if limit is not None else [])]
    words += [word for word, given in (("--no-question", no_question), ("--unmask", unmask)) if given]
    try:
        with counting(shown=not quiet) as progress:
            evaluation = evaluate_detectors(
                data,
                specs,
                report=report,
                resume=resume,
                threshold=threshold,
                seed=seed,
                bootstrap=bootstrap,
                with_question=not no_question,
                limit=limit,
                batch_size=batch_size,
                masked=not unmask,
                command=words,
                progress=progress,
            )
    except KeyboardInterrupt:
        if report is not None:
            typer.echo(f"the scores so far are in {report}; the same command with --resume goes on", err=True)
        raise
    if not quiet:
        from rich.console import Console

        from protector_guardrails.evaluation.display import show

        show(evaluation, Console(highlight=False))
    if report is not None:
        typer.echo(f"written: {report / RESULTS}{write_pages(evaluation, report)}")
    if any(result.failures for result in evaluation.detectors):
        raise typer.Exit(1)


app.command()(defense)
app.command()(detoxifier)
app.command("report")(report_again)


def check_threshold(threshold: float) -> None:
    """See that a threshold can be one.

    Raises:
        ConfigurationError: If it is not a number in [0, 1].
    """
    if not (math.isfinite(threshold) and 0.0 <= threshold <= 1.0):
        raise ConfigurationError(f"--threshold must be a number from 0 to 1, not {threshold:g}")


@contextmanager
def counting(*, shown: bool) -> Iterator[Callable[[int], None]]:
    """A counter on standard error; yields what moves it. How many answers a file holds is not known before."""
    from rich.console import Console

    if not shown or not Console(stderr=True).is_terminal:  # in a log it is noise
        yield lambda _: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("judged {task.completed:,.0f} answers"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("judging", total=None)
        yield lambda done: bar.advance(task, done)
