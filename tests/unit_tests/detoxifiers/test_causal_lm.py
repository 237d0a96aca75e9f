"""The language model as detoxifier, on real models small enough for a test."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language_model import CORPUS, SENTENCE, SHORT, write_tiny_adapter, write_tiny_base

from protector_guardrails import (
    ConfigurationError,
    DetoxifierError,
    DetoxifierRunnable,
    Exchange,
    HarmDetector,
    MissingExtraError,
    Policy,
    Protector,
    Verdict,
    WeightsError,
)
from protector_guardrails.detoxifiers import causal_lm, resolve_detoxifier
from protector_guardrails.detoxifiers.causal_lm import CausalLMDetoxifier
from protector_guardrails.detoxifiers.generation import Written
from protector_guardrails.detoxifiers.prompting import TEMPLATE_FILE
from protector_guardrails.models.base_weights import SMOLLM2, FoundBase
from protector_guardrails.models.hashing import sha256_of

HARM = Verdict(harmful=True, score=0.9)
LEARNT = Exchange(response=CORPUS[1])
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_new_tokens": 60, "max_prompt_tokens": 500}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("language-model") / "base")


@pytest.fixture(scope="module")
def adapter(base) -> Path:
    return write_tiny_adapter(base, base.parent / "adapter")


@pytest.fixture(scope="module")
def detoxifier(base, adapter) -> CausalLMDetoxifier:
    return CausalLMDetoxifier(base, adapter=adapter, **OPTIONS)


def rewrite(detoxifier: CausalLMDetoxifier, *exchanges: Exchange) -> list[str]:
    return detoxifier.detoxify(exchanges, [HARM] * len(exchanges))


@pytest.fixture
def written(detoxifier, monkeypatch):
    """Lets a test say what the model writes, one list of texts per call; returns the calls' options."""
    tokenizer = detoxifier._ready()[1]
    script: list[list[tuple[str, str]]] = []
    calls: list[dict[str, Any]] = []

    def generate(model: Any, prompts: Any, **options: Any) -> list[Written]:
        calls.append(options)
        texts = script.pop(0)
        assert len(texts) == len(prompts)
        return [Written(tokenizer(text)["input_ids"], end) for text, end in texts]  # type: ignore[arg-type]

    monkeypatch.setattr(causal_lm, "generate", generate)
    return script, calls


# What it writes --------------------------------------------------------------------


def test_it_writes_what_its_adapter_learnt_and_stops_there(detoxifier):
    assert rewrite(detoxifier, LEARNT) == [SENTENCE]
    assert rewrite(detoxifier) == []


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_smaller_weights_write_the_same(base, adapter, dtype):
    smaller = CausalLMDetoxifier(base, adapter=adapter, **OPTIONS | {"dtype": dtype})
    assert rewrite(smaller, LEARNT) == [SENTENCE]


def test_the_merged_model_is_base_and_adapter(detoxifier, base, adapter):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    apart = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(str(base)), str(adapter)).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(apart(ids).logits, detoxifier._ready()[0](ids).logits, atol=1e-3)
        assert not torch.allclose(apart.unload()(ids).logits, detoxifier._ready()[0](ids).logits, atol=1e-1)


def test_a_batch_is_rewritten_like_each_of_it_alone(base):
    bare = CausalLMDetoxifier(base, template=SHORT, max_echo=1.0, batch_size=3, **OPTIONS | {"max_new_tokens": 20})
    cases = [
        Exchange(question=question, response="Climb over the fence. " * n)
        for n, question in ((1, None), (9, "How do I get in?"), (3, "Why?"), (30, None), (2, "Where? " * 20))
    ]
    assert rewrite(bare, *cases) == [rewrite(bare, case)[0] for case in cases]


def test_a_long_response_is_shortened_and_never_the_instruction(detoxifier, written):
    script, _ = written
    script.append([(SENTENCE, "complete")])
    seen: list[list[int]] = []
    scripted = causal_lm.generate

    def spy(model: Any, prompts: Any, **options: Any) -> Any:
        seen.extend(prompts)
        return scripted(model, prompts, **options)

    causal_lm.generate = spy  # put back by the fixture's monkeypatch
    assert rewrite(detoxifier, Exchange(question="How? " * 3000, response="Climb over it. " * 5000)) == [SENTENCE]
    text = detoxifier._ready()[1].decode(seen[0])
    assert len(seen[0]) == 500
    assert text.startswith("<|im_start|>user\nQuestion: How?")
    assert "Answer: Climb" in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_response_without_text_is_judged_by_what_else_it_says(detoxifier, written):
    script, _ = written
    script.append([(CORPUS[1], "complete")])
    script.append([(CORPUS[1], "complete")])
    assert rewrite(detoxifier, Exchange(response="", reasoning=CORPUS[1])) == [""]


