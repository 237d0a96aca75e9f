"""What training runs with transformers' ``Trainer`` have in common: order, checkpoints, resuming, errors, saving."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from protector_guardrails.detectors.checkpoints import Checkpoint, find_checkpoint
from protector_guardrails.detectors.pooling import out_of_memory
from protector_guardrails.errors import ConfigurationError, WeightsError
from protector_guardrails.models import base_weights
from protector_guardrails.models.base_weights import SMOLLM2
from protector_guardrails.training.detector import prefers_bf16
from protector_guardrails.training.settings import LoraSettings

ADAPTER = "adapter"
"""Folder of the finished adapter within the run's."""

CHECKPOINTS = "checkpoints"

_Item = TypeVar("_Item")


def bucketed(items: list[_Item], batch_size: int, rng: random.Random, *, length: Callable[[_Item], int]) -> list[_Item]:
    """Full batches of items of like length, in random order; items too few for one batch come as they are."""
    rng.shuffle(items)
    batches = []
    for start in range(0, len(items), batch_size * 50):
        block = sorted(items[start : start + batch_size * 50], key=length)
        batches += [block[i : i + batch_size] for i in range(0, len(block) - batch_size + 1, batch_size)]
    rng.shuffle(batches)
    return [item for batch in batches for item in batch] or items


class PlannedTrainer(Trainer):
    """A Trainer that keeps the planned order. The losses of its subclasses are means over their batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Else the loss of a batch would count as already divided by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(dataset)


class Milestones(TrainerCallback):
    """The last weights are measured, too, so that they can be the best; a resumed run takes new intervals."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer hook."""
        state.compute_steps(args, state.max_steps)  # else those of the checkpoint count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer hook."""
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True


def find_base(base: str | Path) -> tuple[Checkpoint, Any]:
    """A base model, from disk or the hub, checked to be complete, and its tokenizer.

    Raises:
        WeightsError: If it is not safetensors, not whole, or comes without a tokenizer.
    """
    if str(base) == SMOLLM2.repository and not Path(base).is_dir():  # a package mirror has it as well
        found = Checkpoint(SMOLLM2.repository, base_weights.find_base(SMOLLM2).folder).with_weights()
    else:
        found = find_checkpoint(base).with_weights()
    if found.adapter_config is not None:
        raise WeightsError(f"the base {found.name} is itself an adapter: pass a whole model")
    if not found.has_tokenizer:
        raise WeightsError(f"the base {found.name} has no tokenizer (tokenizer.json or tokenizer.model)")
    return found, AutoTokenizer.from_pretrained(str(found.folder), local_files_only=True, trust_remote_code=False)


def with_lora(model: Any, settings: LoraSettings, *, task: str) -> Any:
    """The model with a new adapter; only that, and a classification head, is trained.

    Raises:
        ConfigurationError: If the model has not the layers that are to be adapted.
    """
    layers = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if missing := [name for name in settings.lora_targets if name not in layers]:
        raise ConfigurationError(f"the base has no layers called {', '.join(missing)}: name its own in lora_targets")
    last, count = settings.lora_last_layers, int(getattr(model.config, "num_hidden_layers", 0))
    if last is not None and last > count:
        raise ConfigurationError(f"lora_last_layers is {last}, and the base has {count} layers")
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_targets),
        layers_to_transform=None if last is None else list(range(count - last, count)),
        task_type=task,
    )
    return get_peft_model(model, lora)


def prepared(model: Any, settings: LoraSettings) -> Any:
    """Set up what both kinds of training need of the model with its adapter."""
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        if parameter.requires_grad:  # small steps vanish in bfloat16
            parameter.data = parameter.data.float()
    return model


def training_arguments(
    settings: LoraSettings, *, items: int, measured: str | None, higher_is_better: bool, loss_only: bool
) -> TrainingArguments:
    """The Trainer's arguments for a plan that already holds every epoch.

    Args:
        settings: The recipe.
        items: How many the plan holds.
        measured: What tells the best checkpoint; None: nothing is held out, and the last one is kept.
        higher_is_better: Of what is measured.
        loss_only: Whether the loss is all that is measured.
    """
    if settings.patience is not None and measured is None:
        raise ConfigurationError("patience needs something to measure: hold records out, or give validation data")
    arguments = TrainingArguments(
        output_dir=str(settings.output / CHECKPOINTS),
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        bf16=prefers_bf16() if settings.bf16 is None else settings.bf16,
        seed=settings.seed,
        save_steps=settings.save_steps,
        save_total_limit=2,
        eval_strategy="steps" if measured else "no",
        eval_steps=settings.save_steps,
        load_best_model_at_end=measured is not None,
        metric_for_best_model=measured,
        greater_is_better=higher_is_better if measured else None,
        restore_callback_states_from_checkpoint=settings.patience is not None,
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
        prediction_loss_only=loss_only,
        label_names=["labels"],
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
    )
    updates = items // (settings.batch_size * settings.gradient_accumulation_steps * arguments.world_size)
    arguments.warmup_steps = round(settings.warmup_ratio * updates)
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # data parallelism cuts a batch by rows, and would part pairs; accelerate does not
    return arguments


def callbacks(settings: LoraSettings) -> list[TrainerCallback]:
    """What a run is watched by."""
    stopping = [EarlyStoppingCallback(settings.patience)] if settings.patience is not None else []
    return [Milestones(), *stopping]


def run(trainer: Trainer, settings: LoraSettings, *, resume: bool) -> list[dict[str, Any]]:
    """Train, from the newest whole checkpoint if asked to.

    Returns:
        What was logged: losses and measurements by ``step``.

    Raises:
        ConfigurationError: If the memory does not suffice; says what helps.
    """
    checkpoints = settings.output / CHECKPOINTS
    if trainer.is_world_process_zero() and not resume:
        # The Trainer goes by step numbers: it would keep an earlier run's later checkpoint and go on from that.
        shutil.rmtree(checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    newest = newest_checkpoint(checkpoints) if resume else None
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except Exception as error:
        if not out_of_memory(error):
            raise
        smaller = max(1, settings.batch_size // 2)
        steps = settings.gradient_accumulation_steps * settings.batch_size // smaller
        raise ConfigurationError(
            f"out of memory after {trainer.state.global_step} steps: set batch_size {smaller} and "
            f"gradient_accumulation_steps {steps}, which learns the same, or switch gradient_checkpointing on, or "
            "spread the base over several GPUs (docs/training.md); then go on with --resume"
        ) from error
    return [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; None if there is none."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]  # that file comes last
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def save_adapter(trainer: Trainer, folder: Path, *, base: str | Path, finish: Callable[[Path], Any]) -> Path:
    """Write the adapter in safetensors, whole or not at all.

    Args:
        trainer: A finished run.
        folder: Where to.
        base: What the adapter declares as its base.
        finish: Puts further files beside it.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered, where they are spread
    if trainer.is_world_process_zero():
        model: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        model.peft_config["default"].base_model_name_or_path = str(base)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(str(partial), state_dict=weights, safe_serialization=True, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # peft's card has headings and nothing under them
        finish(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write one of the run's files."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def epoch_of(entry: Mapping[str, Any], epochs: int) -> float:
    """The epoch of an entry of the history; the Trainer takes all epochs of the plan for one."""
    return float(entry["epoch"]) * epochs
