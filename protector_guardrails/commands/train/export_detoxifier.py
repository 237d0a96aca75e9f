"""``protector train export-detoxifier``: a run's adapter with its manifest and card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protector_guardrails.commands.train.options import in_one_line, require_extra


def export_detoxifier(  # noqa: PLR0917 - options of the command line
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the detoxifier.")],
    name: Annotated[str, typer.Option(help="What it is called.")],
    version: Annotated[str, typer.Option(help="Its version.")],
    base: Annotated[
        str | None, typer.Option(help="Repository of the base weights. [default: SmolLM2-135M-Instruct]")
    ] = None,
    base_sha256: Annotated[
        str | None, typer.Option("--base-sha256", help="sha256 of the base weights' file; goes with --base.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="results.json of protector evaluate detoxifier, for the card."),
    ] = None,
) -> None:
    """Make a detoxifier that can be published: half precision, checksums, model card."""
    require_extra("exporting a detoxifier")
    from protector_guardrails.evaluation.rewrites import DetoxifierEvaluation
    from protector_guardrails.models.base_weights import SMOLLM2
    from protector_guardrails.training import detox_export

    with in_one_line():
        if (base is None) != (base_sha256 is None):
            raise ValueError("--base and --base-sha256 go together")
        measured = DetoxifierEvaluation.model_validate_json(results.read_bytes()) if results else None
        written = detox_export.export_detoxifier(
            run,
            output=output,
            base=base or SMOLLM2.repository,
            base_sha256=base_sha256 or SMOLLM2.gguf_sha256,
            name=name,
            version=version,
            results=measured,
        )
    typer.echo(f"exported: {written}")
