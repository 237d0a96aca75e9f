"""Fine-tuning a language model that detoxifies, with LoRA.

The loss is the language model's on what should be written, and on nothing else, as in the
paper (arXiv 2401.02906, section 3.3). ``transformers.Trainer`` does the work; checkpoints hold the adapter
only. This file adds the prompt, which is the one used at inference, and batches of like length.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from protector_guardrails.detoxifiers.prompting import TEMPLATES, PromptTemplate, encode_prompt, encode_target
from protector_guardrails.training.detector import prefers_bf16
from protector_guardrails.training.detox_data import (
    DetoxPair,
    read_good_answers,
    read_pairs,
    select_pairs,
    with_foreign_answers,
)

ADAPTER = "adapter"
"""Folder of the finished adapter within the run's."""

_MLP = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class DetoxifierTrainingConfig(BaseModel):
    """Everything that decides what a training run gives, stored beside its result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[Path, ...]
    """Files of pairs: question, harmful answer, harmless answer."""
    answers: tuple[Path, ...] = ()
    """Files of exchanges; good answers of ``answer_sources`` are learnt beside harmful answers to other questions."""
    answer_sources: tuple[str, ...] = ("caia_safety",)
    output: Path = Path("runs/detoxifier")
    initial: Path | None = None
    """Adapter of an earlier run to go on from; None: a new one, of the rank and targets below."""
    template: Literal["chatml", "plain"] = "chatml"
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_targets: tuple[str, ...] = (*_ATTENTION, *_MLP)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    seed: int = 13
    held_out: float = Field(0.03, ge=0, lt=1)
    """Share of the pairs kept for the loss that is reported."""
    drop_question: float = Field(0.05, ge=0, le=1)
    """How often a pair that belongs together is shown without its question."""
    max_prompt_tokens: int = Field(160, ge=32)
    max_target_tokens: int = Field(128, ge=8)
    min_words: int = Field(8, ge=0)
    max_words: int = Field(80, ge=1)
    answers_per_question: int = Field(3, ge=1)
    same_beginning: int = Field(8, ge=1)
    refusals: float = Field(0.12, ge=0, le=1)
    repeats: dict[str, int] = {}
    """Sources whose pairs are shown several times in an epoch."""
    source_caps: dict[str, int] = {}
    """Most pairs of a source."""
    save_steps: int = Field(100, ge=1)
    limit: int | None = None
    """Use only so many pairs of every file: for trying the recipe out."""
    bf16: bool | None = None
    """bfloat16 autocast; None: where the hardware is faster with it."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""


class PlannedPairs(Dataset[dict[str, Any]]):
    """The pairs of all epochs, encoded, in the order in which they are trained on."""

    def __init__(
        self, pairs: Sequence[DetoxPair], tokenizer: Any, template: PromptTemplate, config: DetoxifierTrainingConfig
    ) -> None:
        self.items: list[dict[str, list[int]]] = []
        for epoch in range(config.epochs):
            rng = random.Random(f"{config.seed}:{epoch}")
            shown = [pair for pair in pairs for _ in range(config.repeats.get(pair.source, 1))]
            encoded = [_encoded(pair, tokenizer, template, config, rng) for pair in shown]
            self.items += _bucketed(encoded, config.batch_size, rng)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _encoded(
    pair: DetoxPair, tokenizer: Any, template: PromptTemplate, config: DetoxifierTrainingConfig, rng: random.Random
) -> dict[str, list[int]]:
    # Without the question the harmful answer must tell what it is about, so it must be the pair's own.
    together = pair.source not in config.answer_sources
    question = None if not pair.question or (together and rng.random() < config.drop_question) else pair.question
    return {
        "prompt": encode_prompt(
            tokenizer, template, question=question, response=pair.harmful, max_tokens=config.max_prompt_tokens
        ),
        "target": encode_target(tokenizer, pair.harmless)[: config.max_target_tokens],
    }


def _bucketed(items: list[dict[str, list[int]]], batch_size: int, rng: random.Random) -> list[dict[str, list[int]]]:
    """Full batches of like length, in random order."""
    rng.shuffle(items)
    batches = []
    for start in range(0, len(items), batch_size * 50):
        block = sorted(items[start : start + batch_size * 50], key=lambda item: sum(map(len, item.values())))
        batches += [block[i : i + batch_size] for i in range(0, len(block) - batch_size + 1, batch_size)]
    rng.shuffle(batches)
    return [item for batch in batches for item in batch] or items


