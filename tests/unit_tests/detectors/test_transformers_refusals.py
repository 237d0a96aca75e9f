"""What is refused, and that the sentence says why and what to do."""

from __future__ import annotations

import builtins
import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import (
    TEXTS,
    bert_classifier,
    causal_llama,
    change_json,
    detector_adapter,
    llama_config,
    tokenizer,
    writer_adapter,
)
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

from protector_guardrails import Exchange, Protector
from protector_guardrails.detectors.transformers import TransformersDetector
from protector_guardrails.errors import ConfigurationError, DetectorError, MissingExtraError, WeightsError
from protector_guardrails.models.presets import PRESETS, find_preset


def load(model: Path | str, **options: Any) -> TransformersDetector:
    chosen: dict[str, Any] = {"polarity": "safe", "device_map": "cpu", "dtype": "float32"} | options
    return TransformersDetector(model, **chosen)


def rewrite(path: Path, *, drop: str = "", **tensors: torch.Tensor) -> None:
    """Take tensors out of a safetensors file, or add some."""
    content = {name: value for name, value in load_file(path).items() if not drop or drop not in name}
    save_file(content | tensors, path, metadata={"format": "pt"})


@pytest.fixture(autouse=True)
def never_asks(monkeypatch):
    def ask(*_args):
        raise AssertionError("a prompt on stdin")

    monkeypatch.setattr(builtins, "input", ask)


# No trained head -----------------------------------------------------------------------


def test_a_language_model(checkpoints):
    with pytest.raises(WeightsError, match=r"LlamaForCausalLM: it has no classification head"):
        load(checkpoints / "base")


def test_a_language_model_that_does_not_say_so(copied):
    folder = copied("base")
    change_json(folder / "config.json", architectures=None)
    with pytest.raises(WeightsError, match=r"without a classification head \(missing: score.weight\)"):
        load(folder, polarity=None, harmful_labels=[1])


@pytest.mark.parametrize("lost", ["score", "layers.1.mlp"])
def test_a_classifier_that_lost_weights(copied, lost):
    folder = copied("llama")
    rewrite(folder / "model.safetensors", drop=lost)
    with pytest.raises(WeightsError, match=f"comes without .*{lost}"):
        load(folder)


def test_the_upload_that_writes_text_instead(checkpoints, tmp_path):
    """Like renjiepi/protector_detector_7b_lora."""
    folder = writer_adapter(tmp_path / "writer", checkpoints / "base")
    with pytest.raises(WeightsError, match=r"declares the task CAUSAL_LM and carries no score head"):
        load(folder, base=checkpoints / "base")


def test_an_adapter_saved_without_its_head(checkpoints, copied):
    folder = copied("adapter")
    rewrite(folder / "adapter_model.safetensors", drop="score")
    with pytest.raises(WeightsError, match=r"carries no classification head"):
        load(folder, base=checkpoints / "base")


# Adapters that do not fit --------------------------------------------------------------


def test_the_wrong_base(checkpoints, tmp_path):
    other = causal_llama(tmp_path / "other", width=64)
    sentence = "made for 32 dimensions, the base other has 64 .* declares the base somebody/llama-of-width-32"
    with pytest.raises(WeightsError, match=sentence):
        load(checkpoints / "adapter", base=other)
    small = detector_adapter(tmp_path / "wide", other)
    with pytest.raises(WeightsError, match=r"made for 64 dimensions, the base base has 32"):
        load(small, base=checkpoints / "base")


@pytest.mark.parametrize("layers", [1, 3])
def test_a_base_of_another_depth(checkpoints, tmp_path, layers):
    base = tmp_path / "base"
    config = llama_config()
    config.num_hidden_layers = layers
    config.layer_types = None
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer(base)
    with pytest.raises(WeightsError, match=r"has not; it declares|does not fit its base"):
        load(checkpoints / "adapter", base=base)


def test_an_adapter_with_a_gap(checkpoints, copied):
    folder = copied("adapter")
    rewrite(folder / "adapter_model.safetensors", drop="layers.1.self_attn.q_proj.lora_A")
    with pytest.raises(WeightsError, match=r"does not fit its base"):
        load(folder, base=checkpoints / "base")


