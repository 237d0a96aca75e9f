"""Windows: that they cover a text, say where they come from, and are pooled as in training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from protector_guardrails.detectors.encoding import (
    PairEncoder,
    Window,
    pad_windows,
    pool_logits,
    printable,
    window_bounds,
)

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "sep", *"abcdefg", *(f"##{letter}" for letter in "abcdefg")]
CLS, SEP, UNK = 2, 3, 1


def tokenizer(*, vocabulary: list[str] = VOCABULARY) -> Tokenizer:
    ids = {token: number for number, token in enumerate(vocabulary)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([token for token in vocabulary if token.isupper()])
    return made


def encoder(*, max_tokens: int = 12, question_tokens: int = 4, overlap: int = 2) -> PairEncoder:
    return PairEncoder(tokenizer(), max_tokens=max_tokens, question_tokens=question_tokens, overlap=overlap)


def test_many_texts_at_once_are_encoded_as_each_alone() -> None:
    pairs = [("ab" * (n % 3), ["abc [SEP] " * n, "g" * n]) for n in range(12)]
    assert encoder().encode(pairs) == [encoder().encode([pair])[0] for pair in pairs]


# Cutting -------------------------------------------------------------------------------


@given(st.data())
def test_windows_cover_everything_overlap_and_never_nest(data: st.DataObject) -> None:
    length = data.draw(st.integers(0, 300))
    size = data.draw(st.integers(1, 40))
    overlap = data.draw(st.integers(0, size - 1))
    bounds = window_bounds(length, size=size, overlap=overlap)

    # Oracle: step through the tokens and stop at the first window that reaches the end.
    expected, start = [(0, min(size, length))], 0
    while expected[-1][1] < length:
        start += size - overlap
        expected.append((start, min(start + size, length)))
    assert bounds == expected

    assert {token for start, end in bounds for token in range(start, end)} == set(range(length))
    for (start, end), (next_start, next_end) in pairwise(bounds):
        assert end - next_start == overlap
        assert start < next_start
        assert end < next_end
        assert end - start == size


@pytest.mark.parametrize(("size", "overlap"), [(4, 4), (4, 5), (4, -1), (0, 0)])
def test_an_overlap_that_never_ends_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        window_bounds(10, size=size, overlap=overlap)


@given(st.text(st.characters()))
def test_what_cannot_be_encoded_is_replaced_one_for_one(text: str) -> None:
    result = printable(text)
    result.encode("utf-8")
    assert len(result) == len(text)
    assert all(new == old or "\ud800" <= old <= "\udfff" for new, old in zip(result, text, strict=True))


# Encoding --------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["a", "abc", "gg", "É", "𝕏", "漢字", "\ud800", "...", "👍"]), max_size=60)
SPACES = st.sampled_from([" ", "  ", "\n", "\u00a0"])


def blank(text: str) -> bool:
    """Whether there is nothing to read: the normaliser drops what stands for a lone surrogate."""
    return not text.replace("\ud800", "").strip()


@given(words=WORDS, space=SPACES, question=st.sampled_from([None, "", "a b", "a b c d e f g"]))
def test_windows_point_at_the_characters_they_were_cut_from(words: list[str], space: str, question: str | None) -> None:
    text = space.join(words)
    pair_encoder = encoder()
    [windows] = pair_encoder.encode([(question, [text])])
    assert windows
    ends = [0]
    for window in windows:
        assert window.passage == 0
        prefix, piece = window.ids[: window.question_length], window.ids[window.question_length : -1]
        assert (prefix[0], prefix[-1], window.ids[-1]) == (CLS, SEP, SEP)
        assert len(window.ids) <= pair_encoder.max_tokens
        # Nothing but space between what the windows so far have covered and where this one starts.
        assert blank(text[max(ends) : window.start])
        # A piece that starts or ends inside a word reads differently on its own.
        if blank(text[: window.start][-1:]) and blank(text[window.end : window.end + 1]):
            cut = printable(text[window.start : window.end])
            assert tuple(pair_encoder.tokenizer.encode(cut, add_special_tokens=False).ids) == piece
        ends.append(window.end)
    assert blank(text[max(ends) :])


def test_a_window_is_question_and_piece() -> None:
    [[window]] = encoder().encode([("a b", ["\ud800c 漢 dd\ud800"])])
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    assert window.ids == (CLS, ids["a"], ids["b"], SEP, ids["c"], UNK, ids["d"], ids["##d"], SEP)
    assert (window.question_length, window.start, window.end) == (4, 1, 7)


def test_offsets_count_characters_not_bytes() -> None:
    [windows] = encoder(question_tokens=0, max_tokens=5, overlap=0).encode([(None, ["𝕏 é a b c"])])
    assert [(window.start, window.end) for window in windows] == [(0, 3), (4, 7), (8, 9)]


@pytest.mark.parametrize(
    ("limit", "kept"), [(0, ""), (1, "g"), (2, "a g"), (3, "a f g"), (4, "a b f g"), (7, "a b c d e f g")]
)
def test_a_long_question_keeps_its_two_ends(limit: int, kept: str) -> None:
    [[window]] = encoder(question_tokens=limit, max_tokens=20).encode([("a b c d e f g", ["a"])])
    assert [VOCABULARY[number] for number in window.ids[1 : window.question_length - 1]] == kept.split()


def test_a_very_long_question_is_shortened_the_same_way() -> None:
    question = "a " + "b " * 50_000 + "c"
    [[window]] = encoder().encode([(question, ["a"])])
    assert [VOCABULARY[number] for number in window.ids[1:5]] == ["a", "b", "b", "c"]


@pytest.mark.parametrize("response", ["", "  \n", "\x00"])
def test_an_empty_response_is_one_window_without_a_piece(response: str) -> None:
    assert encoder().encode([(None, [response]), ("a", [response])]) == [
        [Window(ids=(CLS, SEP, SEP), question_length=2, passage=0, start=0, end=0)],
        [Window(ids=(CLS, 7, SEP, SEP), question_length=3, passage=0, start=0, end=0)],
    ]


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b c"]), st.lists(st.text("ab \ud800"), min_size=1, max_size=3))))
def test_a_batch_is_encoded_as_its_items_are(pairs: list[tuple[str | None, list[str]]]) -> None:
    pair_encoder = encoder()
    batch = pair_encoder.encode(pairs)
    assert batch == [pair_encoder.encode([pair])[0] for pair in pairs]
    for (_, passages), windows in zip(pairs, batch, strict=True):
        assert [window.passage for window in windows] == sorted(window.passage for window in windows)
        assert {window.passage for window in windows} == set(range(len(passages)))


def test_a_response_cannot_end_itself_with_a_special_token() -> None:
    [[window]] = encoder(max_tokens=30).encode([("[CLS]", ["[SEP] a [PAD]"])])
    assert window.ids[0] == CLS
    assert [number for number in window.ids if number in (0, CLS, SEP)] == [CLS, SEP, SEP]
    assert VOCABULARY.index("sep") in window.ids


def test_a_tokenizer_with_a_template_and_padding_is_used_without_them() -> None:
    own = tokenizer()
    own.enable_padding(length=50)
    own.enable_truncation(3)
    [[window]] = PairEncoder(own, max_tokens=20, question_tokens=4, overlap=2).encode([(None, ["a b c d e"])])
    assert len(window.ids) == 8


def test_a_tokenizer_without_the_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[SEP\]"):
        PairEncoder(tokenizer(vocabulary=["[UNK]", "[CLS]", "a"]))


@pytest.mark.parametrize(
    ("max_tokens", "question_tokens", "overlap"), [(64, 64, 0), (96, 64, 29), (96, -1, 0), (96, 64, -1)]
)
def test_windows_without_room_for_a_piece_are_refused_at_once(
    max_tokens: int, question_tokens: int, overlap: int
) -> None:
    with pytest.raises(ValueError, match="no room"):
        encoder(max_tokens=max_tokens, question_tokens=question_tokens, overlap=overlap)


def test_the_tightest_windows_work() -> None:
    [windows] = encoder(max_tokens=8, question_tokens=4, overlap=0).encode([("a b c d", ["a b c"])])
    assert [len(window.ids) for window in windows] == [8, 8, 8]


# Arrays ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=6), st.integers(0, 3))
def test_padding_says_what_is_question_piece_and_nothing(lengths: list[tuple[int, int]], pad_id: int) -> None:
    windows = [
        Window(ids=tuple(range(10, 12 + q + p)), question_length=q + 1, passage=0, start=0, end=0) for q, p in lengths
    ]
    arrays = pad_windows(windows, pad_id=pad_id)
    longest = max(len(window.ids) for window in windows)
    for row, window in enumerate(windows):
        length, rest = len(window.ids), longest - len(window.ids)
        assert arrays["input_ids"][row].tolist() == [*window.ids, *[pad_id] * rest]
        assert arrays["attention_mask"][row].tolist() == [1] * length + [0] * rest
        assert arrays["token_type_ids"][row].tolist() == (
            [0] * window.question_length + [1] * (length - window.question_length) + [0] * rest
        )
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


# Pooling ---------------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20)


@given(LOGITS)
def test_the_pooled_logit_lies_between_mean_and_largest(logits: list[float]) -> None:
    pooled = pool_logits(np.array(logits))
    assert pooled <= max(logits)
    assert pooled >= np.mean(logits) - 1e-9


@given(st.floats(-30, 30), st.integers(1, 50))
def test_a_long_answer_is_not_suspect_for_its_length(logit: float, count: int) -> None:
    assert pool_logits(np.full(count, logit)) == pytest.approx(logit, abs=1e-12)
    assert pool_logits(np.full(count, logit)) <= logit


def test_one_harmful_window_decides() -> None:
    assert pool_logits(np.array([6.0, *[-6.0] * 20])) > 5.9


@given(st.lists(LOGITS, min_size=1, max_size=6), st.randoms())
def test_training_pools_as_inference_does(exchanges: list[list[float]], rng: object) -> None:
    torch = pytest.importorskip("torch")
    from protector_guardrails.training.model import pool_windows

    flat = [(logit, owner) for owner, logits in enumerate(exchanges) for logit in logits]
    rng.shuffle(flat)  # type: ignore[attr-defined]
    pooled = pool_windows(
        torch.tensor([logit for logit, _ in flat], dtype=torch.float64),
        torch.tensor([owner for _, owner in flat]),
        exchanges=len(exchanges),
    )
    assert pooled.tolist() == pytest.approx([pool_logits(np.array(logits)) for logits in exchanges], abs=1e-9)
