"""``protector data``: have a model write data for a detector and a detoxifier, and check files of such data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from protector_guardrails.errors import ConfigurationError

app = typer.Typer(help="Have a model write data to train on, and check files of data.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Have a model write data to train on, and check files of data."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def build(  # noqa: PLR0917 - options of the command line
    model: Annotated[
        str, typer.Option("--model", metavar="SPEC", help="Who writes: PROVIDER:MODEL, or package.module:object.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the data set.")],
    licence: Annotated[
        str, typer.Option("--license", help="Under which the rows may be used; the model's terms decide.")
    ],
    rejected_model: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Who answers the bare questions for the harmful side. [default: the model writes mild stand-ins]",
        ),
    ] = None,
    detector: Annotated[
        str, typer.Option(metavar="SPEC", help="What checks the harmless answers: embedded, or package.module:object.")
    ] = "embedded",
    scenarios: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="YAML or JSON: a list of objects with name, description, category. [default: thirteen of our own]",
        ),
    ] = None,
    questions_per_scenario: Annotated[int, typer.Option(min=1)] = 100,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions in all, to try it out.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    rate_limit: Annotated[float | None, typer.Option(metavar="N", help="Requests in a minute at most.")] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one request.")] = 120,
    seed: Annotated[int, typer.Option(help="Of who asks in which batch of questions.")] = 13,
    resume: Annotated[bool, typer.Option("--resume", help="Take over what models said into this folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no counts.")] = False,
) -> None:
    """Have a chat model write questions, and a harmful and a harmless answer to each (as Safe-Harm-10K).

    Questions go to the model's provider, and so do answers that are written there. Exit status
    1: done, but some requests failed; --resume tries those again.
    """
    from pydantic import ValidationError

    from protector_guardrails.data_building.build import PAIRS, REQUESTS, BuildConfig, build_data_set
    from protector_guardrails.data_building.scenarios import SCENARIOS, read_scenarios

    try:
        config = BuildConfig(
            model=model,
            output=output,
            license=licence,
            rejected_model=rejected_model,
            detector=detector,
            scenarios=SCENARIOS if scenarios is None else read_scenarios(scenarios),
            questions_per_scenario=questions_per_scenario,
            limit=limit,
            seed=seed,
            concurrency=concurrency,
            rate_limit_per_minute=rate_limit,
            timeout_s=timeout,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    try:
        with _phases(shown=not quiet) as phase:
            built = build_data_set(config, resume=resume, phase=phase)
    except KeyboardInterrupt:
        typer.echo(f"what was said so far is in {output / REQUESTS}; the same command with --resume goes on", err=True)
        raise
    failed = built.requests.failures.total()
    if not quiet:
        typer.echo(f"pairs      {len(built.pairs):,}")
        _show("left out", built.reasons)
        _show("replies that could not be used", built.collected.unusable)
        _show("questions missing", built.collected.unfinished)
        _show("requests that failed", built.requests.failures)
        typer.echo(f"written: {output / PAIRS} and the files beside it")
    if failed or not built.pairs:
        raise typer.Exit(1)


@app.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="JSON Lines (.gz)."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")] = False,
) -> None:
    """Check a file of pairs or labelled exchanges: its form, and what is in it twice.

    No text of the file is printed. Exit status 1: some rows are not of the form.
    """
    from protector_guardrails.commands.lines import LineReader
    from protector_guardrails.data_building.checking import check_lines

    with LineReader(file) as lines:
        found = check_lines(lines)
    if as_json:
        typer.echo(json.dumps({"file": str(file), **vars(found)}))
    else:
        typer.echo(f"pairs                     {found.pairs:,}")
        typer.echo(f"exchanges                 {found.exchanges:,}, {found.harmful:,} of them harmful")
        typer.echo(f"different questions       {found.questions:,}")
        typer.echo(f"  nearly the same         {found.near_questions:,}")
        typer.echo(f"rows that occur again     {found.same:,}")
        typer.echo(f"labels that contradict    {found.contradictions:,}")
        for name, count in found.unstated.items():
            if count:
                typer.echo(f"without {name:<17} {count:,}")
        for reason, count in found.wrong.items():
            typer.echo(f"wrong: {count:,} (first on line {found.first_wrong[reason]}): {reason}")
    if found.wrong:
        raise typer.Exit(1)


def _show(what: str, counts: Mapping[str, int]) -> None:
    for name, count in sorted(counts.items()):
        if count:
            typer.echo(f"{what}: {count:,} ({name})")


@contextmanager
def _phases(*, shown: bool) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Progress bars on standard error, one per phase; yields what makes them."""
    from rich.console import Console

    console = Console(stderr=True)
    if not shown or not console.is_terminal:  # in a log it is noise
        yield lambda _what, _steps: lambda _done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:

        def phase(what: str, steps: int) -> Callable[[int], None]:
            task = bars.add_task(what, total=steps)
            return lambda done: bars.advance(task, done)

        yield phase
