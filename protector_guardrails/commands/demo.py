"""``protector demo``: real answers of multimodal models through the real chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protector_guardrails.commands.judging import ThresholdOption, policy_for
from protector_guardrails.masking import mask, plain, shorten

if TYPE_CHECKING:
    from rich.console import Console

    from protector_guardrails.commands.replaying import Replayed

_ALL_SHOWN = 30
_DELICATE_SHOWN, _SAFE_SHOWN = 20, 8

# What happened, in words.
_DONE = {
    "pass": "passed as it came",
    "rewrite": "harmful part left out",
    "refuse": "replaced by a refusal",
    "unjudged": "not judged",
}


def demo(
    data: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Recorded answers, JSON Lines (.gz). [default: a few bundled]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many answers.")] = None,
    detoxifier: Annotated[str, typer.Option(help="redact, refuse or embedded.")] = "redact",
    threshold: ThresholdOption = None,
) -> None:
    """Replay recorded answers of multimodal models through a guarded chain.

    A replay model stands for the multimodal model, and the chain around it is the real
    one: model | HarmDetectorRunnable() | DetoxifierRunnable(). Nothing is sent
    anywhere. What a person or the detector calls harmful is shown masked.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from protector_guardrails.commands.replaying import read_records, replay
    from protector_guardrails.data import DEMO_EXCHANGES
    from protector_guardrails.detoxifiers import resolve_detoxifier

    policy = policy_for(threshold).model_copy(update={"on_harm": "detoxify"})
    resolve_detoxifier(detoxifier)  # an unknown name is told before any work
    records = read_records(data or DEMO_EXCHANGES, limit=limit)
    console = Console(highlight=False)
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("judging", total=len(records))
        results = replay(records, detoxifier=detoxifier, policy=policy, progress=lambda done: bar.advance(task, done))
    for result in _sample(results):
        _show(console, result)
    _show_summary(console, results)


def _sample(results: Sequence[Replayed]) -> list[Replayed]:
    """All of a few; of many the flagged and labelled ones first, and some safe ones, spread over the file."""
    if len(results) <= _ALL_SHOWN:
        return list(results)
    delicate = [index for index, result in enumerate(results) if result.delicate]
    safe = [index for index, result in enumerate(results) if not result.delicate]
    chosen = _spread(delicate, _DELICATE_SHOWN) + _spread(safe, _SAFE_SHOWN)
    return [results[index] for index in sorted(chosen)]


def _spread(indices: list[int], count: int) -> list[int]:
    if len(indices) <= count:
        return indices
    return [indices[position * len(indices) // count] for position in range(count)]


def _show(console: Console, result: Replayed) -> None:
    from rich.text import Text

    hide = mask if result.delicate else shorten
    record = result.record
    label = {True: "harmful", False: "harmless", None: "no label"}[result.label]
    verdict = {True: "flagged", False: "safe", None: "failed"}[result.flagged]
    score = "  -  " if result.score is None else f"{result.score:.3f}"
    style = "red" if result.flagged else "yellow" if result.delicate else "green"
    done = _DONE.get(result.action, result.action)
    # Text, not markup: an answer may hold square brackets.
    console.print(
        Text(f"{score} {verdict:7s}", style), Text(f"{done:21s}  people say: {label:8s}  {plain(result.model)}")
    )
    asked = hide(str(record["question"]))
    if record.get("image_desc"):
        asked += f"  [image: {hide(str(record['image_desc']))}]"
    console.print(Text(f"      asked    {asked}"), soft_wrap=True)
    console.print(Text(f"      answered {hide(str(record['response']))}"), soft_wrap=True)


def _show_summary(console: Console, results: Sequence[Replayed]) -> None:
    from rich.table import Table

    from protector_guardrails.commands.replaying import summarise

    summary = summarise(results)
    counts = summary.confusion
    console.print(f"\n{len(results)} answers of {len({result.model for result in results})} models")
    if counts:
        table = Table("people say", "flagged", "passed", "share flagged")
        for label, name in ((True, "harmful"), (False, "harmless")):
            flagged, passed = counts[label, True], counts[label, False]
            share = f"{flagged / (flagged + passed):.1%}" if flagged + passed else "-"
            table.add_row(name, str(flagged), str(passed), share)
        console.print(table)
    actions = ", ".join(f"{_DONE.get(action, action)} {count}" for action, count in summary.actions.most_common())
    console.print(f"what happened: {actions}")
    if summary.detector_ms:
        console.print(
            "milliseconds per answer: detector median {:.1f}, p95 {:.1f}".format(*summary.detector_ms), end=""
        )
        console.print("; whole chain median {:.1f}, p95 {:.1f}".format(*summary.chain_ms))
