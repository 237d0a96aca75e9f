"""Miniatures of the paper's training: a language model learns to tell harm, and what it learnt can be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_causal import exchanges, preferences, write_base, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from protector_guardrails import Exchange
from protector_guardrails.detectors.templates import Template, TextEncoder
from protector_guardrails.detectors.transformers import TransformersDetector
from protector_guardrails.errors import ConfigurationError, WeightsError
from protector_guardrails.models import base_weights
from protector_guardrails.models.base_weights import SMOLLM2, FoundBase
from protector_guardrails.training import lora_detector
from protector_guardrails.training.lora_detector import (
    AnswerTrainer,
    LoraDetectorConfig,
    answer_encoder,
    collate,
    objective_loss,
    padding_token,
    train_lora_detector,
)
from protector_guardrails.training.runs import find_base


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Callable[..., LoraDetectorConfig]:
    def made(**changes: Any) -> LoraDetectorConfig:
        fields: dict[str, Any] = {
            "train": (write_rows(tmp_path / "train.jsonl", exchanges(64, seed=1)),),
            "base": str(base),
            "output": tmp_path / "run",
            "lora_rank": 4,
            "learning_rate": 1e-2,
            "epochs": 3,
            "save_steps": 10,
            "held_out": 0.2,
            "max_tokens": 64,
            "bf16": False,
            "threads": 1,
        }
        return LoraDetectorConfig(**(fields | changes))

    return made


def history(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "history.json").read_text())


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


# Learning --------------------------------------------------------------------------------


def test_it_learns_and_the_detector_gives_the_probabilities_of_training(
    recipe: Callable[..., LoraDetectorConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    save = lora_detector.save_adapter
    monkeypatch.setattr(
        lora_detector, "save_adapter", lambda trainer, *a, **k: trained.append(trainer) or save(trainer, *a, **k)
    )
    told: list[str] = []
    config = recipe()
    run = train_lora_detector(config, tell=told.append)
    assert told == [f"{config.train[0]}: 64 records in the form own"]
    losses = [entry["loss"] for entry in history(run) if "loss" in entry]
    assert losses[-1] < 0.2 * losses[0]
    assert max(entry.get("eval_auroc", 0) for entry in history(run)) > 0.95

    detector = TransformersDetector(
        run / "adapter",
        base=config.base,
        polarity="harm",
        template="question+response",
        merge=False,
        max_tokens=64,
        overlap=8,
    )
    model = trained[0].model.eval()
    scores = []
    for row in exchanges(10, seed=9):
        text = f"Question: {row['question']}\n\nAnswer: {row['response']}"
        ids = AutoTokenizer.from_pretrained(config.base)(text, return_tensors="pt").input_ids
        [verdict] = detector.detect([Exchange(question=row["question"], response=row["response"])])
        with torch.inference_mode():
            assert verdict.score == pytest.approx(torch.sigmoid(model(ids).logits).item(), abs=1e-6)
        assert verdict.harmful is row["harmful"]
        scores.append(verdict.score)
    assert max(scores) - min(scores) > 0.5


def test_what_is_written_is_what_others_load(recipe: Callable[..., LoraDetectorConfig]) -> None:
    config = recipe(epochs=1)
    run = train_lora_detector(config)
    declared = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert declared["task_type"] == "SEQ_CLS" and set(declared["target_modules"]) == {"q_proj", "v_proj"}
    assert declared["base_model_name_or_path"] == config.base
    names = adapter(run)
    assert any(name.endswith("score.weight") for name in names)
    assert all("lora_" in name or "score" in name for name in names)
    assert {value.dtype for value in names.values()} == {torch.float32}
    assert sorted(path.name for path in (run / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    card = (run / "MODEL_CARD.md").read_text()
    assert "P(harm)" in card and "| train | not stated |" in card and "| lora rank | 4 |" in card
    assert "held-out AUROC" in card and "![loss and AUROC by epoch](curves.svg)" in card
    assert (run / "curves.svg").read_text().startswith("<?xml")
    assert str(Path(config.base).parent) not in card and str(run.parent) not in card, "a path of this machine"


def test_pairs_are_ranked_and_rows_of_both_labels_are_learnt(
    recipe: Callable[..., LoraDetectorConfig], tmp_path: Path
) -> None:
    told: list[str] = []
    rows = write_rows(tmp_path / "pku.jsonl", preferences(48, seed=2))
    run = train_lora_detector(recipe(train=(rows,), objective="bce+ranking", batch_size=4), tell=told.append)
    assert told[0].endswith("48 records in the form pku-saferlhf")
    assert told[1].endswith("questions have a harmless and a harmful answer to rank")
    losses = [entry["loss"] for entry in history(run) if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert max(entry.get("eval_auroc", 0) for entry in history(run)) > 0.9


# The objective ---------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8), st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_objectives_are_those_of_the_paper_and_of_its_code(pairs: Any) -> None:
    """Computed once more as the reference does: by pairs, and for logits of safety."""
    softplus = lambda x: np.logaddexp(0, x)  # noqa: E731
    safe_0, safe_1 = (-np.array([pair[i] for pair in pairs]) for i in (0, 1))
    is_safe_0, is_safe_1 = (np.array([not pair[i] for pair in pairs], float) for i in (2, 3))
    cross_0 = np.mean(softplus(-safe_0) * is_safe_0 + softplus(safe_0) * (1 - is_safe_0))
    cross_1 = np.mean(softplus(-safe_1) * is_safe_1 + softplus(safe_1) * (1 - is_safe_1))
    different = [i for i in range(len(pairs)) if pairs[i][2] != pairs[i][3]]
    gap = [(safe_0[i] - safe_1[i]) * (1 if is_safe_0[i] else -1) for i in different]
    ranking = float(np.mean([softplus(-x) for x in gap])) if gap else 0.0

    logits = torch.tensor([value for pair in pairs for value in pair[:2]], dtype=torch.float64)
    labels = torch.tensor([float(value) for pair in pairs for value in pair[2:]], dtype=torch.float64)
    ranked = torch.tensor([[2 * i + pairs[i][2], 2 * i + pairs[i][3]] for i in different]).reshape(-1, 2).long()
    bce = objective_loss(logits, labels, ranked, objective="bce").item()
    both = objective_loss(logits, labels, ranked, objective="bce+ranking").item()
    assert bce == pytest.approx((cross_0 + cross_1) / 2, rel=1e-6, abs=1e-9)
    assert both == pytest.approx(2 * (cross_0 + cross_1) + ranking, rel=1e-6, abs=1e-9)


def test_a_batch_keeps_pairs_together() -> None:
    items = [
        {"ids": [(1, 5)], "labels": [1.0], "ranked": None},
        {"ids": [(1, 6, 7), (1, 8)], "labels": [1.0, 0.0], "ranked": (1, 0)},
    ]
    batch = collate(items, pad=9)
    assert batch["input_ids"].tolist() == [[1, 5, 9], [1, 6, 7], [1, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [1.0, 1.0, 0.0] and batch["ranked"].tolist() == [[2, 1]]
    assert collate(items[:1], pad=9)["ranked"].shape == (0, 2)


# What is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize(
    ("ends", "pad"), [(False, None), (False, "</s>"), (True, None), (True, "</s>"), (False, "<unk>")]
)
def test_the_score_is_that_of_the_last_real_token_whatever_fills_the_batch(
    tmp_path: Path, kind: str, ends: bool, pad: str | None
) -> None:
    base = write_base(tmp_path / "base", kind=kind, ends=ends, pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoder = TextEncoder(tokenizer.backend_tokenizer, Template.parse(lora_detector.TEMPLATE), max_tokens=64, overlap=0)
    filler = padding_token(tokenizer, encoder)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=filler).eval()
    texts = ["the cat", "a", "the river sings slowly </s>", "ends with what no tokenizer knows: \u4e2d", ""]
    encode = answer_encoder(encoder, filler)
    ids = [encode("Where?", text) for text in texts]
    batch = collate([{"ids": [one], "labels": [0.0], "ranked": None} for one in ids], pad=filler)
    with torch.inference_mode():
        together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for one, logit in zip(ids, together, strict=True):
            hidden = model.model(torch.tensor([one])).last_hidden_state[0, -1]
            assert logit.item() == pytest.approx(model.score(hidden).item(), abs=1e-4)


def test_long_answers_are_shortened_and_never_the_template(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoder = TextEncoder(tokenizer.backend_tokenizer, Template.parse(lora_detector.TEMPLATE), max_tokens=60, overlap=0)
    ids = encoder.encode("Where is the cat?", ["the lamp walks over " * 50])[0].ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) == 60
    assert text.startswith("Question: Where is the cat?\n\nAnswer: the lamp walks over the lamp")
    assert "Answer: the lamp" in tokenizer.decode(encoder.encode("Where? " * 99, ["the lamp"])[0].ids)


def test_questions_are_left_out_as_often_as_asked_and_never_when_measuring(
    recipe: Callable[..., LoraDetectorConfig],
) -> None:
    config = recipe(drop_question=0.5, epochs=10)
    records, _ = lora_detector.read_labelled(config.train[0])
    shown: list[str] = []
    encode = lambda question, answer: shown.append(question) or (1, 2)  # noqa: E731
    plan = lora_detector.PlannedAnswers(records, encode, config, epochs=10)
    first = [plan[i] and shown[-1] for i in range(len(plan))]
    assert 0.4 < first.count("") / len(first) < 0.6
    assert [plan[i] and shown[-1] for i in range(len(plan))] == first, "a resumed run would see something else"
    measured = lora_detector.PlannedAnswers(records, encode, config, epochs=0)
    assert all(measured[i] and shown[-1] for i in range(len(measured)))


# Interrupting, stopping, choosing ---------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    calls = [0]
    step = AnswerTrainer.training_step

    def stopping(self: Any, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    monkeypatch.setattr(AnswerTrainer, "training_step", stopping)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    recipe: Callable[..., LoraDetectorConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"save_steps": 4, "epochs": 2, "drop_question": 0.3}
    whole = train_lora_detector(recipe(output=tmp_path / "whole", **changes))
    config = recipe(**changes)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, after=7)
        train_lora_detector(config)
    assert not (config.output / "adapter").exists()
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["checkpoint-4"]
    torn = config.output / "checkpoints" / "checkpoint-6"  # as if it had been written when the power went
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"")
    resumed = train_lora_detector(config, resume=True)
    expected, got = adapter(whole), adapter(resumed)
    assert expected.keys() == got.keys()
    assert max((expected[name] - got[name]).abs().max().item() for name in expected) < 1e-6
    assert any(value.abs().max() > 0 for name, value in got.items() if "lora_B" in name)
    assert [entry["step"] for entry in history(resumed)] == [entry["step"] for entry in history(whole)]


def test_the_best_checkpoint_is_kept_and_patience_stops_the_run(
    recipe: Callable[..., LoraDetectorConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.6, 0.9, 0.8, 0.7, 0.95])
    monkeypatch.setattr(lora_detector, "_measured", lambda _: {"auroc": next(figures)})
    run = train_lora_detector(recipe(save_steps=2, patience=2))
    measured = [entry["eval_auroc"] for entry in history(run) if "eval_auroc" in entry]
    assert measured == [0.6, 0.9, 0.8, 0.7]
    best = load_file(run / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")
    assert all(torch.equal(value, adapter(run)[name]) for name, value in best.items())


def test_a_resumed_run_takes_new_intervals(
    recipe: Callable[..., LoraDetectorConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, after=5)
        train_lora_detector(recipe(save_steps=4, epochs=2))
    run = train_lora_detector(recipe(save_steps=50, epochs=2), resume=True)
    measured = [entry["step"] for entry in history(run) if "eval_auroc" in entry]
    assert measured[0] == 4 and len(measured) == 2, "the last step alone is measured after it"


def test_accumulated_batches_count_as_one(
    recipe: Callable[..., LoraDetectorConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lora_detector, "bucketed", lambda items, *_, **__: items)
    norms = []
    for size, steps in ((8, 1), (4, 2)):
        config = recipe(
            output=tmp_path / f"{size}",
            batch_size=size,
            gradient_accumulation_steps=steps,
            gradient_checkpointing=steps == 2,
            lora_dropout=0.0,
            held_out=0.0,
            validation=recipe().train,
            epochs=2,
        )
        norms.append([entry["grad_norm"] for entry in history(train_lora_detector(config)) if "grad_norm" in entry])
    assert norms[0] and norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_nothing_held_out_keeps_the_last_weights(recipe: Callable[..., LoraDetectorConfig]) -> None:
    run = train_lora_detector(recipe(held_out=0.0, epochs=1))
    assert not any("eval_auroc" in entry for entry in history(run))
    assert "Nothing was measured." in (run / "MODEL_CARD.md").read_text()
    [last] = (run / "checkpoints").glob("checkpoint-8")
    kept = load_file(last / "adapter_model.safetensors")
    assert all(torch.equal(value, adapter(run)[name]) for name, value in kept.items())
    with pytest.raises(ConfigurationError, match="patience needs something to measure"):
        train_lora_detector(recipe(held_out=0.0, patience=1))


# Errors ----------------------------------------------------------------------------------


def test_out_of_memory_names_what_helps(
    recipe: Callable[..., LoraDetectorConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(AnswerTrainer, "compute_loss", full)
    with pytest.raises(ConfigurationError, match="batch_size 4 and gradient_accumulation_steps 2"):
        train_lora_detector(recipe(batch_size=8))


def test_one_class_only_is_refused(recipe: Callable[..., LoraDetectorConfig], tmp_path: Path) -> None:
    safe = write_rows(tmp_path / "safe.jsonl", [row for row in exchanges(20, seed=1) if not row["harmful"]])
    with pytest.raises(ConfigurationError, match="learnt from holds one class only"):
        train_lora_detector(recipe(train=(safe,)))
    with pytest.raises(ConfigurationError, match=r"measured on holds one class only.*--validation"):
        train_lora_detector(recipe(validation=(safe,)))
    with pytest.raises(ConfigurationError, match="no question has both"):
        train_lora_detector(recipe(objective="bce+ranking"))


def test_a_base_without_what_is_needed_is_refused(recipe: Callable[..., LoraDetectorConfig], tmp_path: Path) -> None:
    bare = write_base(tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    with pytest.raises(WeightsError, match="bare has no tokenizer"):
        train_lora_detector(recipe(base=str(bare)))
    with pytest.raises(WeightsError, match="there is no folder"):
        train_lora_detector(recipe(base=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigurationError, match="no layers called query: name its own in lora_targets"):
        train_lora_detector(recipe(lora_targets=("query",)))
    with pytest.raises(ConfigurationError, match="lora_last_layers is 99, and the base has 2 layers"):
        train_lora_detector(recipe(lora_last_layers=99))


def test_the_last_layers_alone_can_be_adapted(recipe: Callable[..., LoraDetectorConfig]) -> None:
    learnt = adapter(train_lora_detector(recipe(epochs=1, lora_last_layers=1)))
    adapted = [name for name in learnt if ".lora_" in name]
    assert adapted and all(".layers.1." in name for name in adapted)


def test_a_base_that_a_package_mirror_has_is_found_without_a_hub(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_weights, "find_base", lambda known: FoundBase(base, f"a test, for {known.repository}"))
    found, tokenizer = find_base(SMOLLM2.repository)
    assert (found.name, found.folder) == (SMOLLM2.repository, base) and found.weights and tokenizer.eos_token


def test_an_adapter_is_no_base(recipe: Callable[..., LoraDetectorConfig]) -> None:
    run = train_lora_detector(recipe(epochs=1))
    with pytest.raises(WeightsError, match="is itself an adapter"):
        train_lora_detector(recipe(base=str(run / "adapter")))


def test_the_learning_rate_falls_in_a_line(recipe: Callable[..., LoraDetectorConfig]) -> None:
    run = train_lora_detector(recipe(held_out=0.0, epochs=5))
    rates = [entry["learning_rate"] for entry in history(run) if "learning_rate" in entry]
    steps = [a - b for a, b in pairwise(rates)]
    assert len(rates) >= 3 and steps[0] > 0 and steps == pytest.approx([steps[0]] * len(steps))
