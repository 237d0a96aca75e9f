"""Fine-tuning a language model that detoxifies, with LoRA.

The loss is the language model's on what should be written, and on nothing else, as in the
paper (arXiv 2401.02906, section 3.3). The prompt is the one used at inference.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from pydantic import Field
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM

from protector_guardrails.detoxifiers.prompting import TEMPLATES, PromptTemplate, encode_prompt, encode_target
from protector_guardrails.training.adapters import detox_pairs, read_labelled
from protector_guardrails.training.curves import draw_curves
from protector_guardrails.training.detox_card import detoxifier_card
from protector_guardrails.training.detox_data import (
    DetoxPair,
    read_good_answers,
    select_pairs,
    with_foreign_answers,
)
from protector_guardrails.training.lora_card import read_json
from protector_guardrails.training.runs import (
    ADAPTER,
    PlannedTrainer,
    bucketed,
    callbacks,
    find_base,
    prepared,
    run,
    save_adapter,
    training_arguments,
    with_lora,
    write_json,
)
from protector_guardrails.training.settings import Files, LoraSettings

_MLP = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class DetoxifierTrainingConfig(LoraSettings):
    """The recipe; the defaults are those of the small embedded detoxifier."""

    answers: Files = ()
    """Files of exchanges; good answers of ``answer_sources`` are learnt beside harmful answers to other questions."""
    answer_sources: tuple[str, ...] = ("caia_safety",)
    output: Path = Path("runs/detoxifier")
    initial: Path | None = None
    """Adapter of an earlier run to go on from; None: a new one, of the rank and targets below."""
    template: Literal["chatml", "plain"] = "chatml"
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_targets: tuple[str, ...] = Field((*_ATTENTION, *_MLP), min_length=1)
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    schedule: Literal["linear", "cosine"] = "cosine"
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    held_out: float = Field(0.03, ge=0, lt=1)
    """Share of the pairs kept for the loss that is reported."""
    drop_question: float = Field(0.05, ge=0, le=1)
    """How often a pair that belongs together is shown without its question."""
    max_prompt_tokens: int = Field(160, ge=32)
    max_target_tokens: int = Field(128, ge=8)
    min_words: int = Field(8, ge=0)
    """Shorter targets are left out."""
    max_words: int = Field(80, ge=1)
    """Longer targets are shortened to whole sentences."""
    answers_per_question: int = Field(3, ge=1)
    same_beginning: int = Field(8, ge=1)
    """Most targets that begin with the same six words."""
    refusals: float = Field(0.12, ge=0, le=1)
    """Largest share of targets that refuse."""
    distinct_targets: bool = True
    """Leave out a target that occurred before."""
    judged_targets: bool = True
    """Leave out targets that the embedded detector finds harmful."""
    repeats: dict[str, int] = Field(default_factory=dict)
    """Sources whose pairs are shown several times in an epoch."""
    source_caps: dict[str, int] = Field(default_factory=dict)
    """Most pairs of a source that are looked at."""


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
            self.items += bucketed(encoded, config.batch_size, rng, length=lambda item: sum(map(len, item.values())))

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


class TargetTrainer(PlannedTrainer):
    """Computes logits where something is to be learnt only."""

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


def chosen_pairs(
    config: DetoxifierTrainingConfig, *, tell: Callable[[str], None] = lambda _: None
) -> tuple[list[DetoxPair], Counter[str]]:
    """The pairs of a run, and how many were left out for what reason.

    Args:
        config: The recipe.
        tell: Is told, in sentences, what was read.

    Raises:
        ValueError: If a file is malformed, or nothing is left.
    """
    pairs: list[DetoxPair] = []
    nothing_to_learn: Counter[str] = Counter()
    for path in config.train:
        records, form = read_labelled(path, form=config.format, columns=config.columns)
        tell(f"{path}: {len(records)} records in the form {form}")
        found, without = detox_pairs(records[: config.limit])
        pairs += found
        nothing_to_learn.update(without)
    answers = [
        pair
        for path in config.answers
        for pair in read_good_answers(path, sources=config.answer_sources)[: config.limit]
    ]
    if answers:
        pairs += with_foreign_answers(answers, [pair.harmful for pair in pairs], seed=config.seed)
    pairs, capped = _within_caps(pairs, config)
    chosen, left_out = select_pairs(
        pairs,
        seed=config.seed,
        min_words=config.min_words,
        max_words=config.max_words,
        answers_per_question=config.answers_per_question,
        same_beginning=config.same_beginning,
        refusals=config.refusals,
        distinct=config.distinct_targets,
        harmful=_found_harmful if config.judged_targets else None,
    )
    left_out += nothing_to_learn + capped
    if not chosen:
        raise ValueError("no pairs are left to train on: " + ", ".join(f"{n} {why}" for why, n in left_out.items()))
    return chosen, left_out


def _within_caps(pairs: Sequence[DetoxPair], config: DetoxifierTrainingConfig) -> tuple[list[DetoxPair], Counter[str]]:
    """A random choice of each source, before anything is judged, since judging takes time."""
    shuffled = random.Random(config.seed).sample(pairs, len(pairs))
    counts: Counter[str] = Counter()
    kept = []
    for pair in shuffled:
        counts[pair.source] += 1
        if counts[pair.source] <= config.source_caps.get(pair.source, len(shuffled)):
            kept.append(pair)
    return kept, Counter({"one of its source too many": len(shuffled) - len(kept)} if len(kept) < len(shuffled) else {})


def train_detoxifier(
    config: DetoxifierTrainingConfig,
    *,
    base: str | Path,
    resume: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Fine-tune a detoxifier; returns the folder with the adapter, its template, and the run's figures.

    Args:
        config: The recipe.
        base: Folder or hub repository of a causal language model with safetensors and tokenizer.
        resume: Go on from the newest checkpoint in ``config.output``; without it the checkpoints
            of an earlier run there are deleted.
        tell: Is told, in sentences, what was read.

    Raises:
        ValueError: If a file is malformed, or nothing is left to train on.
        ConfigurationError: If the memory does not suffice.
        WeightsError: If the base cannot be had, or has no tokenizer.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    template = TEMPLATES[config.template]
    found, tokenizer = find_base(base)
    pairs, left_out = chosen_pairs(config, tell=tell)
    held = pairs[: round(config.held_out * len(pairs))]
    learnt = PlannedPairs(pairs[len(held) :], tokenizer, template, config)
    seen = config.model_copy(update={"epochs": 1, "repeats": {}})

    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_pretrained(
        str(found.folder),
        dtype=getattr(torch, config.base_dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    model = prepared(_with_adapter(model, config), config)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer = TargetTrainer(
        model=model,
        args=training_arguments(
            config,
            items=len(learnt),
            measured="eval_loss" if held else None,
            higher_is_better=False,
            loss_only=True,
        ),
        train_dataset=learnt,
        eval_dataset=PlannedPairs(held, tokenizer, template, seen) if held else None,
        data_collator=lambda items: collate(items, pad=pad),
        callbacks=callbacks(config),
    )
    if trainer.is_world_process_zero():
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_json(config.output / "data.json", _counts(pairs, left_out, len(learnt)) | _earlier(config.initial))
    history = run(trainer, config, resume=resume)
    declared = base if found.commit else found.folder.resolve()
    save_adapter(trainer, config.output / ADAPTER, base=declared, finish=template.save)
    if trainer.is_world_process_zero():
        write_json(config.output / "history.json", history)
        curves = draw_curves(history, config.output / "curves.svg", epochs=config.epochs)
        name = config.output.resolve().name
        card = detoxifier_card(
            config.output, metrics={}, base=found.name, name=name, version="unversioned", curves=curves
        )
        (config.output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return config.output / ADAPTER


def _with_adapter(model: Any, config: DetoxifierTrainingConfig) -> Any:
    if config.initial is not None:
        return PeftModel.from_pretrained(model, str(config.initial), is_trainable=True)
    return with_lora(model, config, task="CAUSAL_LM")


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


def _earlier(initial: Path | None) -> dict[str, Any]:
    """What the run learnt from whose adapter this one goes on, if its folder tells."""
    counts = initial.parent / "data.json" if initial is not None else None
    return {"earlier": read_json(counts)} if counts is not None and counts.is_file() else {}


def _counts(pairs: Sequence[DetoxPair], left_out: Counter[str], shown: int) -> dict[str, Any]:
    sources = Counter((pair.source, pair.license) for pair in pairs)
    return {
        "pairs": len(pairs),
        "shown": shown,
        "sources": [{"source": s, "license": licence, "pairs": n} for (s, licence), n in sorted(sources.items())],
        "left_out": dict(left_out),
    }