def test_an_adapter_with_something_in_excess(checkpoints, copied):
    folder = copied("adapter")
    rewrite(folder / "adapter_model.safetensors", **{"base_model.model.model.extra.weight": torch.ones(2, 2)})
    with pytest.raises(WeightsError, match=r"has weights for model.extra.weight, which base has not"):
        load(folder, base=checkpoints / "base")


def test_an_adapter_without_a_base(copied, tmp_path):
    folder = copied("adapter")
    with pytest.raises(
        WeightsError, match=r"base of the adapter adapter: somebody/llama-of-width-32 .* given as base="
    ):
        load(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path="/home/somebody/base")
    with pytest.raises(WeightsError, match=r"there is no folder /home/somebody/base; another one is given as base="):
        load(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(WeightsError, match=r"does not say what its base is"):
        load(folder)


def test_bases_that_are_none(checkpoints):
    with pytest.raises(WeightsError, match=r"adapter is itself an adapter"):
        load(checkpoints / "adapter", base=checkpoints / "adapter")
    with pytest.raises(ConfigurationError, match=r"is a whole model, not an adapter"):
        load(checkpoints / "llama", base=checkpoints / "base")


@pytest.mark.parametrize(("key", "value"), [("peft_type", "IA3"), ("megatron_config", {"a": 1})])
def test_adapters_of_other_kinds(checkpoints, copied, key, value):
    folder = copied("adapter")
    change_json(folder / "adapter_config.json", **{key: value})
    with pytest.raises(WeightsError, match=r"only LoRA|Megatron"):
        load(folder, base=checkpoints / "base")


# Files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights"), [("llama", "model.safetensors"), ("adapter", "adapter_model.safetensors")]
)
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "pointer", "gone", "pickle"])
def test_damaged_weights(checkpoints, copied, name, weights, damage):
    folder = copied(name)
    path = folder / weights
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "noise":
        path.write_bytes(b"\x93" * 4096)
    elif damage == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    else:
        tensors = load_file(path)
        path.unlink()
        if damage == "pickle":
            torch.save(tensors, folder / ("pytorch_model.bin" if name == "llama" else "adapter_model.bin"))
    sentence = {"pointer": "git lfs pull", "gone": f"has no {weights}", "pickle": "a pickle, .* Convert it"}
    with pytest.raises(WeightsError, match=sentence.get(damage, "damaged or half downloaded")):
        load(folder, **({"base": checkpoints / "base"} if name == "adapter" else {}))


def test_pickles_are_not_opened(checkpoints, copied, monkeypatch):
    folder = copied("llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: pytest.fail("a pickle was read"))
    with pytest.raises(WeightsError, match=r"a pickle"):
        load(folder)


def test_gguf(tmp_path):
    import gguf

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for model in (path, tmp_path, tmp_path / "other.gguf"):
        with pytest.raises(WeightsError, match=r"GGUF files? .*without a classification head|is a GGUF file"):
            load(model)


def test_shards(copied):
    folder = copied("llama")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(WeightsError, match=r"incomplete: model-00002-of-00002.safetensors missing"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors", "b": shards["a"]}}))
    with pytest.raises(WeightsError, match=r"incomplete"):
        load(folder)


def test_half_a_configuration(copied):
    folder = copied("llama")
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(WeightsError, match=r"config.json is damaged or half downloaded"):
        load(folder)
    path.unlink()
    with pytest.raises(WeightsError, match=r"there is no config.json"):
        load(folder)


def test_a_configuration_that_does_not_match_its_weights(copied):
    folder = copied("llama")
    change_json(folder / "config.json", intermediate_size=48)
    with pytest.raises(WeightsError, match=r"llama cannot be loaded"):
        load(folder)


def test_no_tokenizer(copied):
    folder = copied("llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"llama has no tokenizer"):
        load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"the tokenizer of llama cannot be loaded"):
        load(folder)


def test_a_tokenizer_of_another_model(copied):
    folder = copied("llama")
    change_json(folder / "config.json", vocab_size=20)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:20].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((DetectorError, WeightsError), match=r"cannot be loaded|do not belong together"):
        load(folder).detect([Exchange(response=TEXTS[0])])


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_not_run(copied, known):
    folder = copied("llama")
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    classes = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    change_json(folder / "config.json", auto_map=classes, **({} if known else {"model_type": "evil"}))
    if known:  # the library's own class is used
        load(folder)
    else:
        with pytest.raises(WeightsError, match=r"llama cannot be loaded"):
            load(folder)
    assert not ran.exists()


def test_architectures_without_a_classifier(copied):
    folder = copied("llama")
    change_json(folder / "config.json", model_type="whisper", architectures=None)
    with pytest.raises(WeightsError, match=r"cannot be loaded"):
        load(folder)


# The hub -------------------------------------------------------------------------------


def test_no_such_folder(tmp_path):
    for model in (tmp_path / "nothing", "./nothing", "~/no/thing", "a/b/c"):
        with pytest.raises(WeightsError, match=r"there is no folder"):
            load(model)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"is a file: pass the folder"):
        load(tmp_path / "file")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def test_without_a_hub_it_says_so_at_once(empty_cache):
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"the hub cannot be reached: check the network, or pass a folder"):
        load("somebody/detector")
    assert time.monotonic() - started < 10


