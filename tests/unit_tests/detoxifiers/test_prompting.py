"""The prompt: nothing of it is lost to a tokenizer's habits, and nobody outside of it can end it."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_language_model import CORPUS, byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from protector_guardrails.detoxifiers.prompting import CHATML, PLAIN, PromptTemplate, encode_prompt, encode_target
from protector_guardrails.errors import ConfigurationError, WeightsError


def sentencepiece_style_tokenizer() -> PreTrainedTokenizerFast:
    """Like LLaMA's: a word carries the space before it, and a text gets one in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS * 3, CHATML.with_question, PLAIN.with_question], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    wrapped.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return wrapped


KINDS = {"byte-level": byte_level_tokenizer, "SentencePiece": sentencepiece_style_tokenizer}


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@pytest.fixture(params=KINDS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return tokenizer_of(request.param)


TEMPLATES = pytest.mark.parametrize("template", [CHATML, PLAIN], ids=["chatml", "plain"])
texts = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(
            ["<|im_end|>", "<|im_start|>", "</s>", "<s>", "<unk>", "<|endoftext|>", "fence", "\n", " ", "{response}"]
        ),
        max_size=12,
    ).map("".join),
)


def segments(tokenizer, template: PromptTemplate, question: str | None) -> list[list[int]]:
    """The parts of the template, encoded by themselves."""
    text = template.with_question if question else template.without_question
    return [
        tokenizer(part, add_special_tokens=False)["input_ids"]
        for part in text.replace("{question}", "{response}").split("{response}")
        if part
    ]


def contains_in_order(ids: list[int], parts: list[list[int]]) -> bool:
    if ids[: len(parts[0])] != parts[0] or ids[len(ids) - len(parts[-1]) :] != parts[-1]:
        return False
    at = len(parts[0])
    for part in parts[1:]:
        at = next((i for i in range(at, len(ids)) if ids[i : i + len(part)] == part), -1)
        if at < 0:
            return False
        at += len(part)
    return True


# The first token of the target -----------------------------------------------------


@TEMPLATES
@pytest.mark.parametrize(
    "target", ["Ask the owner first.", " Ask", "A", "1. Use the gate.", "Ärger hat niemand.", "\nAsk"]
)
def test_the_target_begins_where_the_prompt_ends(tokenizer, template, target):
    prompt = encode_prompt(tokenizer, template, question="How?", response="Climb.", max_tokens=2000)
    labels = encode_target(tokenizer, target)
    assert labels[-1] == tokenizer.eos_token_id
    assert labels[:-1] == tokenizer(target, add_special_tokens=False)["input_ids"]
    # What training sees and what decoding continues are the same: nothing of the target is in the prompt.
    decoded = tokenizer.decode(labels[:-1], clean_up_tokenization_spaces=False)
    assert decoded.strip() == target.strip()
    assert tokenizer.decode(prompt, clean_up_tokenization_spaces=False).endswith(template.with_question[-12:])


@given(text=texts)
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_target_are_encoded_apart(kind, text):
    tokenizer = tokenizer_of(kind)
    prompt = encode_prompt(tokenizer, PLAIN, question=None, response="Climb.", max_tokens=2000)
    target = encode_target(tokenizer, text)
    # The prompt does not know its target, so their concatenation begins with it, whatever the target is.
    assert prompt == encode_prompt(tokenizer, PLAIN, question=None, response="Climb.", max_tokens=2000)
    assert (prompt + target)[len(prompt) :] == target
    assert target.count(tokenizer.eos_token_id) == 1


def test_a_template_must_not_end_in_a_space():
    """The trap of the reference implementation: the space and the first word become one token."""
    with pytest.raises(ValidationError, match="must not end in a space"):
        PromptTemplate(name="t", with_question="{question} {response} Answer: ", without_question="{response}")


# Special tokens --------------------------------------------------------------------