# What counts as failed -------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "end", "why"),
    [
        ("", "complete", "empty"),
        (" \n", "complete", "empty"),
        ("", "cut", "empty"),
        ("Ask the owner before you", "cut", "no whole sentence"),
        (CORPUS[1], "complete", "100% of the response came back"),
        (CORPUS[1].upper() + " I wish you luck with it.", "complete", "of the response came back"),
    ],
)
def test_a_failed_rewrite_is_tried_once_more_in_another_way(detoxifier, written, caplog, first, end, why):
    script, calls = written
    script += [[(first, end)], [(SENTENCE, "complete")]]
    with caplog.at_level("INFO"):
        assert rewrite(detoxifier, LEARNT) == [SENTENCE]
    assert why in caplog.text
    assert CORPUS[1] not in caplog.text
    assert "no_repeat_ngram_size" not in calls[0]
    assert calls[1]["no_repeat_ngram_size"] == 4


class Wary(HarmDetector):
    """Finds harm in these texts."""

    name = "wary@1"

    def __init__(self, *harmful: str) -> None:
        self.texts = harmful

    def detect(self, exchanges):
        return [
            HARM if exchange.response in self.texts else Verdict(harmful=False, score=0.1) for exchange in exchanges
        ]


@pytest.mark.parametrize("question", ["How do I get in?", None])
def test_what_the_guard_finds_harmful_is_written_anew_without_the_response(detoxifier, written, question):
    exchange = Exchange(question=question, response="Take the ladder.")
    bound = detoxifier.bound_to(Wary("Break the lock with a stone."), Policy())
    script, calls = written
    script += [[("Break the lock with a stone.", "complete")], [("Ask the owner for the key first.", "complete")]]
    texts = bound.detoxify([exchange], [HARM])
    assert bound._ready() is detoxifier._ready()
    if question is None:  # nothing would be left to write about
        assert texts == [""] and len(calls) == 1
    else:
        assert texts == ["Ask the owner for the key first."] and len(calls) == 2


@pytest.mark.parametrize(("score", "kept"), [(0.19, True), (0.2, False)])
def test_a_rewrite_must_be_clearly_harmless_to_the_guard(detoxifier, written, score, kept):
    class Unsure(HarmDetector):
        name = "unsure@1"

        def detect(self, exchanges):
            return [Verdict(harmful=False, score=score) for _ in exchanges]

    written[0].append([("Ask the owner for the key first.", "complete")])
    bound = detoxifier.bound_to(Unsure(), Policy(threshold=0.4))
    texts = bound.detoxify([Exchange(response="Take the ladder.")], [HARM])
    assert texts == ["Ask the owner for the key first." if kept else ""]


def test_what_the_guard_finds_harmful_twice_is_empty(detoxifier, written):
    bad = ("Break the lock with a stone.", "Break the window with a stone.")
    written[0].extend([[(text, "complete")] for text in bad])
    exchange = Exchange(question="How do I get in?", response="Take the ladder.")
    assert detoxifier.bound_to(Wary(*bad), Policy()).detoxify([exchange], [HARM]) == [""]


def test_what_fails_twice_is_empty_and_only_that(detoxifier, written):
    script, calls = written
    script += [[("", "complete"), (SENTENCE, "complete")], [("", "complete")]]
    assert rewrite(detoxifier, Exchange(response="Climb."), LEARNT) == ["", SENTENCE]
    assert len(calls) == 2


def test_a_copy_cannot_come_out_of_the_second_try(base, tmp_path):
    """The model has learnt to repeat the response; what it may write instead has no four tokens of it in a row."""
    copying = CausalLMDetoxifier(
        base, adapter=write_tiny_adapter(base, tmp_path / "copying", sentence=CORPUS[1]), **OPTIONS
    )
    tokenizer = copying._ready()[1]
    copying.max_echo = 1.0
    assert rewrite(copying, LEARNT) == [CORPUS[1]]
    copying.max_echo = 0.0
    [text] = rewrite(copying, LEARNT)
    ids, original = (tokenizer(t)["input_ids"] for t in (text, CORPUS[1]))
    assert not {tuple(ids[i : i + 4]) for i in range(len(ids) - 3)} & {
        tuple(original[i : i + 4]) for i in range(len(original) - 3)
    }