def collate(items: Sequence[dict[str, list[int]]], *, pad: int) -> dict[str, torch.Tensor]:
    """A batch padded on the left, as in generation; ``labels`` are those of the last positions only.

    Returns:
        ``input_ids``, ``attention_mask`` and ``position_ids`` of shape (batch, length), and ``labels`` of
        shape (batch, longest target), -100 where nothing is learnt.
    """
    sequences = [[*item["prompt"], *item["target"]] for item in items]
    length, longest = max(map(len, sequences)), max(len(item["target"]) for item in items)
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in sequences])
    return {
        "input_ids": torch.tensor([[pad] * (length - len(ids)) + ids for ids in sequences]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": torch.tensor([[-100] * (longest - len(item["target"])) + item["target"] for item in items]),
    }


class TargetTrainer(Trainer):
    """A Trainer that keeps the planned order and computes logits where something is to be learnt only."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy per token of the targets."""
        labels = inputs["labels"]
        keep = labels.shape[1] + 1
        outputs = model(**{name: inputs[name] for name in inputs if name != "labels"}, logits_to_keep=keep)
        logits = outputs.logits[:, :-1].float()  # each position predicts the next one
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return (loss, outputs) if return_outputs else loss


def chosen_pairs(config: DetoxifierTrainingConfig) -> tuple[list[DetoxPair], Counter[str]]:
    """The pairs of a run, and how many were left out for what reason.

    Targets that the embedded detector finds harmful are left out.

    Raises:
        ValueError: If a file is malformed, or nothing is left.
    """
    pairs = [pair for path in config.train for pair in read_pairs(path)[: config.limit]]
    answers = [
        pair
        for path in config.answers
        for pair in read_good_answers(path, sources=config.answer_sources)[: config.limit]
    ]
    if answers:
        pairs += with_foreign_answers(answers, [pair.harmful for pair in pairs], seed=config.seed)
    chosen, left_out = select_pairs(
        pairs,
        seed=config.seed,
        min_words=config.min_words,
        max_words=config.max_words,
        answers_per_question=config.answers_per_question,
        same_beginning=config.same_beginning,
        refusals=config.refusals,
        harmful=_found_harmful,
    )
    counts: Counter[str] = Counter()
    kept = []
    for pair in chosen:
        counts[pair.source] += 1
        if counts[pair.source] > config.source_caps.get(pair.source, len(chosen)):
            left_out["one of its source too many"] += 1
        else:
            kept.append(pair)
    if not kept:
        raise ValueError("no pairs are left to train on: " + ", ".join(f"{n} {why}" for why, n in left_out.items()))
    return kept, left_out


def train_detoxifier(config: DetoxifierTrainingConfig, *, base: Path, resume: bool = False) -> Path:
    """Fine-tune a detoxifier; returns the folder with the adapter, its template, and the run's figures.

    Args:
        config: The recipe.
        base: Folder of a causal language model with safetensors and tokenizer.
        resume: Go on from the newest checkpoint in ``config.output``; without it the checkpoints
            of an earlier run there are deleted.

    Raises:
        ValueError: If a file is malformed, or nothing is left to train on.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
    template = TEMPLATES[config.template]
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    pairs, left_out = chosen_pairs(config)
    held = pairs[: round(config.held_out * len(pairs))]
    learnt = PlannedPairs(pairs[len(held) :], tokenizer, template, config)
    seen = config.model_copy(update={"epochs": 1, "repeats": {}})
    _write_counts(config.output / "data.json", pairs, left_out, len(learnt))

    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    model.config.use_cache = False
    model = _with_adapter(model, config)
    steps = len(learnt) // config.batch_size
    arguments = TrainingArguments(
        output_dir=str(config.output / "checkpoints"),
        num_train_epochs=1,  # the plan already holds every epoch
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        bf16=prefers_bf16() if config.bf16 is None else config.bf16,
        seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=2,
        eval_strategy="steps" if held else "no",
        eval_steps=config.save_steps,
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_names=["labels"],
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer = TargetTrainer(
        model=model,
        args=arguments,
        train_dataset=learnt,
        eval_dataset=PlannedPairs(held, tokenizer, template, seen) if held else None,
        data_collator=lambda items: collate(items, pad=pad),
    )
    checkpoints = config.output / "checkpoints"
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    trainer.train(resume_from_checkpoint=resume and any(checkpoints.glob("checkpoint-*")))
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    (config.output / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
    return _saved(model, template, config.output / ADAPTER)


def _with_adapter(model: Any, config: DetoxifierTrainingConfig) -> Any:
    if config.initial is not None:
        return PeftModel.from_pretrained(model, str(config.initial), is_trainable=True)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def _saved(model: Any, template: PromptTemplate, folder: Path) -> Path:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), safe_serialization=True)
    template.save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _found_harmful(pairs: Sequence[DetoxPair]) -> list[bool]:
    from protector_guardrails.detectors.embedded import EmbeddedDetector
    from protector_guardrails.types import Exchange

    detector = EmbeddedDetector.shared()
    found: list[bool] = []
    for start in range(0, len(pairs), 64):
        exchanges = [
            Exchange(question=pair.question or None, response=pair.harmless) for pair in pairs[start : start + 64]
        ]
        found += [verdict.harmful for verdict in detector.detect(exchanges)]
    return found


def _write_counts(path: Path, pairs: Sequence[DetoxPair], left_out: Counter[str], shown: int) -> None:
    sources = Counter((pair.source, pair.license) for pair in pairs)
    counts = {
        "pairs": len(pairs),
        "shown": shown,
        "sources": [{"source": s, "license": licence, "pairs": n} for (s, licence), n in sorted(sources.items())],
        "left_out": dict(left_out),
    }
    path.write_text(json.dumps(counts, indent=1), encoding="utf-8")
