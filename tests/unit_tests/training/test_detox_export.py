"""A trained detoxifier becomes a folder that anybody can load and check."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_causal import write_rows

from protector_guardrails import Exchange, Verdict, cli
from protector_guardrails.detoxifiers.causal_lm import CausalLMDetoxifier
from protector_guardrails.models import load_detoxifier_manifest
from protector_guardrails.training.detoxifier import DetoxifierTrainingConfig, train_detoxifier


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    rows = [
        {
            "question": f"Where is the {number}?",
            "harmful_response": f"number {number} hides in the blue barn",
            "harmless_response": f"the number {number} stands on the green bridge for all to see today.",
        }
        for number in range(16)
    ]
    config = DetoxifierTrainingConfig(
        train=(write_rows(folder / "pairs.jsonl", rows),),
        output=folder / "run",
        template="plain",
        learning_rate=1e-2,
        max_prompt_tokens=160,
        max_target_tokens=24,
        same_beginning=1000,
        bf16=False,
        threads=1,
        judged_targets=False,
    )
    train_detoxifier(config, base=base)
    return folder / "run"


def _export(run: Path, output: Path, *more: str) -> int:
    words = ["train", "export-detoxifier", str(run), "-o", str(output), "--name", "green", "--version", "1.2", *more]
    return cli.main(words)


def test_it_can_be_loaded_and_rewrites_as_the_run_did(run: Path, base: Path, tmp_path: Path) -> None:
    assert _export(run, tmp_path / "out", "--base", "somebody/tiny", "--base-sha256", "0" * 64) == 0
    manifest = load_detoxifier_manifest(tmp_path / "out")
    assert (manifest.name, manifest.version, manifest.base) == ("green", "1.2", "somebody/tiny")
    assert (manifest.max_prompt_tokens, manifest.max_new_tokens) == (160, 24)
    for name, digest in manifest.sha256.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    exchanges = [Exchange(question="Where is the 3?", response="number 3 hides in the blue barn")]
    verdicts = [Verdict(harmful=True, score=1.0)]
    kept = CausalLMDetoxifier(base, adapter=run / "adapter", max_new_tokens=24, max_prompt_tokens=160, dtype="float32")
    given = CausalLMDetoxifier.from_folder(tmp_path / "out", base=base, dtype="float32", max_echo=kept.max_echo)
    assert given.detoxify(exchanges, verdicts) == kept.detoxify(exchanges, verdicts)


def test_weights_are_halved_and_name_no_folder_of_this_machine(run: Path, tmp_path: Path) -> None:
    _export(run, tmp_path / "out", "--base", "somebody/tiny", "--base-sha256", "0" * 64)
    before = load_file(run / "adapter" / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor.float(), before[name].float(), rtol=1e-3, atol=1e-6)
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        assert str(run.parent).encode() not in file.read_bytes()


def test_the_card_has_what_was_measured(run: Path, tmp_path: Path) -> None:
    rate = {"value": 0.125, "low": 0.1, "high": 0.2, "method": "wilson"}
    rates = ("empty", "echoing", "still_harmful", "refusing", "on_topic", "on_topic_by_chance", "repeated")
    figures = {"source": "made-up", "answers": 8, "words": 40, "seconds": 1.5, "words_per_second": 26.0}
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps(
            {
                **{
                    "created": "2026-01-01T00:00:00Z",
                    "command": [],
                    "package": "0",
                    "detoxifier": "x",
                    "detector": "y",
                },
                **{"threshold": 0.5, "data": {}, "figures": [figures | dict.fromkeys(rates, rate)]},
            }
        ),
        encoding="utf-8",
    )
    assert _export(run, tmp_path / "out", "--results", str(results)) == 0
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "made-up" in card and "0.125" in card
    assert load_detoxifier_manifest(tmp_path / "out").metrics["made-up"]["still harmful"] == 0.125


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _export(tmp_path, tmp_path / "out") == 2
    assert "adapter_model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
