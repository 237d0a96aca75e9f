"""``protector evaluate defense``: what a guard prevents and what it costs. Needs the extra ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protector_guardrails.commands.pages import write_pages

if TYPE_CHECKING:
    from protector_guardrails.evaluation.defense.results import DefenseEvaluation

_Progress = tuple[Callable[[int], None], Callable[[int], None]]


def defense(  # noqa: PLR0917 - options of the command line
    mllm: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="Who is asked: package.module:object or PROVIDER:MODEL (LangChain), transformers:FOLDER, or "
            "recorded:FILE; recorded alone: the answers beside the questions.",
        ),
    ],
    report: Annotated[
        Path,
        typer.Option(
            metavar="DIR", file_okay=False, help="Folder for answers, judgements and results; it holds harmful text."
        ),
    ],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="mm-safetybench:FOLDER, figstep:FOLDER, a folder or a file of one's own; may be repeated.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="detector:SPEC, chat:SPEC, labels:FILE; may be repeated. Keywords always judge, too. "
            "[default: detector:embedded]",
        ),
    ] = None,
    detector: Annotated[
        str, typer.Option(metavar="SPEC", help="The guard's detector: embedded, or package.module:object.")
    ] = "embedded",
    detoxifier: Annotated[
        str, typer.Option(metavar="SPEC", help="The guard's detoxifier: redact, refuse, or package.module:object.")
    ] = "redact",
    policy: Annotated[
        Path | None, typer.Option(metavar="POLICY.json", dir_okay=False, help="The guard's policy.")
    ] = None,
    describe: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="package.module:function from the bytes of an image to words, for images that are not described; "
            "the guard is told the words.",
        ),
    ] = None,
    benign: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="Harmless questions, in the forms of --benchmark; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each benchmark.")] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only attacks of this kind; may be repeated.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls of a remote model at a time.")] = 4,
    rate_limit: Annotated[float | None, typer.Option(help="Calls of the model that is asked, in a minute.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of examples.")] = 13,
    unmask: Annotated[bool, typer.Option("--unmask", help="Leave the examples in the report readable.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the report folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no tables.")] = False,
) -> None:
    """Measure attack success on a bare model, behind a guard that refuses, and behind one that rewrites.

    Exit status 1: done, but some answers are missing, or the guard or a judge failed on some.
    """
    from protector_guardrails.evaluation.run import RESULTS, require_extra

    require_extra("evaluating a defence")
    from protector_guardrails.evaluation.defense.run import evaluate_defense
    from protector_guardrails.policy import Policy

    repeated = {"--benchmark": benchmark, "--judge": judge, "--benign": benign, "--kinds": kinds}
    words = ["protector", "evaluate", "defense", "--mllm", mllm]
    words += [word for option, values in repeated.items() for value in values or () for word in (option, value)]
    # Written out in full, so that the line says the same when a default changes.
    words += ["--detector", detector, "--detoxifier", detoxifier, "--seed", str(seed)]
    given = {"--policy": policy, "--describe": describe, "--limit": limit}
    words += [word for option, value in given.items() if value is not None for word in (option, str(value))]
    words += ["--unmask"] if unmask else []
    try:
        with _counting(shown=not quiet) as (answering, judging):
            evaluation = evaluate_defense(
                benchmark or (),
                mllm,
                report=report,
                judges=judge or (),
                detector=detector,
                detoxifier=detoxifier,
                policy=None if policy is None else Policy.from_file(policy),
                describe=describe,
                benign=benign or (),
                limit=limit,
                kinds=kinds,
                concurrency=concurrency,
                rate_limit_per_minute=rate_limit,
                resume=resume,
                seed=seed,
                masked=not unmask,
                command=words,
                answering=answering,
                judging=judging,
            )
    except KeyboardInterrupt:
        typer.echo(f"what was answered and judged is in {report}; the same command with --resume goes on", err=True)
        raise
    if not quiet:
        from rich.console import Console

        from protector_guardrails.evaluation.defense.display import show
        from protector_guardrails.evaluation.report.defense_page import headline_judge

        show(evaluation, Console(highlight=False), judge=headline_judge(evaluation))
    typer.echo(f"written: {report / RESULTS}{write_pages(evaluation, report)}; the answers beside it hold harmful text")
    if _is_incomplete(evaluation):
        raise typer.Exit(1)


def _is_incomplete(evaluation: DefenseEvaluation) -> bool:
    unjudged = any(judge.unusable for judge in evaluation.judges if judge.kind != "labels")
    return bool(evaluation.answered.failures or evaluation.run.failures or unjudged)


@contextmanager
def _counting(*, shown: bool) -> Iterator[_Progress]:
    """Two counters on standard error, one for answers and one for judgements; yields what moves them."""
    from rich.console import Console

    if not shown or not Console(stderr=True).is_terminal:  # in a log it is noise
        yield lambda _: None, lambda _: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        answering, judging = (bar.add_task(what, total=None) for what in ("questions asked", "answers judged"))
        yield lambda done: bar.advance(answering, done), lambda done: bar.advance(judging, done)