def test_a_text_that_was_cut_off_goes_back_to_its_last_whole_sentence(detoxifier, written):
    script, _ = written
    script.append([("Ask the owner first, please. Then use the ga", "cut")])
    assert rewrite(detoxifier, LEARNT) == ["Ask the owner first, please."]


def test_the_limit_of_new_tokens_does_not_count_the_prompt(base, adapter):
    short = CausalLMDetoxifier(base, adapter=adapter, **OPTIONS | {"max_new_tokens": 15, "dtype": "float32"})
    [text] = rewrite(short, LEARNT)
    assert text == "Ask the owner first, and use the gate."  # the second sentence was under way


def test_nothing_of_an_unfinished_text_leaves_when_time_runs_out(detoxifier, written):
    script, calls = written
    script.append([("Ask the owner first, please. Then use the gate.", "time"), (SENTENCE, "complete")])
    assert rewrite(detoxifier, Exchange(response="Climb."), LEARNT) == ["", SENTENCE]
    assert len(calls) == 1  # there is no time for another try


def test_without_time_nothing_is_written(base, adapter):
    hurried = CausalLMDetoxifier(base, adapter=adapter, time_limit_s=1e-6, **OPTIONS)
    assert rewrite(hurried, LEARNT) == [""]


# In a guard ------------------------------------------------------------------------


class LadderDetector(HarmDetector):
    name = "ladders@1"

    def detect(self, exchanges):
        scores = [float("ladder" in exchange.response) for exchange in exchanges]
        return [Verdict(harmful=score > 0.5, score=score) for score in scores]


def test_a_guard_lets_the_rewrite_out_and_refuses_where_there_is_none(detoxifier, written):
    script, _ = written
    protector = Protector(detector=LadderDetector(), detoxifier=detoxifier)
    script.append([(SENTENCE, "complete")])
    [outcome] = protector.guard([LEARNT])
    assert (outcome.action, outcome.text) == ("rewrite", SENTENCE)
    script += [[("", "complete")], [("", "complete")]]
    [outcome] = protector.guard([LEARNT])
    assert (outcome.action, outcome.error) == ("refuse", None)
    script.append([("A ladder is a fine thing to have.", "complete")])
    [outcome] = protector.guard([LEARNT])
    assert outcome.action == "refuse"
    assert "ladder" not in outcome.text


async def test_it_works_on_an_event_loop(detoxifier):
    assert await detoxifier.adetoxify([LEARNT], [HARM]) == [SENTENCE]


def test_a_pickle_of_it_has_its_options_and_no_weights(detoxifier):
    again = pickle.loads(pickle.dumps(detoxifier))
    assert again._loaded is None
    assert rewrite(again, LEARNT) == [SENTENCE]
    assert again.max_new_tokens == detoxifier.max_new_tokens


# Threads ---------------------------------------------------------------------------