def test_offline(empty_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"not in the hub's cache, and HF_HUB_OFFLINE is set"):
        load("somebody/detector", revision="main")
    with pytest.raises(WeightsError, match=r"is neither a folder nor the name of a repository"):
        load("no such--repository..")


def test_a_cache_that_was_filled_in_part(checkpoints, empty_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = empty_cache / "models--somebody--detector" / "snapshots" / ("a" * 40)
    shutil.copytree(checkpoints / "llama", snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    with pytest.raises(WeightsError, match=r"has no model.safetensors. .*safetensors only"):
        load("somebody/detector")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "neither a folder nor a repository on the hub"),
        ("RevisionNotFoundError", "has no revision v2"),
    ],
)
def test_what_the_hub_answers(kind, sentence, monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def answer(*_args, **_options):
        raise getattr(errors, kind)("no", response=httpx.Response(403, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(WeightsError, match=sentence):
        load("somebody/detector", revision="v2")


# Memory, hardware, extras --------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory_to_load(checkpoints, monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", fail)
    with pytest.raises(WeightsError, match=r"llama does not fit into memory: .*quantization"):
        load(checkpoints / "llama")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory with 5 windows .* smaller max_batch_tokens"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "out of memory"),
        (RuntimeError("device lost"), "the model failed: RuntimeError: device lost"),
    ],
)
def test_too_little_memory_to_judge(checkpoints, error, sentence):
    detector = load(checkpoints / "llama")

    def fail(*_args):
        raise error

    handle = detector._classifier.model.register_forward_pre_hook(fail)
    with pytest.raises(DetectorError, match=sentence):
        detector.detect([Exchange(response=text) for text in TEXTS])
    [outcome] = Protector(detector=detector).guard([Exchange(response=TEXTS[0])])
    assert outcome.action == "refuse" and "DetectorError" in outcome.error
    handle.remove()
    assert len(detector.detect([Exchange(response=TEXTS[0])])) == 1


def test_logits_that_are_no_numbers(checkpoints):
    detector = load(checkpoints / "llama")
    with torch.no_grad():
        detector._classifier.model.score.weight.fill_(float("nan"))
    with pytest.raises(DetectorError, match=r"logits that are not numbers"):
        detector.detect([Exchange(response=TEXTS[0])])


def test_weights_that_are_no_numbers(copied):
    folder = copied("llama")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {n: v * float("nan") for n, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(WeightsError, match=r"not numbers"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quantization": "4bit"}, "needs a GPU"),
        ({"quantization": "8bit"}, "needs a GPU"),
        ({"dtype": "float16"}, "float16' needs a GPU"),
        ({"device_map": "cuda:0"}, "finds no CUDA device"),
        ({"device_map": {"": "cuda"}}, "finds no CUDA device"),
    ],
)
def test_hardware_that_is_not_there(checkpoints, monkeypatch, options, sentence):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=sentence):
        load(checkpoints / "llama", **options)


