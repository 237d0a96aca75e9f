"""Scores of a detector are those of its checkpoint, whatever it is batched with."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from plain import inputs_of, plain_logits, plain_model, sigmoid
from tiny_checkpoints import (
    TEXTS,
    bert_classifier,
    change_json,
    detector_adapter,
    gpt2_classifier,
    llama_classifier,
    roberta_classifier,
)
from transformers import AutoTokenizer

from protector_guardrails import Exchange, Image, Policy, Protector, ToolCall
from protector_guardrails.detectors.pooling import batches
from protector_guardrails.detectors.transformers import TransformersDetector
from protector_guardrails.errors import WeightsError
from protector_guardrails.evaluation.specs import weights_of
from protector_guardrails.models.base_weights import sha256_of

CPU = {"device_map": "cpu", "dtype": "float32"}


def scores(detector: TransformersDetector, texts: list[str]) -> list[float]:
    return [verdict.score for verdict in detector.detect([Exchange(response=text) for text in texts])]


# Probabilities -------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_scores_as_peft_runs_it(checkpoints, merge):
    detector = TransformersDetector(
        checkpoints / "adapter", base=checkpoints / "base", polarity="safe", merge=merge, **CPU
    )
    logits = plain_logits(checkpoints / "base", TEXTS, adapter=checkpoints / "adapter", num_labels=1)
    assert scores(detector, TEXTS) == pytest.approx(1 - sigmoid(logits[:, 0]), abs=1e-5)
    assert np.ptp(logits) > 1, "texts that all score alike would hide a mistake"


def test_merging_takes_the_adapter_out_of_the_way_and_keeping_it_does_not(checkpoints):
    merged, kept = (
        TransformersDetector(checkpoints / "adapter", base=checkpoints / "base", polarity="safe", merge=merge, **CPU)
        for merge in (True, False)
    )
    names = [{name for name, _ in detector._classifier.model.named_modules()} for detector in (merged, kept)]
    assert [any("lora_A" in name for name in of_one) for of_one in names] == [False, True]


@pytest.mark.parametrize("make", [bert_classifier, llama_classifier, gpt2_classifier, roberta_classifier])
@pytest.mark.parametrize("polarity", ["harm", "safe"])
def test_one_logit(make, polarity, tmp_path):
    folder = make(tmp_path / "model")
    probability = sigmoid(plain_logits(folder, TEXTS)[:, 0])
    expected = probability if polarity == "harm" else 1 - probability
    detector = TransformersDetector(folder, polarity=polarity, **CPU)
    assert scores(detector, TEXTS) == pytest.approx(expected, abs=1e-5)


LABELS = {0: "fine", 1: "hate", 2: "Fraud", 3: "other harm"}


@pytest.mark.parametrize("make", [bert_classifier, llama_classifier])
@pytest.mark.parametrize("harmful", [["hate", "Fraud", "other harm"], [1, 2, 3]])
def test_labels_that_exclude_each_other_are_summed(make, harmful, tmp_path):
    folder = make(tmp_path / "model", labels=4)
    change_json(folder / "config.json", id2label=LABELS, label2id={name: i for i, name in LABELS.items()})
    weights = np.exp(plain_logits(folder, TEXTS))
    weights /= weights.sum(axis=1, keepdims=True)
    verdicts = TransformersDetector(folder, harmful_labels=harmful, **CPU).detect([Exchange(response=t) for t in TEXTS])
    assert [v.score for v in verdicts] == pytest.approx(1 - weights[:, 0], abs=1e-5)
    assert [v.categories["hate"] for v in verdicts] == pytest.approx(weights[:, 1], abs=1e-5)
    assert [v.categories["non_violent_crimes"] for v in verdicts] == pytest.approx(weights[:, 2], abs=1e-5)
    assert set(verdicts[0].categories) == {"hate", "non_violent_crimes"}


@pytest.mark.parametrize("told_by", ["checkpoint", "caller"])
def test_of_labels_that_may_hold_together_the_largest_counts(told_by, tmp_path):
    problem = {"problem_type": "multi_label_classification"} if told_by == "checkpoint" else {}
    folder = bert_classifier(tmp_path / "model", labels=4, **problem)
    detector = TransformersDetector(
        folder, harmful_labels=[1, 3], multi_label=None if told_by == "checkpoint" else True, **CPU
    )
    assert scores(detector, TEXTS) == pytest.approx(sigmoid(plain_logits(folder, TEXTS))[:, [1, 3]].max(1), abs=1e-5)


def test_a_head_of_several_labels_can_come_with_an_adapter(checkpoints, tmp_path):
    adapter = detector_adapter(tmp_path / "adapter", checkpoints / "base", labels=3)
    weights = np.exp(plain_logits(checkpoints / "base", TEXTS, adapter=adapter, num_labels=3))
    detector = TransformersDetector(adapter, base=checkpoints / "base", harmful_labels=[2], **CPU)
    assert scores(detector, TEXTS) == pytest.approx(weights[:, 2] / weights.sum(axis=1), abs=1e-5)


def test_an_adapter_finds_the_base_that_it_declares(checkpoints, tmp_path):
    adapter = detector_adapter(tmp_path / "adapter", checkpoints / "base", old=False)
    detector = TransformersDetector(adapter, polarity="safe", **CPU)
    given = TransformersDetector(adapter, base=checkpoints / "base", polarity="safe", **CPU)
    assert scores(detector, TEXTS) == scores(given, TEXTS)


@pytest.mark.parametrize("merge", [True, False])
def test_bfloat16_is_near_float32(checkpoints, merge):
    options = {"base": checkpoints / "base", "polarity": "safe", "device_map": "cpu", "merge": merge}
    low, high = (
        scores(TransformersDetector(checkpoints / "adapter", dtype=dtype, **options), TEXTS)
        for dtype in ("bfloat16", "float32")
    )
    assert low == pytest.approx(high, abs=0.1)
    assert low != high


# Batches -------------------------------------------------------------------------------

FORMS = {
    "no padding token": {},
    "padding left": {"pad_token": "<unk>", "padding_side": "left"},
    "padding right": {"pad_token": "<unk>", "padding_side": "right"},
    "padding is the end, left": {"kind": "llama-eos", "pad_token": "</s>", "padding_side": "left"},
    "padding is the end, right": {"kind": "llama-eos", "pad_token": "</s>", "padding_side": "right"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_gives_what_single_texts_give(form, tmp_path):
    tokens = FORMS[form]
    pad = {"pad_token_id": {"<unk>": 0, "</s>": 2}[tokens["pad_token"]]} if "pad_token" in tokens else {}
    folder = llama_classifier(tmp_path / "model", config=pad, **tokens)
    detector = TransformersDetector(folder, polarity="harm", **CPU)
    assert len(list(batches([len(text) for text in TEXTS], max_batch_tokens=detector.max_batch_tokens))) == 1
    together = scores(detector, TEXTS)
    assert together == pytest.approx([scores(detector, [text])[0] for text in TEXTS], abs=1e-6)
    assert together == pytest.approx(sigmoid(plain_logits(folder, TEXTS)[:, 0]), abs=1e-5)
    assert together == pytest.approx(
        scores(TransformersDetector(folder, polarity="harm", max_batch_tokens=1, **CPU), TEXTS), abs=1e-6
    )


def test_what_goes_wrong_with_the_plain_model(tmp_path):
    """Both faults that the pooling is there for are real."""
    folder = llama_classifier(tmp_path / "a", config={"pad_token_id": 2}, kind="llama-eos", pad_token="</s>")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    own = plain_model(folder)(**inputs_of(tokenizer, TEXTS[0])).logits.detach().numpy()[0, 0]
    assert abs(sigmoid(own) - scores(TransformersDetector(folder, polarity="harm", **CPU), TEXTS)[0]) > 1e-2
    ids = torch.ones((2, 3), dtype=torch.long)
    with pytest.raises(ValueError, match="no padding token"):
        plain_model(llama_classifier(tmp_path / "b"))(input_ids=ids)


@pytest.mark.parametrize("make", [bert_classifier, gpt2_classifier, roberta_classifier])
def test_batches_of_other_architectures(make, tmp_path):
    detector = TransformersDetector(make(tmp_path / "model"), polarity="harm", **CPU)
    assert scores(detector, TEXTS) == pytest.approx([scores(detector, [text])[0] for text in TEXTS], abs=1e-6)


def test_the_token_budget_bounds_every_batch(checkpoints):
    detector = TransformersDetector(checkpoints / "llama", polarity="harm", max_batch_tokens=80, **CPU)
    seen: list[torch.Size] = []
    detector._classifier.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    scores(detector, [*TEXTS, "the cat", "the lamp", "a stone"])
    assert seen and all(rows * tokens <= 80 or rows == 1 for rows, tokens in seen)
    assert any(rows > 1 for rows, _ in seen)


def test_threads_get_the_scores_of_their_own_texts(checkpoints):
    detector = TransformersDetector(checkpoints / "llama", polarity="harm", **CPU)
    texts = [f"{text} {number}" for number in range(6) for text in TEXTS]
    alone = [scores(detector, [text])[0] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: scores(detector, [text])[0], texts)) == alone


# What is judged ------------------------------------------------------------------------


def test_templates(checkpoints):
    folder = checkpoints / "llama"
    exchange = Exchange(
        question="Where is the mill?", images=(Image(description="a green river"),), response="Over the bridge."
    )
    asked = "Where is the mill?\n[image: a green river]"
    wanted = {
        "response": "Over the bridge.",
        "question+response": f"Question: {asked}\n\nAnswer: Over the bridge.",
        "<<{response}>> {{}} {question}": f"<<Over the bridge.>> {{}} {asked}",
    }
    for template, text in wanted.items():
        [verdict] = TransformersDetector(folder, polarity="harm", template=template, **CPU).detect([exchange])
        assert verdict.score == pytest.approx(float(sigmoid(plain_logits(folder, [text])[0, 0])), abs=1e-5), template


def test_without_a_question_the_bare_response_is_judged(checkpoints):
    bare, asked = (
        TransformersDetector(checkpoints / "llama", polarity="harm", template=template, **CPU)
        for template in ("response", "question+response")
    )
    assert scores(bare, TEXTS) == scores(asked, TEXTS)


LONG = " ".join(f"The cat number {number} sings over the river." for number in range(60))


def test_the_worst_window_of_a_long_response_counts(checkpoints):
    detector = TransformersDetector(
        checkpoints / "llama", polarity="harm", max_tokens=64, overlap=16, threshold=0.5, **CPU
    )
    windows = detector.encoder.encode(None, [LONG])
    assert len(windows) > 5
    model = plain_model(checkpoints / "llama")
    with torch.inference_mode():
        each = [float(sigmoid(model(torch.tensor([w.ids])).logits[0].double().numpy())[0]) for w in windows]
    [verdict] = detector.detect([Exchange(response=LONG)])
    assert verdict.score == pytest.approx(max(each), abs=1e-5)
    assert max(each) > 0.5 > min(each), "windows that all score alike would hide a mistake"
    assert all(LONG[start:end] for start, end in verdict.spans)
    shown = {index for start, end in verdict.spans for index in range(start, end)}
    for window, score in zip(windows, each, strict=True):
        if score >= 0.5:
            assert shown.issuperset(range(window.start, window.end))


def test_reasoning_and_tool_calls_count_too(checkpoints):
    detector = TransformersDetector(checkpoints / "llama", polarity="harm", **CPU)
    mildest, *_, worst = sorted(TEXTS, key=lambda text: scores(detector, [text])[0])
    [highest] = scores(detector, [worst])
    [reasoned] = detector.detect([Exchange(response=mildest, reasoning=worst)])
    assert reasoned.score == pytest.approx(highest)
    call = ToolCall(name="sing", arguments='{"song": "blue"}')
    [called] = detector.detect([Exchange(response=mildest, tool_calls=(call,))])
    assert called.score == pytest.approx(max(scores(detector, [mildest, 'sing: {"song": "blue"}'])))
    assert scores(detector, [mildest])[0] < highest - 0.1
    assert not any(start >= len(mildest) for start, _ in reasoned.spans), "spans are of the response"


@pytest.mark.parametrize("text", ["", " ", "\ud800", "\x00", "</s>", "<s>" * 5, "🐈" * 400])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_any_text_gets_a_score(checkpoints, name, text):
    [score] = scores(TransformersDetector(checkpoints / name, polarity="harm", **CPU), [text])
    assert 0 <= score <= 1


def test_no_exchanges_no_verdicts(checkpoints):
    assert TransformersDetector(checkpoints / "llama", polarity="harm", **CPU).detect([]) == []


# Within the guard ----------------------------------------------------------------------


async def test_a_protector_acts_on_its_verdicts(checkpoints):
    detector = TransformersDetector(checkpoints / "adapter", base=checkpoints / "base", polarity="safe", **CPU)
    expected = scores(detector, TEXTS)
    middle = float(np.median(expected))
    protector = Protector(detector=detector, detoxifier="refuse", policy=Policy(threshold=middle))
    exchanges = [Exchange(response=text) for text in TEXTS]
    for outcomes in (protector.guard(exchanges), await protector.aguard(exchanges)):
        assert [o.action for o in outcomes] == ["refuse" if score >= middle else "pass" for score in expected]
        assert all(o.text == o.exchange.response for o in outcomes if o.action == "pass")
        assert {o.verdict.detector for o in outcomes} == {detector.name}


def test_a_category_has_a_threshold_of_its_own(tmp_path):
    folder = bert_classifier(tmp_path / "model", labels=3)
    change_json(folder / "config.json", id2label={0: "safe", 1: "privacy", 2: "hate"}, label2id=None)
    detector = TransformersDetector(folder, harmful_labels=["privacy", "hate"], **CPU)
    policy = Policy(threshold={"default": 1.0, "privacy": 0.0}, on_harm="refuse")
    [outcome] = Protector(detector=detector, policy=policy).guard([Exchange(response=TEXTS[0])])
    assert outcome.action == "refuse"


def test_a_copy_judges_alike(checkpoints):
    detector = TransformersDetector(checkpoints / "adapter", base=checkpoints / "base", polarity="safe", **CPU)
    copied = pickle.loads(pickle.dumps(detector))
    assert (copied.name, copied.settings) == (detector.name, detector.settings)
    assert scores(copied, TEXTS) == scores(detector, TEXTS)


# Names and hashes ----------------------------------------------------------------------


def test_name_and_hashes_tell_the_weights(checkpoints, copied):
    first = TransformersDetector(checkpoints / "adapter", base=checkpoints / "base", polarity="safe", **CPU)
    assert first.name.startswith("transformers:adapter@") and len(first.name.partition("@")[2]) == 12
    told = weights_of(first)
    assert told["adapter_model.safetensors"] == sha256_of(checkpoints / "adapter" / "adapter_model.safetensors")
    assert told["base/model.safetensors"] == sha256_of(checkpoints / "base" / "model.safetensors")
    assert {"adapter_config.json", "base/config.json", "base/tokenizer.json"} <= set(told)
    other = detector_adapter(copied("adapter"), checkpoints / "base")
    change_json(other / "adapter_config.json", lora_alpha=16)
    second = TransformersDetector(other, base=checkpoints / "base", polarity="safe", **CPU)
    assert first.name != second.name


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with two repositories, and no way out."""
    from huggingface_hub import constants

    for name, source in (("somebody/detector", "adapter"), ("somebody/llama-of-width-32", "base")):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(checkpoints / source, folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_from_the_cache_of_the_hub(checkpoints, hub, revision):
    detector = TransformersDetector("somebody/detector", polarity="safe", revision=revision, **CPU)
    assert detector.name == f"transformers:somebody/detector@{COMMIT[:12]}"
    local = TransformersDetector(checkpoints / "adapter", base=checkpoints / "base", polarity="safe", **CPU)
    assert scores(detector, TEXTS) == scores(local, TEXTS)


def test_a_preset_can_be_read_from_folders(checkpoints):
    detector = TransformersDetector.from_preset(
        "paper-3b", model=checkpoints / "adapter", base=checkpoints / "base", **CPU
    )
    logits = plain_logits(checkpoints / "base", TEXTS, adapter=checkpoints / "adapter", num_labels=1)
    assert scores(detector, TEXTS) == pytest.approx(sigmoid(-logits[:, 0]), abs=1e-5)


def test_a_preset_is_loaded_once(monkeypatch):
    made = []
    monkeypatch.setattr(TransformersDetector, "from_preset", classmethod(lambda _cls, name: made.append(name) or name))
    monkeypatch.setattr("protector_guardrails.detectors.transformers._SHARED", {})
    assert [TransformersDetector.shared("paper-3b") for _ in range(2)] == ["paper-3b", "paper-3b"]
    assert made == ["paper-3b"]


def test_an_adapter_pins_the_revision_of_its_base(hub):
    [folder] = (hub / "models--somebody--detector" / "snapshots").iterdir()
    change_json(folder / "adapter_config.json", revision="v7")
    with pytest.raises(WeightsError, match="llama-of-width-32 at revision v7 is not in the hub's cache"):
        TransformersDetector("somebody/detector", polarity="safe", **CPU)
    TransformersDetector("somebody/detector", polarity="safe", base_revision="main", **CPU)


def test_shards(tmp_path):
    folder = llama_classifier(tmp_path / "model")
    whole = scores(TransformersDetector(folder, polarity="harm", **CPU), TEXTS)
    model = plain_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(str(folder), max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    detector = TransformersDetector(folder, polarity="harm", **CPU)
    assert scores(detector, TEXTS) == whole
    assert len([name for name in detector.weights_sha256 if name.endswith(".safetensors")]) > 1


def test_a_tokenizer_of_sentencepiece_alone(tmp_path):
    """As OpenLLaMA has it: tokenizer.model, and nothing in the form of tokenizers."""
    from io import BytesIO

    spm = pytest.importorskip("sentencepiece")
    folder = llama_classifier(tmp_path / "model")
    for path in folder.glob("*token*"):
        path.unlink()
    written = BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=written,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "add_eos_token": false, "bos_token": "<s>",'
        ' "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 2048}'
    )
    processor = spm.SentencePieceProcessor(model_proto=written.getvalue())
    encoder = TransformersDetector(folder, polarity="harm", **CPU).encoder
    for text in [*TEXTS, "two  spaces and   three", "a\n\nb\t c", "</s> is text"]:
        [window] = encoder.encode(None, [text])
        assert list(window.ids) == [processor.bos_id(), *processor.encode(text)]


def test_a_base_without_a_head_is_no_news(checkpoints, caplog, capsys):
    TransformersDetector(checkpoints / "adapter", base=checkpoints / "base", polarity="safe", **CPU)
    printed = capsys.readouterr()
    assert "newly initialized" not in caplog.text + printed.err + printed.out


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, None])
def test_device_maps(checkpoints, device_map):
    options = {"base": checkpoints / "base", "polarity": "safe", "dtype": "float32"}
    placed = TransformersDetector(checkpoints / "adapter", device_map=device_map, **options)
    expected = TransformersDetector(checkpoints / "adapter", device_map="cpu", **options)
    assert scores(placed, TEXTS) == pytest.approx(scores(expected, TEXTS), abs=1e-4)