def test_threads_share_one_load_and_write_one_after_the_other(base, adapter, monkeypatch):
    loads, inside, most = [], [0], [0]
    real_load, real_generate = causal_lm.load_language_model, causal_lm.generate

    def load(*args: Any, **options: Any) -> Any:
        loads.append(1)
        time.sleep(0.1)
        return real_load(*args, **options)

    def generate(*args: Any, **options: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        try:
            return real_generate(*args, **options)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(causal_lm, "load_language_model", load)
    monkeypatch.setattr(causal_lm, "generate", generate)
    lazy = CausalLMDetoxifier(base, adapter=adapter, lazy=True, **OPTIONS)
    assert loads == []
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.extend(rewrite(lazy, LEARNT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [SENTENCE] * 4
    assert (len(loads), most[0]) == (1, 1)


def test_a_caller_waits_for_others_within_its_time_only(base, adapter):
    waiting = CausalLMDetoxifier(base, adapter=adapter, time_limit_s=0.2, **OPTIONS)
    with causal_lm._WRITING:
        started = time.monotonic()
        assert rewrite(waiting, LEARNT) == [""]
    assert 0.1 < time.monotonic() - started < 5


def test_the_number_of_threads_is_put_back(detoxifier):
    before = torch.get_num_threads()
    rewrite(detoxifier, LEARNT)
    assert torch.get_num_threads() == before


# What it refuses to be made of -----------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be more than 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"threads": 0}, "threads"),
        ({"time_limit_s": float("nan")}, "time_limit_s"),
        ({"max_echo": 1.2}, "share in"),
        ({"template": "vicuna"}, "chatml, plain"),
        ({"dtype": "int8", "device": "cuda"}, "bfloat16"),
        ({"max_prompt_tokens": 4000}, "2048 tokens"),
        ({"max_prompt_tokens": 5}, "template takes"),
    ],
)
def test_options_that_cannot_work_are_refused(base, options, message):
    with pytest.raises(ConfigurationError, match=message):
        CausalLMDetoxifier(base, **{"template": SHORT} | OPTIONS | options)


def test_an_adapter_for_another_base_names_both(adapter, tmp_path):
    other = write_tiny_base(tmp_path / "wide-base", hidden=80)
    config = json.loads((adapter / "adapter_config.json").read_text())
    with pytest.raises(WeightsError, match=r"adapter was made for 64 .* wide-base has 80") as failure:
        CausalLMDetoxifier(other, adapter=adapter)
    assert "hidden size 80" in str(failure.value)
    assert config["base_model_name_or_path"] in str(failure.value)


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_an_adapter_without_its_template_is_refused_unless_one_is_given(base, adapter, tmp_path):
    bare = copied(adapter, tmp_path / "adapter")
    (bare / TEMPLATE_FILE).unlink()
    with pytest.raises(WeightsError, match="template it was trained with"):
        CausalLMDetoxifier(base, adapter=bare)
    assert rewrite(CausalLMDetoxifier(base, adapter=bare, template=SHORT, **OPTIONS), LEARNT) == [SENTENCE]


def test_pickles_are_refused(base, adapter, tmp_path):
    old_base, old_adapter = copied(base, tmp_path / "base"), copied(adapter, tmp_path / "adapter")
    (old_base / "model.safetensors").rename(old_base / "pytorch_model.bin")
    (old_adapter / "adapter_model.safetensors").rename(old_adapter / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: a pickle"):
        CausalLMDetoxifier(old_base, template=SHORT)
    with pytest.raises(WeightsError, match=r"adapter_model\.bin: a pickle"):
        CausalLMDetoxifier(base, adapter=old_adapter)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("peft_type", "IA3", "only LoRA"), ("task_type", "SEQ_CLS", "declares the task SEQ_CLS")],
)
def test_adapters_of_other_kinds_are_refused(base, adapter, tmp_path, key, value, message):
    other = copied(adapter, tmp_path / "adapter")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(WeightsError, match=message):
        CausalLMDetoxifier(base, adapter=other)