def without(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == library else find(name, *a))


def test_quantization_needs_bitsandbytes(checkpoints, monkeypatch):
    without(monkeypatch, "bitsandbytes")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ConfigurationError, match=r"needs bitsandbytes: pip install bitsandbytes"):
        load(checkpoints / "llama", quantization="4bit", device_map="auto")


@pytest.mark.parametrize("library", ["torch", "transformers", "peft"])
def test_extras(checkpoints, monkeypatch, library):
    without(monkeypatch, library)
    with pytest.raises(MissingExtraError, match=r"protector-guardrails\[torch\]"):
        load(checkpoints / "adapter", base=checkpoints / "base")


# Options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"polarity": "up"}, "polarity must be 'harm' or 'safe'"),
        ({"harmful_labels": ["a"]}, "give one of them"),
        ({"polarity": None, "harmful_labels": "a"}, "a list of names or indices"),
        ({"polarity": None, "harmful_labels": []}, "a list of names or indices"),
        ({"polarity": None, "harmful_labels": [1.5]}, "names or indices, not 1.5"),
        ({"template": "question"}, "must hold {response} once"),
        ({"template": "{response.__class__}"}, "is not a field"),
        ({"template": "{response} {0}"}, "is not a field"),
        ({"template": "{response!r}"}, "is not a field"),
        ({"template": "{response"}, "cannot be read"),
        ({"template": "{response}{response}"}, "{response} once"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"quantization": "2bit"}, "'8bit', '4bit' or None"),
        ({"max_tokens": 4}, "max_tokens must be at least 8"),
        ({"overlap": -1}, "overlap must be at least 0"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1"),
        ({"threshold": 1.5}, "threshold must be in"),
    ],
)
def test_options_are_checked_before_anything_is_read(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        load("/nowhere/at/all", **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"polarity": None}, "pass polarity='harm' or polarity='safe'"),
        ({"max_tokens": 4096}, "takes 128 tokens, not 4096"),
        ({"max_tokens": 64, "overlap": 60}, "no room for a template"),
    ],
)
def test_options_that_do_not_suit_the_checkpoint_are_refused_before_its_weights_are_read(copied, options, sentence):
    folder = copied("llama")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=sentence):
        load(folder, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, r"has 2 labels \(0: 'LABEL_0', 1: 'LABEL_1'\): say which are harmful"),
        ({"polarity": "harm"}, "say which are harmful"),
        ({"harmful_labels": ["unsafe"]}, "'unsafe', which is not one label"),
        ({"harmful_labels": [2]}, "2, which is not one label"),
        ({"harmful_labels": [-1]}, "-1, which is not one label"),
        ({"harmful_labels": [0, 1]}, "everything would be harmful"),
    ],
)
def test_several_labels(tmp_path, options, sentence):
    folder = bert_classifier(tmp_path / "model", labels=2)
    with pytest.raises(ConfigurationError, match=sentence):
        load(folder, **({"polarity": None} | options))


# Presets -------------------------------------------------------------------------------


def test_presets():
    preset = find_preset("paper-3b", kind="detector")
    assert (preset.model, preset.base) == ("renjiepi/protector_detector_3b_lora", "openlm-research/open_llama_3b_v2")
    assert (preset.polarity, preset.template) == ("safe", "response")
    with pytest.raises(ConfigurationError, match=r"'paper-detoxifier-7b' is a detoxifier: .* 'paper-3b'"):
        TransformersDetector.from_preset("paper-detoxifier-7b")
    with pytest.raises(ConfigurationError, match=r"there is no preset 'paper-4b'"):
        TransformersDetector.from_preset("paper-4b")
    assert all(preset.name == name and preset.licence and preset.source for name, preset in PRESETS.items())


def test_a_preset_asks_the_hub_for_the_authors_files(empty_cache):
    with pytest.raises(WeightsError, match=r"renjiepi/protector_detector_3b_lora is neither a folder nor in the hub"):
        TransformersDetector.from_preset("paper-3b")
