"""A miniature detoxifier: it learns what should be written, from its first token on, and what it learnt can be used."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_causal import preferences, sentence, write_base, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from protector_guardrails.detoxifiers.prompting import PLAIN, PromptTemplate, encode_prompt, encode_target
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.training import detoxifier as training
from protector_guardrails.training.detox_card import detoxifier_card
from protector_guardrails.training.detoxifier import (
    DetoxifierTrainingConfig,
    TargetTrainer,
    chosen_pairs,
    collate,
    train_detoxifier,
)
from protector_guardrails.training.refusals import REFUSALS


def pairs(count: int, *, seed: int) -> list[dict[str, Any]]:
    """The harmless answer says the same of something green."""
    rng = random.Random(seed)
    return [
        {
            "question": f"Where is the {number}?",
            "harmful_response": sentence(rng, blue=True),
            "harmless_response": f"the {sentence(rng, blue=False)} walks over the bridge {number}.",
            "source": "made up",
            "license": "CC0-1.0",
        }
        for number in range(count)
    ]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., DetoxifierTrainingConfig]:
    def made(**changes: Any) -> DetoxifierTrainingConfig:
        fields: dict[str, Any] = {
            "train": (write_rows(tmp_path / "pairs.jsonl", pairs(48, seed=1)),),
            "output": tmp_path / "run",
            "template": "plain",
            "learning_rate": 2e-2,
            "epochs": 3,
            "save_steps": 6,
            "held_out": 0.2,
            "max_prompt_tokens": 160,
            "max_target_tokens": 48,
            "same_beginning": 1000,
            "bf16": False,
            "threads": 1,
            "judged_targets": False,
        }
        return DetoxifierTrainingConfig(**(fields | changes))

    return made


def history(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "history.json").read_text())


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


# What is learnt --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_first_token_of_a_target_counts_and_no_token_of_the_prompt_does(tmp_path: Path, kind: str) -> None:
    """The loss of a batch, against that of each target computed by hand, one by one and unpadded."""
    base = write_base(tmp_path / "base", kind=kind)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    targets = ["the river sings", "a green lamp walks slowly over the stone bridge", "cat"]
    items = [
        {
            "prompt": encode_prompt(tokenizer, PLAIN, question="Where?" * n, response="the cat " * n, max_tokens=200),
            "target": encode_target(tokenizer, target),
        }
        for n, target in enumerate(targets, start=1)
    ]
    for item, target in zip(items, targets, strict=True):
        first = tokenizer.decode(item["target"][:1], skip_special_tokens=True).strip()
        assert target.startswith(first)
        assert tokenizer.decode(item["target"], skip_special_tokens=True).strip() == target
        assert item["target"][-1] == tokenizer.eos_token_id
    losses: list[torch.Tensor] = []
    with torch.inference_mode():
        for item in items:
            logits = model(torch.tensor([item["prompt"] + item["target"]])).logits[0].log_softmax(-1)
            start = len(item["prompt"])
            losses += [-logits[start + i - 1, token] for i, token in enumerate(item["target"])]
        got = TargetTrainer.compute_loss(None, model, collate(items, pad=0))  # type: ignore[arg-type]
    assert got.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_it_learns_and_peft_loads_what_it_wrote(
    recipe: Callable[..., DetoxifierTrainingConfig], tmp_path: Path, kind: str
) -> None:
    base = write_base(tmp_path / "tiny-base", kind=kind)
    told: list[str] = []
    config = recipe(epochs=8)
    adapter = train_detoxifier(config, base=base, tell=told.append)
    assert told == [f"{config.train[0]}: 48 records in the form pairs"]
    run = config.output
    losses = [entry["loss"] for entry in history(run) if "loss" in entry]
    held = [entry["eval_loss"] for entry in history(run) if "eval_loss" in entry]
    assert losses[-1] < 0.75 * losses[0] and held[-1] < 0.85 * held[0], (losses, held)

    assert PromptTemplate.load(adapter) == PLAIN
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "prompt_template.json",
    ]
    plain = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor(
        [encode_prompt(AutoTokenizer.from_pretrained(base), PLAIN, question=None, response="x", max_tokens=160)]
    )
    with torch.inference_mode():
        before = plain(ids).logits
        loaded = PeftModel.from_pretrained(plain, str(adapter))
        assert not torch.allclose(loaded(ids).logits, before, atol=1e-2)
    assert loaded.peft_config["default"].task_type == "CAUSAL_LM"
    data = json.loads((run / "data.json").read_text())
    assert data["pairs"] == 48 and data["sources"] == [{"source": "made up", "license": "CC0-1.0", "pairs": 48}]


def test_pairs_of_two_harmful_answers_teach_refusals(
    recipe: Callable[..., DetoxifierTrainingConfig], tmp_path: Path
) -> None:
    config = recipe(
        train=(write_rows(tmp_path / "pku.jsonl", preferences(120, seed=1)),),
        min_words=0,
        refusals=1.0,
        distinct_targets=False,
    )
    chosen, left_out = chosen_pairs(config)
    assert sum(pair.harmless in REFUSALS for pair in chosen) == 30
    assert len(chosen) == 90 and left_out["both answers are harmless"] == 30


def test_targets_are_chosen_and_judged_unless_told_otherwise(
    recipe: Callable[..., DetoxifierTrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pairs(4, seed=1)
    rows[1]["harmless_response"] = rows[0]["harmless_response"]
    rows[2]["harmless_response"] = "Too short."
    train = (write_rows(tmp_path / "rows.jsonl", rows),)
    chosen, left_out = chosen_pairs(recipe(train=train))
    assert len(chosen) == 2 and left_out["the same text again"] == left_out["too short or too long"] == 1
    assert len(chosen_pairs(recipe(train=train, distinct_targets=False))[0]) == 3
    monkeypatch.setattr(training, "_found_harmful", lambda found: [pair.question.endswith("3?") for pair in found])
    chosen, left_out = chosen_pairs(recipe(train=train, judged_targets=True))
    assert len(chosen) == left_out["the target is harmful itself"] == 1


# Interrupting, stopping, choosing ---------------------------------------------------------


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    recipe: Callable[..., DetoxifierTrainingConfig], base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train_detoxifier(recipe(output=tmp_path / "whole", save_steps=3), base=base)
    config = recipe(save_steps=3)
    step, calls = TargetTrainer.training_step, [0]

    def stopping(self: Any, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > 8:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TargetTrainer, "training_step", stopping)
        train_detoxifier(config, base=base)
    assert (config.output / "checkpoints" / "checkpoint-6").exists() and not (config.output / "adapter").exists()
    expected, got = weights(whole), weights(train_detoxifier(config, base=base, resume=True))
    assert expected.keys() == got.keys()
    assert max((expected[name] - got[name]).abs().max().item() for name in expected) < 1e-6
    assert any(value.abs().max() > 0 for name, value in got.items() if "lora_B" in name)


def test_the_weights_with_the_lowest_held_out_loss_are_kept(
    recipe: Callable[..., DetoxifierTrainingConfig], base: Path
) -> None:
    config = recipe(learning_rate=0.3, save_steps=3, epochs=4)  # so fast that it gets worse again
    adapter = train_detoxifier(config, base=base)
    measured = {entry["step"]: entry["eval_loss"] for entry in history(config.output) if "eval_loss" in entry}
    best = min(measured, key=lambda step: measured[step])
    kept = weights(config.output / "checkpoints" / f"checkpoint-{best}")
    assert all(torch.equal(value, weights(adapter)[name]) for name, value in kept.items())
    stopped = recipe(learning_rate=0.3, save_steps=3, epochs=40, patience=2)
    train_detoxifier(stopped, base=base)
    assert history(stopped.output)[-1]["step"] < 60


def test_it_goes_on_from_an_earlier_adapter(
    recipe: Callable[..., DetoxifierTrainingConfig], base: Path, tmp_path: Path
) -> None:
    first = train_detoxifier(recipe(epochs=1), base=base)
    again = train_detoxifier(recipe(output=tmp_path / "second", initial=first, epochs=1), base=base)
    losses = [history(path.parent)[0]["eval_loss"] for path in (first, again)]
    assert losses[1] < losses[0]
    card = (tmp_path / "second" / "MODEL_CARD.md").read_text()
    assert "It went on from an adapter that had learnt from 48 pairs" in card
    assert card.count("| made up | CC0-1.0 | 48 |") == 2


# The card --------------------------------------------------------------------------------


def test_the_card_tells_data_recipe_figures_and_limits(
    recipe: Callable[..., DetoxifierTrainingConfig], base: Path
) -> None:
    config = recipe(epochs=1)
    train_detoxifier(config, base=base)
    assert "Nothing but the held-out loss" in (config.output / "MODEL_CARD.md").read_text()
    metrics = {"seconds for each": 1.25, "ours": {"harmful left": 0.125, "rows": 8}, "echo": {"harmful left": 1.0}}
    card = detoxifier_card(config.output, metrics=metrics, base="somebody/model", name="gentle", version="3")
    for words in (
        "# Model card: gentle 3",
        "LoRA adapter on `somebody/model`",
        "| seconds for each | 1.250 |",
        "| ours | 0.125 | 8 |",
        "| echo | 1.000 |  |",
        "| made up | CC0-1.0 | 48 |",
        "| learning rate | 0.02 |",
        "held-out loss",
        "protector-detox-plain-1",
        "## Limits",
        "Nothing was left out.",
    ):
        assert words in card
    assert "{" not in card, "a placeholder was left"
    assert str(base) not in card and str(config.output) not in card, "a path of this machine"


# Errors ----------------------------------------------------------------------------------


def test_what_cannot_be_learnt_from_is_named(
    recipe: Callable[..., DetoxifierTrainingConfig], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(pairs(1, seed=1)[0]) + "\n{}\n")
    with pytest.raises(ConfigurationError, match=r"broken\.jsonl, line 2: not in the form 'pairs'"):
        train_detoxifier(recipe(train=(broken,)), base=base)
    harmless = write_rows(tmp_path / "harmless.jsonl", preferences(8, seed=1)[3::4])
    with pytest.raises(ValueError, match="no pairs are left to train on: 2 both answers are harmless"):
        train_detoxifier(recipe(train=(harmless,)), base=base)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(training.TargetTrainer, "compute_loss", full)
    with pytest.raises(ConfigurationError, match="out of memory after 0 steps: set batch_size 4"):
        train_detoxifier(recipe(), base=base)
