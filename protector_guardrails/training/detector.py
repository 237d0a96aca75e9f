"""Fine-tuning the embedded harm detector.

The work is done by ``transformers.Trainer``: checkpoints, resuming, progress,
mixed precision come from there. This file adds what is special here: balanced
epochs, dropping the question and the description at random, window sampling, and
metrics per source after each epoch. One device is used.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from protector_guardrails.detectors.encoding import PairEncoder, Window, pad_windows
from protector_guardrails.training.augmentation import inserted_passages, refusals_that_give_in, roughened
from protector_guardrails.training.averaging import AveragedWeights, average_weights
from protector_guardrails.training.categories import CATEGORIES, hazard
from protector_guardrails.training.cleaning import without_duplicates
from protector_guardrails.training.data import LabelledExchange, balanced_epoch, read_exchanges, split_by_question
from protector_guardrails.training.model import NO_CATEGORY, HarmClassifier
from protector_guardrails.training.readings import labelled, reread
from protector_guardrails.types import question_with_images

EVALUATION_BATCH = 64


class DetectorTrainingConfig(BaseModel):
    """Everything that decides what a training run gives, stored beside its result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[Path, ...] = Field(min_length=1)
    """Labelled exchanges to learn from; of files of pairs, the answers that were read (see ``readings``)."""
    validation: tuple[Path, ...] = ()
    """Other sources, never learnt from: model choice, calibration, thresholds."""
    output: Path = Path("runs/detector")
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    warmup_ratio: float = Field(0.06, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    seed: int = 13
    seeds: tuple[int, ...] = ()
    """Train once with each of these and keep the mean of the weights (see ``training.seeds``); empty: with ``seed``."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the training questions kept for per-source metrics."""
    drop_question: float = Field(0.4, ge=0, le=1)
    """How often an exchange is shown without its question and description."""
    drop_description: float = Field(0.25, ge=0, le=1)
    """How often a question is shown without the description of its images."""
    max_windows: int = Field(2, ge=1)
    """Windows of one response per step: the first, and others at random."""
    max_tokens: int = 192
    question_tokens: int = 64
    overlap: int = 32
    initial: Path | None = None
    """Weights of an earlier run (``model.safetensors``) to go on from; None: the base encoder and a new head."""
    cap: int = 1500
    source_caps: dict[str, int] = {}
    """Rows of each label in an epoch for sources named here, in place of ``cap``."""
    source_repeats: dict[str, int] = {}
    """How often the rows of sources named here come in an epoch."""
    insertions: int = Field(0, ge=0)
    """Harmless answers per epoch that get a harmful and, once more, a harmless passage put into them."""
    gives_in: int = Field(0, ge=0)
    """Harmful answers per epoch that get a refusal put before them."""
    rough: float = Field(0.0, ge=0, le=1)
    """How often a response is shown in one case or with slips of the keyboard."""
    frozen_layers: int = Field(0, ge=0)
    """Lower layers, and with them the embeddings, that stay as they are."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of the running mean of the weights that is kept in the end; 0: the last weights."""
    blend: Path | None = None
    """Weights of an earlier run that take a share of those that are kept (WiSE-FT, arXiv 2109.01903)."""
    blend_share: float = Field(0.0, ge=0, lt=1)
    """That share."""
    category_weight: float = Field(0.2, ge=0)
    """Weight of the categories in the loss."""
    answers_per_question: int = 8
    max_repeats: int = 4
    save_steps: int = 200
    limit: int | None = None
    """Use only so many rows of every file: for trying the recipe out."""
    bf16: bool | None = None
    """bfloat16 autocast; None: where the hardware is faster with it."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""

    @model_validator(mode="after")
    def _blend_whole(self) -> Self:
        if (self.blend is None) != (self.blend_share == 0):
            raise ValueError("blend and blend_share go together: weights of an earlier run, and their share")
        return self

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


class PlannedExchanges(Dataset[list[Window]]):
    """The exchanges of all epochs in the order in which they are trained on.

    What is dropped and which windows are taken is drawn from the seed, the epoch
    and the position, so an interrupted run goes on exactly where it stopped.
    """

    def __init__(self, rows: Sequence[LabelledExchange], encoder: PairEncoder, config: DetectorTrainingConfig) -> None:
        self.encoder, self.config = encoder, config
        self.plan: list[tuple[int, LabelledExchange]] = []
        self.epoch_ends: list[int] = []
        for epoch in range(config.epochs):
            chosen = balanced_epoch(
                rows,
                seed=config.seed,
                epoch=epoch,
                cap=config.cap,
                source_caps=config.source_caps,
                source_repeats=config.source_repeats,
                answers_per_question=config.answers_per_question,
                max_repeats=config.max_repeats,
            )
            rng = random.Random(f"{config.seed}:{epoch}:insertions")
            chosen += inserted_passages(rows, pairs=config.insertions, rng=rng)
            chosen += refusals_that_give_in(rows, count=config.gives_in, rng=rng)
            rng.shuffle(chosen)
            self.plan.extend((epoch, row) for row in bucketed(chosen, config.batch_size, seed=config.seed + epoch))
            self.epoch_ends.append(len(self.plan))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Any:
        _, row = self.plan[index]
        config, rng = self.config, random.Random(f"{self.config.seed}:{index}")
        question: str | None = None
        if rng.random() >= config.drop_question:
            shows_image = rng.random() >= config.drop_description
            question = question_with_images(row.question, [row.description] if row.description and shows_image else [])
        response = row.response
        if config.rough and rng.random() < config.rough:
            response = roughened(response, rng)
        windows = self.encoder.encode([(question, [response])])[0]
        if len(windows) > config.max_windows:
            windows = [windows[0], *rng.sample(windows[1:], config.max_windows - 1)]
        return {"windows": windows, "label": float(row.harmful), "category": category_number(row)}


def category_number(row: LabelledExchange) -> int:
    """Place of a row's hazard in ``CATEGORIES``, or :data:`NO_CATEGORY`."""
    found = hazard(row.category, row.question)
    return NO_CATEGORY if found is None else CATEGORIES.index(found)


def bucketed(rows: Sequence[LabelledExchange], batch_size: int, *, seed: int) -> list[LabelledExchange]:
    """Order rows so that a batch holds responses of like length, and whole batches are shuffled.

    A full multiple of ``batch_size`` is returned: the few rows too many are left to the next epoch,
    and rows too few for one batch are repeated to fill it.
    """
    rng = random.Random(seed)
    if len(rows) < batch_size:
        usable = list(islice(cycle(rows), batch_size))
    else:
        usable = list(rows[: len(rows) - len(rows) % batch_size])
    batches: list[list[LabelledExchange]] = []
    for start in range(0, len(usable), batch_size * 50):
        block = sorted(usable[start : start + batch_size * 50], key=lambda row: len(row.response))
        batches.extend(block[i : i + batch_size] for i in range(0, len(block), batch_size))
    rng.shuffle(batches)
    return [row for batch in batches for row in batch]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Flatten the windows of several exchanges into one padded batch."""
    windows = [window for item in items for window in item["windows"]]
    owner = [index for index, item in enumerate(items) for _ in item["windows"]]
    arrays = pad_windows(windows)
    return {
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "owner": torch.tensor(owner),
        "labels": torch.tensor([item["label"] for item in items], dtype=torch.float32),
        "categories": torch.tensor([item.get("category", NO_CATEGORY) for item in items]),
    }


class ExchangeTrainer(Trainer):
    """A Trainer that keeps the planned order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(dataset)


def predict(
    model: HarmClassifier, encoder: PairEncoder, rows: Sequence[LabelledExchange], *, mode: str, bf16: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Uncalibrated logits of harm, one per row.

    Args:
        model: The network.
        encoder: The same encoder as in training.
        rows: What to judge.
        mode: ``"full"`` (question and description), ``"question"`` or ``"response"``.
        bf16: Run under bfloat16 autocast.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].response))
    result = np.empty(len(rows))
    model.eval()
    for start in range(0, len(order), EVALUATION_BATCH):
        indices = order[start : start + EVALUATION_BATCH]
        windows = encoder.encode([(judged_question(rows[i], mode), [rows[i].response]) for i in indices])
        batch = collate([{"windows": w, "label": 0.0} for w in windows])
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(**{name: tensor.to(device) for name, tensor in batch.items()})["logits"]
        result[indices] = logits.float().cpu().numpy()
    return result


