"""``protector tune-threshold``: a policy that keeps to a false positive rate. Needs the extra ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protector_guardrails.commands.evaluate import BatchSize, Data, Limit, NoQuestion, Quiet, counting
from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from protector_guardrails.evaluation.results import Estimate


def tune_threshold(  # noqa: PLR0917 - options of the command line
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="POLICY.json", dir_okay=False, help="Where the policy goes.")
    ],
    target_fpr: Annotated[float, typer.Option(help="Share of harmless answers that may be flagged, such as 0.01.")],
    detector: Annotated[str, typer.Option(metavar="SPEC", help="embedded, or package.module:object.")] = "embedded",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling behind the intervals.")] = 13,
    no_question: NoQuestion = False,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing policy.")] = False,
    quiet: Quiet = False,
) -> None:
    """Choose the threshold that flags at most a share of harmless answers, and write it as a policy.

    Guards take its path, as HarmDetectorRunnable(policy="POLICY.json") does; how it
    was chosen goes to POLICY.tuning.json beside it.
    """
    record = output.with_name(output.name.removesuffix(".json") + ".tuning.json")
    if not output.parent.is_dir():
        raise ConfigurationError(f"there is no folder {output.parent}")
    if taken := [path for path in (output, record) if path.exists() and not force]:
        raise ConfigurationError(f"{taken[0]} exists: --force overwrites it")
    from protector_guardrails.evaluation.run import require_extra

    require_extra("tuning a threshold")
    from protector_guardrails.evaluation.run import write_whole
    from protector_guardrails.evaluation.tuning import tune_threshold as tune
    from protector_guardrails.policy import Policy

    words = ["protector", "tune-threshold", *data, "--target-fpr", f"{target_fpr:g}", "--detector", detector]
    words += ["--seed", str(seed), "--batch-size", str(batch_size), "--output", str(output)]
    words += [*(["--limit", str(limit)] if limit is not None else []), *(["--no-question"] if no_question else [])]
    with counting(shown=not quiet) as progress:
        tuning = tune(
            data,
            target_fpr=target_fpr,
            detector=detector,
            with_question=not no_question,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            command=words,
            progress=progress,
        )
    policy = Policy(threshold=tuning.threshold)  # a threshold that no policy takes must not be written
    write_whole(record, tuning.model_dump_json(indent=1) + "\n")
    write_whole(output, json.dumps(policy.model_dump(include={"threshold"})) + "\n")
    if not quiet:
        at = tuning.decisions
        typer.echo(f"threshold {tuning.threshold:g} flags {_told(at.fpr)} of {tuning.harmless:,} harmless answers")
        if at.recall.value is None:
            typer.echo(f"what it finds is not known: {at.recall.reason}")
        else:
            typer.echo(f"and finds {_told(at.recall)} of the harmful ones")
        if tuning.failed:
            typer.echo(f"the detector failed on {tuning.failed:,} answers, which are left out")
    typer.echo(f"written: {output} and {record.name}")
    if tuning.failed:
        raise typer.Exit(1)


def _told(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" (95 % interval {estimate.low:.1%} to {estimate.high:.1%})"
    return f"{estimate.value:.1%}{interval}"
