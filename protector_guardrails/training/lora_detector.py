"""Fine-tuning a language model as a harm detector with LoRA: the recipe of the paper (arXiv 2401.02906).

A linear head on the last token gives one logit of harm. The paper's code gives one of safety
(1 = safe); here 1 is harmful, in the data and in what comes out, as everywhere in this package.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification

from protector_guardrails.detectors.templates import Template, TextEncoder
from protector_guardrails.errors import ConfigurationError, WeightsError
from protector_guardrails.training.adapters import LabelledAnswers, joined, label_counts, read_labelled
from protector_guardrails.training.curves import draw_curves
from protector_guardrails.training.data import split_by_question
from protector_guardrails.training.lora_card import lora_detector_card
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

TEMPLATE = "question+response"
"""What is learnt from, by its name in :data:`protector_guardrails.detectors.templates.TEMPLATES`."""


class LoraDetectorConfig(LoraSettings):
    """The recipe; the defaults are the paper's."""

    base: str
    """Folder or hub repository of a causal language model."""
    output: Path = Path("runs/lora-detector")
    validation: Files = ()
    """Files never learnt from, to choose the best checkpoint by; none: what is held out of the training files."""
    objective: Literal["bce", "bce+ranking"] = "bce"
    """``bce``: binary cross-entropy, the paper's equation. ``bce+ranking``: with the ranking term of its code."""
    lora_rank: int = Field(32, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    lora_targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1)
    epochs: int = Field(4, ge=1)
    learning_rate: float = Field(2e-5, gt=0)
    schedule: Literal["linear", "cosine"] = "linear"
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    held_out: float = Field(0.05, ge=0, lt=1)
    save_steps: int = Field(200, ge=1)
    bf16: bool | None = True
    max_tokens: int = Field(512, ge=32)
    drop_question: float = Field(0.0, ge=0, le=1)
    """How often an answer is shown without its question, for a detector that is to judge both ways."""


class PlannedAnswers(Dataset[list[dict[str, Any]]]):
    """Questions with their answers, encoded when they are asked for, in the order in which they are learnt from.

    Args:
        records: What is learnt from.
        encode: Token ids of a question and an answer.
        config: The recipe.
        epochs: How many the plan holds; 0: one, in the order given, and every question is shown.
    """

    def __init__(
        self,
        records: Sequence[LabelledAnswers],
        encode: Callable[[str, str], tuple[int, ...]],
        config: LoraDetectorConfig,
        *,
        epochs: int,
    ) -> None:
        self.encode, self.seed = encode, config.seed
        self.drop_question = config.drop_question if epochs else 0.0
        self.plan: list[LabelledAnswers] = [] if epochs else list(records)
        for epoch in range(epochs):
            self.plan += bucketed(
                list(records),
                config.batch_size,
                random.Random(f"{config.seed}:{epoch}"),
                length=lambda record: len(record.question) + max(len(answer.text) for answer in record.answers),
            )

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Any:
        record = self.plan[index]
        rng = random.Random(f"{self.seed}:{index}")
        question = "" if rng.random() < self.drop_question else record.question
        return {
            "ids": [self.encode(question, answer.text) for answer in record.answers],
            "labels": [float(answer.harmful) for answer in record.answers],
            "ranked": record.ranked,
        }


def collate(items: Sequence[dict[str, Any]], *, pad: int) -> dict[str, Tensor]:
    """A batch padded on the right.

    Returns:
        ``input_ids`` and ``attention_mask`` of shape (answers, length), ``labels`` of shape (answers,), and
        ``ranked`` of shape (pairs, 2): the rows of the harmless and the harmful answer to the same question.
    """
    texts = [ids for item in items for ids in item["ids"]]
    longest = max(map(len, texts))
    starts = np.cumsum([0, *(len(item["ids"]) for item in items)])
    ranked = [[start + i for i in item["ranked"]] for start, item in zip(starts, items, strict=False) if item["ranked"]]
    return {
        "input_ids": torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in texts]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts]),
        "labels": torch.tensor([label for item in items for label in item["labels"]]),
        "ranked": torch.tensor(ranked, dtype=torch.long).reshape(-1, 2),
    }


