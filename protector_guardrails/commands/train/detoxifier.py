"""``protector train detoxifier``: a language model that rewrites, with LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protector_guardrails.commands.train import options


def detoxifier(  # noqa: PLR0917 - options of the command line
    pairs: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="Harmful and harmless answers, JSON Lines (.gz)."),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="Exchanges whose good answers are learnt, too; repeatable."),
    ] = None,
    answer_source: Annotated[
        list[str] | None, typer.Option(help="Source of --answers whose answers are good; may be repeated.")
    ] = None,
    output: options.Output = None,
    config: options.Config = None,
    base: Annotated[str | None, typer.Option(help="Folder or hub repository of a causal language model.")] = None,
    template: Annotated[str | None, typer.Option(help="chatml, or plain for bases without roles.")] = None,
    lora_rank: Annotated[int | None, typer.Option(min=1, help="Rank of LoRA (the paper: 128). [default: 8]")] = None,
    lora_alpha: options.LoraAlpha = None,
    lora_dropout: options.LoraDropout = None,
    data_format: options.Format = None,
    columns: options.Columns = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    gradient_accumulation_steps: options.Accumulation = None,
    gradient_checkpointing: options.Checkpointing = None,
    learning_rate: options.LearningRate = None,
    held_out: options.HeldOut = None,
    save_steps: options.SaveSteps = None,
    patience: options.Patience = None,
    seed: options.Seed = None,
    bf16: options.BFloat16 = None,
    limit: options.Limit = None,
    threads: options.Threads = None,
    resume: options.Resume = False,
) -> None:
    """Train a detoxifier: a language model that writes a harmless answer instead of a harmful one.

    The defaults are those of the small embedded detoxifier. The paper's (arXiv 2401.02906) are in
    examples/training/detoxifier-paper.yaml.
    """
    options.require_extra("training a detoxifier")
    from protector_guardrails.training.adapters import parse_columns

    settings = options.merged(
        config,
        train=pairs or None,
        answers=answers or None,
        answer_sources=answer_source or None,
        output=output,
        base=base,
        template=template,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        format=data_format,
        columns=parse_columns(columns) if columns is not None else None,
        epochs=epochs,
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        gradient_checkpointing=gradient_checkpointing,
        learning_rate=learning_rate,
        held_out=held_out,
        save_steps=save_steps,
        patience=patience,
        seed=seed,
        bf16=bf16,
        limit=limit,
        threads=threads,
    )
    options.required(settings, "train", "name at least one file of pairs")
    model = options.required(settings, "base", "name a language model with --base")
    del settings["base"]
    with options.in_one_line():
        from protector_guardrails.training.detoxifier import DetoxifierTrainingConfig, train_detoxifier
        from protector_guardrails.training.settings import checked

        recipe = checked(settings, DetoxifierTrainingConfig, where=options.origin(config))
        run = train_detoxifier(recipe, base=model, resume=resume, tell=options.tell)
    options.tell(f"trained: {run}")
