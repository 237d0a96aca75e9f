"""Writing token by token, against plain loops that compute the same without cache, padding or libraries."""

from __future__ import annotations

import time

import pytest
import torch
from tiny_language_model import write_tiny_base
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from protector_guardrails.detoxifiers.fast_decoding import fits
from protector_guardrails.detoxifiers.generation import Written, generate, whole_sentences
from protector_guardrails.detoxifiers.int8 import Int8Linear, quantize_linears

PROMPTS = [[5, 9, 30, 200], [7] * 40, [11, 12], list(range(20, 90))]
FAR = 10**12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_base(tmp_path_factory.mktemp("model") / "base")
    return LlamaForCausalLM.from_pretrained(str(folder)).eval()


def greedy(model, prompt: list[int], count: int, ends: set[int]) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


def write(model, prompts, *, ends=frozenset({2}), count=25, deadline=FAR, **options) -> list[Written]:
    return generate(
        model, prompts, end_ids=ends, pad_id=2, max_new_tokens=count, deadline=deadline, threads=1, **options
    )


def test_a_padded_batch_is_written_as_one_by_one_without_a_cache(model):
    expected = [greedy(model, prompt, 25, {2}) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in expected}) > 1
    written = write(model, PROMPTS)
    assert [each.ids for each in written] == [[token for token in ids if token != 2] for ids in expected]
    assert [write(model, [prompt])[0] for prompt in PROMPTS] == written


def test_each_stops_at_its_own_end(model):
    free = [greedy(model, prompt, 25, set()) for prompt in PROMPTS]
    ends = {free[0][3], free[1][7]}  # tokens that come early in some and late or never in others
    for each, ids in zip(write(model, PROMPTS, ends=ends), free, strict=True):
        stop = next((i for i, token in enumerate(ids) if token in ends), None)
        assert each == (Written(ids, "cut") if stop is None else Written(ids[:stop], "complete"))


def test_the_limit_counts_new_tokens_only(model):
    assert [len(each.ids) for each in write(model, PROMPTS, ends={399}, count=7)] == [7] * 4


def test_time_ends_it_between_two_tokens(model):
    [each] = write(model, [[5, 9]], ends={399}, count=1900, deadline=time.monotonic() + 0.05)
    assert each.end == "time"
    assert 0 < len(each.ids) < 1900


def test_no_run_of_tokens_comes_back_where_that_is_forbidden(model):
    [each] = write(model, [[7] * 40], ends={399}, count=60, no_repeat_ngram_size=3)
    ids = [7] * 40 + each.ids
    new = [tuple(ids[i : i + 3]) for i in range(38, len(ids) - 2)]
    assert len(set(new)) == len(new) == 60


def test_a_models_own_settings_do_not_matter(model):
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    try:
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig()  # as loading does
        assert write(model, PROMPTS[:1])[0].ids == [t for t in greedy(model, PROMPTS[0], 25, {2}) if t != 2]
    finally:
        model.generation_config = GenerationConfig()


# 8 bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (36, 10), (7, 3)])
def test_a_layer_of_8_bits_is_near_to_the_one_it_stands_for(rows, bias, inputs, outputs):
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(2, rows, inputs)[:1] if rows > 16 else torch.randn(rows, inputs)
    expected = linear(x).detach()
    for dtype, tolerance in ((torch.float32, 0.02), (torch.bfloat16, 0.05)):
        small = Int8Linear(linear).to(dtype)
        assert small.weight.dtype == torch.int8
        found = small(x.to(dtype))
        assert found.dtype == dtype
        assert found.shape == expected.shape
        assert (found.float() - expected).abs().max() < tolerance


def test_a_layer_of_zeros_stays_one():
    linear = nn.Linear(16, 16, bias=False)
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.randn(3, 16)), torch.zeros(3, 16))


def test_a_row_does_not_depend_on_its_neighbours():
    layer = Int8Linear(nn.Linear(64, 64)).to(torch.bfloat16)
    quiet, loud = torch.randn(1, 64).bfloat16(), 1000 * torch.randn(1, 64).bfloat16()
    assert torch.equal(layer(torch.cat([quiet, loud]))[:1], layer(quiet))


def test_every_linear_layer_is_replaced_and_the_weights_take_a_quarter(tmp_path):
    model = LlamaForCausalLM.from_pretrained(str(write_tiny_base(tmp_path / "base"))).eval()
    before = sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in [m.weight])
    quantize_linears(model)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    small = [module.weight for module in model.modules() if isinstance(module, Int8Linear)]
    assert sum(weight.numel() * weight.element_size() for weight in small) == before
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


# Cut texts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Ask the owner of it first. Then us", "Ask the owner of it first."),
        ("Ask the owner of it first.", "Ask the owner of it first."),
        ('He said "ask the owner of it first." Then', 'He said "ask the owner of it first."'),
        ("Stop. Then us", ""),
        ("no sentence at all here and it goes on", ""),
        ("This is what helps you:\n1. Ask the owner.\n2.", "This is what helps you:\n1. Ask the owner."),
        ("Ask the owner of it first. Instead:\n", "Ask the owner of it first."),
        ("Ask the owner of it first\n- use the gate\n- ri", "Ask the owner of it first\n- use the gate"),
        ("It costs about 3.5 euros to get in. It is 2.", "It costs about 3.5 euros to get in. It is 2."),
        ("", ""),
    ],
)
def test_what_was_cut_off_ends_with_a_whole_sentence(text, kept):
    assert whole_sentences(text, min_words=5) == kept


@pytest.mark.parametrize("dtype", [torch.float32, "int8"])
def test_the_fast_loop_writes_what_transformers_writes(tmp_path, dtype):
    """An independent computation: the library's own generation, of the same weights."""
    folder = write_tiny_base(tmp_path / "base")
    plain = LlamaForCausalLM.from_pretrained(str(folder)).eval()
    fast = LlamaForCausalLM.from_pretrained(str(folder)).eval()
    assert plain.config.num_key_value_heads < plain.config.num_attention_heads
    if dtype == "int8":
        plain, fast = quantize_linears(plain), quantize_linears(fast)
    assert fits(fast)
    written = write(fast, PROMPTS, ends={399}, count=40)
    slow = write(plain, PROMPTS, ends={399}, count=40, use_cache=True)  # an option of any kind takes the library's way
    assert written == slow
    assert write(fast, PROMPTS, ends={399}, count=40, use_cache=True) == slow  # its weights serve both ways


def test_another_kind_of_model_takes_the_librarys_way():
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=400)).eval()
    assert not fits(other)
    assert [each.ids for each in write(other, [[5, 9]], ends={399}, count=5)] == [greedy(other, [5, 9], 5, {399})]