def test_code_of_a_checkpoint_is_never_run(base, tmp_path):
    other = copied(base, tmp_path / "base")
    config = json.loads((other / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}}
    (other / "config.json").write_text(json.dumps(config))
    (other / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        CausalLMDetoxifier(other, template=SHORT)
    assert not (tmp_path / "ran").exists()


def test_a_base_that_lacks_weights_is_refused(base, tmp_path):
    from safetensors.torch import load_file, save_file

    other = copied(base, tmp_path / "base")
    weights = load_file(other / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="comes without 1 of the weights"):
        CausalLMDetoxifier(other, template=SHORT)


def test_too_little_memory_is_said_in_words(detoxifier, base, monkeypatch):
    def full(*args: Any, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(causal_lm, "generate", full)
    with pytest.raises(DetoxifierError, match="smaller batch_size"):
        rewrite(detoxifier, LEARNT)
    monkeypatch.setattr("protector_guardrails.detoxifiers.int8.quantize_linears", full)
    with pytest.raises(WeightsError, match="does not fit into memory"):
        CausalLMDetoxifier(base, template=SHORT)


def test_a_missing_extra_is_named(base, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"protector-guardrails\[torch\]"):
        CausalLMDetoxifier(base)
    monkeypatch.setattr(causal_lm, "_SHARED", {})
    with pytest.raises(MissingExtraError, match="the embedded detoxifier needs"):
        CausalLMDetoxifier.embedded()


# What ships ------------------------------------------------------------------------


@pytest.fixture
def published(adapter, base, tmp_path) -> Path:
    folder = copied(adapter, tmp_path / "published")
    names = ("adapter_config.json", "adapter_model.safetensors", TEMPLATE_FILE)
    manifest = {
        "name": "tiny",
        "version": "1",
        "base": str(base),
        "base_sha256": "0" * 64,
        "max_new_tokens": 60,
        "max_prompt_tokens": 300,
        "max_echo": 0.4,
        "sha256": {name: sha256_of(folder / name) for name in names},
    }
    (folder / "detoxifier.json").write_text(json.dumps(manifest))
    return folder


def test_the_embedded_one_is_loaded_at_its_first_use_and_shared(published, monkeypatch):
    monkeypatch.setattr(causal_lm, "EMBEDDED_DETOXIFIER", published)
    monkeypatch.setattr(causal_lm, "_SHARED", {})
    embedded = CausalLMDetoxifier.embedded()
    assert embedded is CausalLMDetoxifier.embedded()
    assert embedded._loaded is None
    assert (embedded.max_prompt_tokens, embedded.max_echo, embedded.dtype) == (300, 0.4, "int8")
    assert rewrite(embedded, LEARNT) == [SENTENCE]


def test_its_settings_can_be_overruled(published):
    assert CausalLMDetoxifier.from_folder(published, max_echo=0.1, lazy=True).max_echo == 0.1


def test_a_changed_file_is_refused(published):
    (published / TEMPLATE_FILE).write_text(SHORT.model_copy(update={"name": "other"}).model_dump_json())
    with pytest.raises(WeightsError, match=f"{TEMPLATE_FILE} has sha256"):
        CausalLMDetoxifier.from_folder(published)


def test_every_file_that_is_loaded_must_be_vouched_for(published):
    manifest = json.loads((published / "detoxifier.json").read_text())
    del manifest["sha256"]["adapter_model.safetensors"]
    (published / "detoxifier.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"no sha256 of adapter_model\.safetensors"):
        CausalLMDetoxifier.from_folder(published)


def test_without_its_files_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(causal_lm, "EMBEDDED_DETOXIFIER", tmp_path)
    monkeypatch.setattr(causal_lm, "_SHARED", {})
    with pytest.raises(WeightsError, match=r"no detoxifier at .*detoxifier\.json"):
        CausalLMDetoxifier.embedded()


def test_the_papers_is_known_by_name_and_can_be_read_from_folders(base, adapter, monkeypatch):
    monkeypatch.setattr(causal_lm, "_SHARED", {})
    known = resolve_detoxifier("paper-detoxifier-7b")
    assert known is resolve_detoxifier("paper-detoxifier-7b") and known._loaded is None
    assert (known.base, known.adapter) == ("meta-llama/Llama-2-7b-hf", "renjiepi/mllm_protector_detoxifier")
    assert known.template.name == "protector-detox-plain-1"
    here = CausalLMDetoxifier.from_preset("paper-detoxifier-7b", base=base, adapter=adapter, template=SHORT, **OPTIONS)
    assert rewrite(here, LEARNT) == [SENTENCE]
    with pytest.raises(ConfigurationError, match=r"'paper-3b' is a detector: .* 'paper-detoxifier-7b'"):
        CausalLMDetoxifier.from_preset("paper-3b")


@pytest.mark.parametrize("name", ["embedded", "paper-detoxifier-7b"])
def test_without_pytorch_its_runnable_says_what_does_without(name, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    with pytest.raises(MissingExtraError, match=rf"'{name}' needs .*protector-guardrails\[torch\].* or use \"redact\""):
        DetoxifierRunnable(name)
    DetoxifierRunnable("redact")


def test_the_default_runnable_is_the_language_model_and_loads_nothing_when_made():
    code = (
        "import sys; from protector_guardrails import DetoxifierRunnable; runnable = DetoxifierRunnable(); "
        "assert runnable.detoxifier == 'embedded'; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_the_known_base_is_looked_for_in_the_cache(base, adapter, monkeypatch):
    asked = []
    monkeypatch.setattr(causal_lm, "find_base", lambda spec: asked.append(spec) or FoundBase(base, "a test"))
    assert rewrite(CausalLMDetoxifier(SMOLLM2.repository, adapter=adapter, **OPTIONS), LEARNT) == [SENTENCE]
    assert asked == [SMOLLM2]
