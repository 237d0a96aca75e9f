"""How texts become windows of tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import TEXTS, tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from protector_guardrails.detectors.templates import Template, TextEncoder
from protector_guardrails.errors import ConfigurationError

KINDS = ("llama", "llama-eos", "bert")
words = st.text(max_size=400) | st.lists(st.sampled_from(TEXTS), max_size=8).map(" ".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in KINDS:
        tokenizer(folder / kind, kind=kind)
    return {kind: folder / kind for kind in KINDS}


def encoder(folder: Path, template: str = "response", *, max_tokens: int = 10_000, overlap: int = 8) -> TextEncoder:
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return TextEncoder(tokens, Template.parse(template), max_tokens=max_tokens, overlap=overlap)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(question=words, response=words)
def test_what_fits_is_tokenised_as_the_library_does_it(folders, kind, question, response):
    [window] = encoder(folders[kind], "question+response").encode(question, [response])
    text = f"Question: {question}\n\nAnswer: {response}" if question else response
    plain = AutoTokenizer.from_pretrained(str(folders[kind]))(text, split_special_tokens=True)["input_ids"]
    assert list(window.ids) == plain
    assert (window.start, window.end) == (0, len(response))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(question=words, response=words, max_tokens=st.integers(60, 90))
def test_every_token_of_a_response_is_in_a_window_and_no_window_is_too_long(
    folders, kind, question, response, max_tokens
):
    cut = encoder(folders[kind], "question+response", max_tokens=max_tokens)
    windows = cut.encode(question, [response])
    assert all(len(window.ids) <= max_tokens for window in windows)
    assert all(window.ids[: len(cut.first)] == cut.first for window in windows)
    assert all(window.ids[len(window.ids) - len(cut.last) :] == cut.last for window in windows)
    # Some characters give no token (a tokenizer drops white space and controls), so tokens are what is counted.
    text = f"Question: {question}\n\nAnswer: {response}" if question else response
    begin = len(text) - len(response)
    shown = {index for window in windows for index in range(window.start, window.end)}
    for start, end in cut.tokenizer.encode(text, add_special_tokens=False).offsets:
        assert shown.issuperset(range(max(start - begin, 0), end - begin))
    [whole] = encoder(folders[kind], "question+response").encode(question, [response])
    assert {token for window in windows for token in window.ids} <= set(whole.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_repeat_the_template_and_the_ends_of_the_question(folders, kind):
    question = "first words " + "and more " * 200 + "the last"
    cut = encoder(folders[kind], "question+response", max_tokens=72, overlap=4)
    windows = cut.encode(question, [" ".join(TEXTS * 3)])
    assert len(windows) > 3
    tokens = Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
    for window in windows:
        text = "".join(tokens.id_to_token(index) for index in window.ids).replace("##", "").replace("▁", "").lower()
        for part in ("question:", "first", "last", "answer:"):
            assert part in text


def test_consecutive_windows_share_tokens(folders):
    cut = encoder(folders["llama"], max_tokens=40, overlap=8)
    windows = cut.encode(None, [" ".join(TEXTS * 3)])
    for before, after in pairwise(windows):
        assert before.ids[-8:] == after.ids[1:9]


def test_each_passage_has_its_windows(folders):
    windows = encoder(folders["llama"]).encode("Where?", [TEXTS[0], "", TEXTS[1]])
    assert [window.passage for window in windows] == [0, 1, 2]
    assert [window.end for window in windows] == [len(TEXTS[0]), 0, len(TEXTS[1])]


def test_special_tokens_are_text_unless_the_template_spells_them(folders):
    plain = encoder(folders["bert"])
    [window] = plain.encode("[SEP]", ["[SEP] [CLS]"])
    assert window.ids.count(3) == window.ids.count(2) == 1
    pair = encoder(folders["bert"], "{question} [SEP] {response}")
    [window] = pair.encode("the river", ["a [SEP] cat"])
    tokens = AutoTokenizer.from_pretrained(str(folders["bert"]), split_special_tokens=True)
    parts = [tokens(text, add_special_tokens=False)["input_ids"] for text in ("the river", "a [SEP] cat")]
    assert list(window.ids) == [2, *parts[0], 3, *parts[1], 3]
    long = pair.encode("the river", [" ".join(TEXTS * 3)])
    assert all(window.ids.count(3) == 2 for window in long)


def test_a_huge_question_costs_little(folders):
    windows = encoder(folders["llama"], "question+response", max_tokens=64).encode("why? " * 10**6, ["Stir the soup."])
    assert len(windows) == 1


def test_templates_need_room(folders):
    with pytest.raises(ConfigurationError, match="no room for a template"):
        encoder(folders["llama"], "question+response", max_tokens=32, overlap=16)
    with pytest.raises(ConfigurationError, match="no room for a template"):
        encoder(folders["llama"], "words " * 60 + "{response}", max_tokens=64)