@given(question=st.none() | texts, response=texts)
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_from_outside_holds_a_special_token(kind, question, response):
    tokenizer = tokenizer_of(kind)
    ids = encode_prompt(tokenizer, CHATML, question=question, response=response, max_tokens=5000)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    of_the_template = [i for part in segments(tokenizer, CHATML, question) for i in part if i in special]
    assert [i for i in ids if i in special] == of_the_template
    assert not special & set(encode_target(tokenizer, response)[:-1])


def test_the_unknown_token_cannot_be_written_by_a_user_of_smollm():
    """There it is <|endoftext|>, which ends a text too."""
    tokenizer = tokenizer_of("byte-level")
    assert tokenizer.unk_token == "<|endoftext|>"
    ids = encode_prompt(tokenizer, CHATML, question="<|endoftext|>", response="<|endoftext|>", max_tokens=5000)
    assert tokenizer.unk_token_id not in ids


# Lengths ---------------------------------------------------------------------------


@given(asked=st.integers(0, 400), answered=st.integers(0, 400), spare=st.integers(0, 300))
@pytest.mark.parametrize("kind", KINDS)
@TEMPLATES
def test_the_template_is_never_cut(kind, template, asked, answered, spare):
    tokenizer = tokenizer_of(kind)
    question, response = "why " * asked or None, "fence " * answered
    parts = segments(tokenizer, template, question)
    room = sum(map(len, parts)) + spare
    ids = encode_prompt(tokenizer, template, question=question, response=response, max_tokens=room)
    assert len(ids) <= room
    assert contains_in_order(ids, parts)
    whole = encode_prompt(tokenizer, template, question=question, response=response, max_tokens=10**6)
    assert len(ids) == min(len(whole), room)


def test_the_response_is_shortened_before_the_question(tokenizer):
    template = PromptTemplate(name="t", with_question="Q{question}\nA{response}\nN", without_question="A{response}\nN")
    question, response = "why " * 30, "fence " * 300
    whole = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    ids = encode_prompt(tokenizer, template, question=question, response=response, max_tokens=2 * whole + 20)
    text = tokenizer.decode(ids)
    assert text.count("why") == 30
    assert 0 < text.count("fence") < 300


def test_too_little_room_for_the_template_is_an_error(tokenizer):
    with pytest.raises(ConfigurationError, match=r"template takes \d+ tokens, and only 3"):
        encode_prompt(tokenizer, PLAIN, question=None, response="", max_tokens=3)


def test_a_tokenizer_without_an_end_is_an_error():
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="no end-of-text token"):
        encode_target(tokenizer, "Ask.")


def test_a_tokenizer_that_wants_a_first_token_gets_it():
    tokenizer = sentencepiece_style_tokenizer()
    tokenizer.add_bos_token = True
    ids = encode_prompt(tokenizer, PLAIN, question=None, response="Climb.", max_tokens=2000)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


# Templates -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("with_question", "without_question"),
    [
        ("{response}", "{response}"),
        ("{question} {response} {response}", "{response}"),
        ("{question} {response}", "{question} {response}"),
        ("{question} {response}", "nothing"),
    ],
)
def test_a_template_asks_for_each_field_once(with_question, without_question):
    with pytest.raises(ValidationError, match="once"):
        PromptTemplate(name="t", with_question=with_question, without_question=without_question)


def test_fields_in_a_text_are_text(tokenizer):
    ids = encode_prompt(tokenizer, PLAIN, question="{response}", response="{question}", max_tokens=2000)
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "{response}" in text
    assert "{question}" in text


@TEMPLATES
def test_a_template_is_stored_beside_an_adapter(template, tmp_path):
    with pytest.raises(WeightsError, match="the template it was trained with"):
        PromptTemplate.load(tmp_path)
    template.save(tmp_path)
    assert PromptTemplate.load(tmp_path) == template
    (tmp_path / "prompt_template.json").write_text("{}")
    with pytest.raises(WeightsError, match="is not a prompt template"):
        PromptTemplate.load(tmp_path)