def objective_loss(logits: Tensor, labels: Tensor, ranked: Tensor, *, objective: str) -> Tensor:
    """The loss of a batch.

    For a pair, the paper's code adds the cross-entropies of both answers twice, and once a ranking term:
    ``-log sigmoid(harmful - harmless)`` for logits of harm. Two cross-entropies are twice their mean, hence the 4.

    Args:
        logits: Of harm, shape (answers,).
        labels: 1.0 for harmful, shape (answers,).
        ranked: Rows of the harmless and the harmful answer of each pair, shape (pairs, 2).
        objective: ``"bce"`` or ``"bce+ranking"``.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, labels)
    if objective == "bce":
        return entropy
    ranking = -functional.logsigmoid(logits[ranked[:, 1]] - logits[ranked[:, 0]])
    return 4 * entropy + (ranking.mean() if len(ranked) else logits.sum() * 0)


class AnswerTrainer(PlannedTrainer):
    """Trains on batches of :func:`collate`."""

    def __init__(self, *, objective: str, **options: Any) -> None:
        super().__init__(**options)
        self.objective: str = objective

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective of a batch."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits = outputs.logits.float().squeeze(-1)
        loss = objective_loss(logits, inputs["labels"], inputs["ranked"], objective=self.objective)
        return (loss, {"logits": logits}) if return_outputs else loss


def train_lora_detector(
    config: LoraDetectorConfig, *, resume: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Path:
    """Fine-tune a detector; returns the folder of the run, with the adapter, its card and its curves.

    :class:`~protector_guardrails.TransformersDetector` loads ``adapter`` in it with ``polarity="harm"``.

    Args:
        config: The recipe.
        resume: Go on from the newest checkpoint in ``config.output``; without it the checkpoints
            of an earlier run there are deleted.
        tell: Is told, in sentences, what was read.

    Raises:
        ConfigurationError: If a file is malformed or holds one class only, or the memory does not suffice.
        WeightsError: If the base cannot be had, or has no tokenizer.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    learnt, measured = _records(config, tell)
    base, tokenizer = find_base(config.base)
    encoder = TextEncoder(
        _fast(tokenizer, base.name), Template.parse(TEMPLATE), max_tokens=config.max_tokens, overlap=0
    )
    pad = padding_token(tokenizer, encoder)
    encode = answer_encoder(encoder, pad)

    torch.manual_seed(config.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        str(base.folder),
        num_labels=1,
        pad_token_id=pad,
        dtype=getattr(torch, config.base_dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    model = prepared(with_lora(model, config, task="SEQ_CLS"), config)
    plan = PlannedAnswers(learnt, encode, config, epochs=config.epochs)
    trainer = AnswerTrainer(
        objective=config.objective,
        model=model,
        args=training_arguments(
            config,
            items=len(plan),
            measured="eval_auroc" if measured else None,
            higher_is_better=True,
            loss_only=False,
        ),
        train_dataset=plan,
        eval_dataset=PlannedAnswers(measured, encode, config, epochs=0) if measured else None,
        data_collator=lambda items: collate(items, pad=pad),
        compute_metrics=_measured,
        callbacks=callbacks(config),
    )
    if trainer.is_world_process_zero():
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_json(
            config.output / "data.json",
            {"learnt": label_counts(learnt), "measured": label_counts(measured), "base_commit": base.commit},
        )
    history = run(trainer, config, resume=resume)
    declared = config.base if base.commit else str(base.folder.resolve())
    save_adapter(trainer, config.output / ADAPTER, base=declared, finish=lambda _: None)
    if trainer.is_world_process_zero():
        write_json(config.output / "history.json", history)
        curves = draw_curves(history, config.output / "curves.svg", epochs=config.epochs)
        card = lora_detector_card(config.output, curves=curves)
        (config.output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return config.output


def answer_encoder(encoder: TextEncoder, pad: int) -> Callable[[str, str], tuple[int, ...]]:
    """Token ids of a question and an answer; of a long answer the beginning."""

    def encode(question: str, answer: str) -> tuple[int, ...]:
        ids = encoder.encode(question, [answer])[0].ids
        while ids and ids[-1] == pad:  # some tokenizers make it of a text that spells it out
            ids = ids[:-1]
        return ids or (pad,)

    return encode


def padding_token(tokenizer: Any, encoder: TextEncoder) -> int:
    """A token to fill up batches with that no text ends in.

    transformers takes the score of the last token that is not this one. The padding token is often the one
    that ends a text, too; the score would then be taken one token too early.

    Raises:
        ConfigurationError: If there is none.
    """
    # A text can end in the token for unknown words, unless the tokenizer spells every word in bytes.
    spells_all = getattr(encoder.tokenizer.model, "unk_token", "?") in (None, "")
    ends = {*encoder.last[-1:], *(() if spells_all else (tokenizer.unk_token_id,))}
    for token in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token not in ends:
            return int(token)
    raise ConfigurationError(
        f"the tokenizer {type(tokenizer).__name__} has no special token that could fill up batches: give it a padding "
        "token that differs from the one that ends a text"
    )


def _fast(tokenizer: Any, name: str) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise WeightsError(f"the tokenizer of {name} has no fast form (tokenizer.json)")
    return backend


def _measured(prediction: Any) -> dict[str, float]:
    logits, labels = np.ravel(prediction.predictions), np.ravel(prediction.label_ids)
    return {"auroc": float(roc_auc_score(labels > 0.5, logits))}


def _records(
    config: LoraDetectorConfig, tell: Callable[[str], None]
) -> tuple[list[LabelledAnswers], list[LabelledAnswers]]:
    """What is learnt from, and single answers to measure on."""
    learnt = [record for path in config.train for record in _read(path, config, tell)]
    measured = [record for path in config.validation for record in _read(path, config, tell)]
    if config.objective == "bce+ranking":
        learnt = joined(learnt)
    if not config.validation:
        learnt, measured = split_by_question(learnt, held_out=config.held_out, seed=config.seed)
    if not _both_labels(learnt):
        raise ConfigurationError(
            "what is learnt from holds one class only: a detector needs harmful and harmless answers"
        )
    if measured and not _both_labels(measured):
        raise ConfigurationError(
            "what is measured on holds one class only: give --validation with both, or a larger --held-out"
        )
    if config.objective == "bce+ranking":
        pairs = sum(record.ranked is not None for record in learnt)
        tell(f"{pairs} of {len(learnt)} questions have a harmless and a harmful answer to rank")
        if not pairs:
            raise ConfigurationError(
                "objective bce+ranking: no question has both a harmless and a harmful answer; use objective bce"
            )
    single = [
        LabelledAnswers(record.question, (answer,), record.source, record.license)
        for record in measured
        for answer in record.answers
    ]
    return learnt, single


def _both_labels(records: Sequence[LabelledAnswers]) -> bool:
    return len({answer.harmful for record in records for answer in record.answers}) == 2


def _read(path: Path, config: LoraDetectorConfig, tell: Callable[[str], None]) -> list[LabelledAnswers]:
    records, form = read_labelled(path, form=config.format, columns=config.columns)
    tell(f"{path}: {len(records)} records in the form {form}")
    return records[: config.limit]