def judged_question(row: LabelledExchange, mode: str) -> str | None:
    """The question as the detector is shown it in one of the three modes of use."""
    if mode == "response":
        return None
    return question_with_images(row.question, [row.description] if row.description and mode == "full" else [])


def source_metrics(rows: Sequence[LabelledExchange], logits: np.ndarray[Any, Any]) -> dict[str, dict[str, float]]:
    """AUROC and the share flagged at 0.5 among harmful and harmless rows, per source."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_source[row.source].append(index)
    metrics: dict[str, dict[str, float]] = {}
    for source, indices in sorted(by_source.items()):
        labels = np.array([rows[i].harmful for i in indices])
        scores = logits[indices]
        entry: dict[str, float] = {"rows": len(indices), "harmful": int(labels.sum())}
        if 0 < labels.sum() < len(labels):
            entry["auroc"] = float(roc_auc_score(labels, scores))
        if (~labels).any():
            entry["false_positive_rate"] = float((scores[~labels] >= 0).mean())
        if labels.any():
            entry["true_positive_rate"] = float((scores[labels] >= 0).mean())
        metrics[source] = entry
    return metrics


class EpochReport(TrainerCallback):
    """Writes metrics per source, and the weights, when an epoch of the plan ends."""

    def __init__(
        self,
        *,
        encoder: PairEncoder,
        ends: Sequence[int],
        held: Sequence[LabelledExchange],
        validation: Sequence[LabelledExchange],
        output: Path,
        bf16: bool,
    ) -> None:
        self.encoder, self.ends, self.held, self.validation = encoder, list(ends), held, validation
        self.output, self.bf16 = output, bf16

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer hook."""
        if state.global_step in self.ends:
            self.report(kwargs["model"], self.ends.index(state.global_step) + 1)
            kwargs["model"].train()

    def report(self, model: HarmClassifier, epoch: int) -> None:
        """Measure, print and store the state after ``epoch``."""
        report: dict[str, Any] = {"epoch": epoch, "held_out": {}, "validation": {}}
        for mode in ("full", "response"):
            for name, rows in (("held_out", self.held), ("validation", self.validation)):
                if rows:
                    report[name][mode] = source_metrics(
                        rows, predict(model, self.encoder, rows, mode=mode, bf16=self.bf16)
                    )
        path = self.output / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # A run that goes on from a checkpoint before the last report comes by here twice.
        earlier = [line for line in lines if json.loads(line)["epoch"] < epoch]
        path.write_text("".join(f"{line}\n" for line in [*earlier, json.dumps(report)]), encoding="utf-8")
        for mode, metrics in report["validation"].items():
            for source, entry in metrics.items():
                print(
                    f"epoch {epoch} {mode:8s} {source:18s} " + " ".join(f"{k}={v:.3f}" for k, v in entry.items()),
                    flush=True,
                )
        save_weights(model, self.output / f"epoch-{epoch}.safetensors")


