"""What the training commands share: options, settings from a file and from the command line, errors in one line."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from protector_guardrails.errors import ConfigurationError, MissingExtraError

_UNUSABLE = (ValueError, EOFError, zlib.error)  # malformed rows or options, damaged gzip files
_NEEDED = ("torch", "transformers", "safetensors", "accelerate", "peft", "yaml", "sklearn", "onnx")

Config = Annotated[
    Path | None,
    typer.Option("--config", exists=True, dir_okay=False, help="Settings in YAML; options given here win."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", file_okay=False, help="Folder of the run.")]
Validation = Annotated[
    list[Path] | None,
    typer.Option(
        "--validation", exists=True, dir_okay=False, help="Labelled exchanges never learnt from; may be repeated."
    ),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="own, pairs, pku-saferlhf or beavertails. [default: told from the first record]"),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns", help="question=NAME,accepted=NAME,rejected=NAME: fields of pairs with names of their own."
    ),
]
Epochs = Annotated[int | None, typer.Option(min=1)]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Pairs, or single answers, of a step on each device.")]
Accumulation = Annotated[
    int | None, typer.Option("--gradient-accumulation-steps", min=1, help="Batches of one update; less memory.")
]
Checkpointing = Annotated[
    bool | None, typer.Option("--gradient-checkpointing", help="Slower, in less memory.", show_default=False)
]
LearningRate = Annotated[float | None, typer.Option()]
LoraAlpha = Annotated[int | None, typer.Option(min=1, help="Scale of the adapter, times its rank.")]
LoraDropout = Annotated[float | None, typer.Option(min=0)]
HeldOut = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share kept for choosing the best checkpoint.", show_default=False)
]
SaveSteps = Annotated[int | None, typer.Option(min=1, help="Updates between two checkpoints and measurements.")]
Patience = Annotated[
    int | None, typer.Option(min=1, help="Stop after so many checkpoints that were no better. [default: never]")
]
Seed = Annotated[int | None, typer.Option()]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many records of every file, to try it out.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
BFloat16 = Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="bfloat16 autocast.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the output.")]


def merged(config: Path | None, **given: Any) -> dict[str, Any]:
    """Settings of the file, and those given on the command line, which win."""
    settings: dict[str, Any] = {}
    if config is not None:
        from protector_guardrails.training.settings import read_settings

        settings = read_settings(config)
    return settings | {name: value for name, value in given.items() if value is not None}


def origin(config: Path | None) -> str:
    """Where settings come from, for errors."""
    return f"{config} and the options" if config else "the options"


def required(settings: Mapping[str, Any], name: str, advice: str) -> Any:
    """A setting that a recipe cannot do without.

    Raises:
        ConfigurationError: If it is not there.
    """
    if not settings.get(name):
        raise ConfigurationError(f"{advice}, or set {name!r} in the file of --config")
    return settings[name]


def require_extra(what: str) -> None:
    """Raise :class:`MissingExtraError` unless what training needs is installed."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise MissingExtraError(what, extra="train")


def tell(sentence: str) -> None:
    """Print a line, once if several processes train together."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(sentence)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn errors of data and settings into a :class:`ConfigurationError` of one line."""
    try:
        yield
    except _UNUSABLE as error:
        raise ConfigurationError(_one_line(error)) from error


def minilm(base: Path | None) -> Path:
    """The folder of a BERT-style encoder; None: that of all-MiniLM-L6-v2.

    Raises:
        ConfigurationError: If there is none.
    """
    if base is not None:
        if not base.is_dir():
            raise ConfigurationError(f"there is no folder {base}: the base of the embedded detector is a folder")
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
