"""``protector check``: judge one response."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from protector_guardrails.commands.judging import ThresholdOption, flagging_protector
from protector_guardrails.errors import DetectorError
from protector_guardrails.masking import mask

_SPANS_SHOWN = 20


def check(  # noqa: PLR0917 - options of the command line
    text: Annotated[str, typer.Argument(help="The response to judge; '-' reads it from standard input.")],
    question: Annotated[str | None, typer.Option("--question", "-q", help="What the model was asked.")] = None,
    image_description: Annotated[
        list[str] | None,
        typer.Option("--image-description", "-i", help="What an image of the question shows; may be repeated."),
    ] = None,
    threshold: ThresholdOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as one line of JSON.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with status 1 if it is harmful.")] = False,
) -> None:
    """Judge one response and print the verdict, with where the harm stands, but not the text.

    The exit status is 0 for safe and harmful alike unless --exit-code is given, and 2
    if it could not be judged.
    """
    from protector_guardrails.types import Exchange, Image

    protector = flagging_protector(threshold)
    response = _standard_input() if text == "-" else text
    images = tuple(Image(description=description) for description in image_description or ())
    [outcome] = protector.guard([Exchange(response=response, question=question, images=images)])
    verdict = outcome.verdict
    if verdict is None:
        raise DetectorError(outcome.error or "the response could not be judged")
    if as_json:
        typer.echo(json.dumps(verdict.to_dict()))
    else:
        word = "harmful" if verdict.harmful else "safe"
        typer.echo(f"{word}  score {verdict.score:.3f}  threshold {verdict.threshold:g}  {verdict.detector}")
        if verdict.categories:
            ranked = sorted(verdict.categories.items(), key=lambda item: -item[1])
            typer.echo("categories  " + ", ".join(f"{name} {score:.3f}" for name, score in ranked))
        elif verdict.harmful:
            typer.echo("categories  unspecified")
        _echo_spans(verdict.spans, response)
    if exit_code and verdict.harmful:
        raise typer.Exit(1)


def _echo_spans(spans: Sequence[tuple[int, int]], response: str) -> None:
    """Where the passages stand that carry the score, in characters, and how they begin, masked."""
    for start, end in spans[:_SPANS_SHOWN]:
        typer.echo(f"span  {start}-{end}  {mask(response[start:end])}")
    if len(spans) > _SPANS_SHOWN:
        typer.echo(f"span  ... {len(spans) - _SPANS_SHOWN} more, the last one ends at {spans[-1][1]}")


def _standard_input() -> str:
    """All of standard input; bytes that are not UTF-8 become lone surrogates, which the detector can take."""
    return sys.stdin.buffer.read().decode("utf-8", errors="surrogateescape")