def save_weights(model: HarmClassifier, path: Path) -> None:
    """Write the network's weights as safetensors, whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, str(partial))
    partial.replace(path)


def prefers_bf16() -> bool:
    """Whether bfloat16 autocast is faster here: recent GPUs, and CPUs with AVX-512 BF16 or AMX."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))
    except OSError:
        return False


def train_detector(config: DetectorTrainingConfig, *, base: Path, resume: bool = False) -> Path:
    """Fine-tune a detector; returns the folder with weights, metrics and configuration.

    Args:
        config: The recipe.
        base: Folder with ``model.safetensors``, ``config.json`` and ``tokenizer.json``
            of a BERT-style encoder.
        resume: Go on from the newest checkpoint in ``config.output``; without it the
            checkpoints and metrics of an earlier run there are deleted.

    Raises:
        ValueError: If the training file has one class only, or is malformed, or the recipe has several seeds.
    """
    if config.seeds:
        raise ValueError("this recipe is trained with several seeds: call training.seeds.train_with_seeds")
    if config.threads:
        torch.set_num_threads(config.threads)
    bf16 = prefers_bf16() if config.bf16 is None else config.bf16
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "config.json").write_text(config.model_dump_json(indent=2))
    rows = training_rows(config)
    validation = [row for path in config.validation for row in read_exchanges(path)[: config.limit]]
    train_rows, held = split_by_question(rows, held_out=config.held_out, seed=config.seed)

    torch.manual_seed(config.seed)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.save(str(config.output / "tokenizer.json"))
    encoder = PairEncoder(
        tokenizer, max_tokens=config.max_tokens, question_tokens=config.question_tokens, overlap=config.overlap
    )
    model = HarmClassifier.from_base(base, categories=len(CATEGORIES), category_weight=config.category_weight)
    if config.initial is not None:
        model.load(config.initial)
    model.freeze_below(config.frozen_layers)
    data = PlannedExchanges(train_rows, encoder, config)
    print(
        f"{len(train_rows)} rows to train on, {len(held)} held out, {len(data)} exchanges in {config.epochs} epochs",
        flush=True,
    )

    arguments = TrainingArguments(
        output_dir=str(config.output / "checkpoints"),
        num_train_epochs=1,  # the plan already holds every epoch
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(config.warmup_ratio * len(data) / config.batch_size),
        weight_decay=config.weight_decay,
        bf16=bf16,
        seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=1,
        logging_steps=25,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # data parallelism cuts a batch by rows, and would part windows from their owners
    averaged = AveragedWeights(config.average)
    trainer = ExchangeTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        callbacks=[
            EpochReport(
                encoder=encoder,
                ends=[end // config.batch_size for end in data.epoch_ends],
                held=held,
                validation=validation,
                output=config.output,
                bf16=bf16,
            ),
            averaged,
        ],
    )
    checkpoints = config.output / "checkpoints"
    if not resume:
        # The Trainer goes by step numbers: it would keep an earlier run's later checkpoint and go on from that.
        shutil.rmtree(checkpoints, ignore_errors=True)
        for earlier in ("metrics.jsonl", "model.safetensors"):  # so that it is not taken for what this run made
            (config.output / earlier).unlink(missing_ok=True)
    trainer.train(resume_from_checkpoint=resume and any(checkpoints.glob("checkpoint-*")))
    if config.average:
        save_weights(model, config.output / "last.safetensors")
        averaged.apply(model)
    save_weights(model, config.output / "model.safetensors")
    blend(config)
    return config.output


def blend(config: DetectorTrainingConfig) -> None:
    """Give the earlier run that ``config`` names its share of a finished run's weights."""
    if config.blend is not None:
        kept = config.output / "model.safetensors"
        average_weights([kept, config.blend], kept, shares=[1 - config.blend_share, config.blend_share])


def training_rows(config: DetectorTrainingConfig) -> list[LabelledExchange]:
    """What a run learns from: rows of all files, relabelled where they were read, near-duplicates left out.

    Raises:
        ValueError: If there is one class only, or a file is malformed.
    """
    rows: list[LabelledExchange] = []
    for path in config.train:
        rows.extend(labelled(path)[: config.limit])
    rows = without_duplicates(reread(rows))
    if len({row.harmful for row in rows}) < 2:
        names = ", ".join(str(path) for path in config.train)
        raise ValueError(f"{names}: one class only; a detector needs harmful and harmless exchanges")
    return rows
