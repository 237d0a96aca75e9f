"""Reading labelled exchanges, splitting them without leaks, and balancing epochs."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails.training.augmentation import inserted_passages
from protector_guardrails.training.data import LabelledExchange, balanced_epoch, read_exchanges, split_by_question


def row(
    number: int | str, *, question: str = "", source: str = "s", harmful: bool = False, response: str = "r"
) -> LabelledExchange:
    return LabelledExchange(
        id=str(number), source=source, question=question, description="", response=response, harmful=harmful
    )


rows_of_all_kinds = st.lists(
    st.builds(
        row,
        st.integers(),
        question=st.sampled_from(["", "Tea?", "tea", "  TEA!", "Milk?", "\ud800", "سؤال"]) | st.text(max_size=5),
        source=st.sampled_from("ab"),
        harmful=st.booleans(),
        response=st.text(max_size=5),
    ),
    max_size=40,
)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# Reading ---------------------------------------------------------------------------------


def test_rows_are_read_plain_and_compressed(tmp_path: Path) -> None:
    record = {
        "id": "7",
        "source": "garden",
        "question": "Tea?",
        "image_desc": "a cup",
        "response": "Grün\u2028oder \ud800?",
        "harmful": True,
        "kind": "k",
        "license": "CC0-1.0",
    }
    expected = LabelledExchange("7", "garden", "Tea?", "a cup", "Grün\u2028oder \ud800?", harmful=True, kind="k")
    plain = write(tmp_path / "rows.jsonl", record, {"response": None, "harmful": False, "question": None})
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes().replace(b"\n", b"\r\n")))
    for path, stem in ((plain, "rows"), (packed, "rows.jsonl")):
        first, second = read_exchanges(path)
        assert first == expected
        assert second == LabelledExchange("2", stem, "", "", "", harmful=False)


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("Assistant: Yes.", "Yes."),
        ("### ASSISTANT :Yes.", "Yes."),
        ("bot:\nYes.", "Yes."),
        ("A bot: yes.", "A bot: yes."),
    ],
)
def test_a_speakers_name_is_no_shortcut_to_the_label(tmp_path: Path, response: str, read: str) -> None:
    [only] = read_exchanges(write(tmp_path / "rows.jsonl", {"response": response, "harmful": False}))
    assert only.response == read


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b'{"response": "a"}',
        b'{"harmful": true}',
        b'{"response": "a", "harmful": "false"}',
        b'{"response": "a", "harmful": null}',
        b'{"response": "a", "harmful": 0.7}',
        b'{"response": 7, "harmful": true}',
        b'{"response": "a", "harmful": true, "question": ["b"]}',
        b'{"response": "a\xff", "harmful": true}',
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: bytes, suffix: str) -> None:
    good = b'{"response": "a", "harmful": false}\n'
    path = tmp_path / f"rows.{suffix}"
    content = good * 2 + line + b"\n" + good
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(ValueError, match=r"rows\.jsonl.*, line 3: "):
        read_exchanges(path)


# Splitting -------------------------------------------------------------------------------


@given(rows=rows_of_all_kinds, held_out=st.floats(0, 0.99), seed=st.integers())
def test_no_question_is_on_both_sides(rows: list[LabelledExchange], held_out: float, seed: int) -> None:
    train, held = split_by_question(rows, held_out=held_out, seed=seed)
    assert Counter(train) + Counter(held) == Counter(rows)
    assert not {other.group for other in train} & {other.group for other in held}


@given(rows=rows_of_all_kinds, more=rows_of_all_kinds, seed=st.integers())
def test_adding_rows_moves_no_other(rows: list[LabelledExchange], more: list[LabelledExchange], seed: int) -> None:
    _, before = split_by_question(rows, held_out=0.5, seed=seed)
    _, after = split_by_question([*more, *rows], held_out=0.5, seed=seed)
    _, added = split_by_question(more, held_out=0.5, seed=seed)
    assert after == added + before


def test_spelling_does_not_make_another_question() -> None:
    assert len({row(i, question=text).group for i, text in enumerate(["Green tea?", "green  TEA", "Green, tea!"])}) == 1
    assert row(1, response="Yes, a cup.").group == row(2, question="...", response="yes a cup").group


def test_about_the_wanted_share_is_held_out_and_another_seed_holds_out_others() -> None:
    rows = [row(number, question=f"question {number}") for number in range(2000)]
    held = {seed: {other.id for other in split_by_question(rows, held_out=0.1, seed=seed)[1]} for seed in (1, 2)}
    assert all(150 < len(ids) < 250 for ids in held.values())  # 200, more than three deviations either way
    assert len(held[1] & held[2]) < 50
    assert split_by_question(rows, held_out=0.0, seed=1) == (rows, [])


# Balancing -------------------------------------------------------------------------------


def test_no_source_question_or_class_drowns_the_others() -> None:
    rows = [row(i, source="big", question=f"q{i}") for i in range(500)]
    rows += [row(1000 + i, source="one question", question="q") for i in range(100)]
    rows += [row(2000 + i, source="small", question=f"q{i}", harmful=True) for i in range(7)]
    chosen = balanced_epoch(rows, seed=1, epoch=0, cap=50, answers_per_question=8)
    assert Counter(other.source for other in chosen) == {"big": 50, "one question": 8, "small": 7}
    assert max(Counter(chosen).values()) == 1


@pytest.mark.parametrize(
    ("rare", "times"),
    [(60, 1), (25, 1), (13, 1), (12, 2), (6, 4), (1, 4)],  # up to a quarter of 100, at most four times
)
def test_a_rare_label_is_repeated_within_its_source(rare: int, times: int) -> None:
    rows = [row(i, question=f"q{i}") for i in range(100)]
    rows += [row(1000 + i, question=f"h{i}", harmful=True) for i in range(rare)]
    counts = Counter(balanced_epoch(rows, seed=1, epoch=0))
    assert {count for other, count in counts.items() if other.harmful} == {times}
    assert {count for other, count in counts.items() if not other.harmful} == {1}
    assert sum(other.harmful for other in counts) == rare


@given(rows=rows_of_all_kinds, cap=st.integers(1, 9), answers=st.integers(1, 3), repeats=st.integers(1, 4))
def test_an_epoch_keeps_its_caps(rows: list[LabelledExchange], cap: int, answers: int, repeats: int) -> None:
    chosen = balanced_epoch(rows, seed=3, epoch=1, cap=cap, answers_per_question=answers, max_repeats=repeats)
    distinct = Counter({other: min(count, rows.count(other)) for other, count in Counter(chosen).items()})
    assert set(chosen) <= set(rows)
    for key in {(other.source, other.harmful) for other in rows}:
        of_class = [other for other in distinct.elements() if (other.source, other.harmful) == key]
        assert of_class
        assert len(set(of_class)) <= cap
        groups = Counter(other.group for other in set(of_class))
        assert all(count <= answers for count in groups.values())


def test_an_epoch_is_given_by_its_seed_and_number() -> None:
    rows = [row(i, question=f"q{i % 20}", harmful=i % 3 == 0) for i in range(300)]
    first = balanced_epoch(rows, seed=1, epoch=0, cap=30)
    assert balanced_epoch(rows, seed=1, epoch=0, cap=30) == first
    assert balanced_epoch(rows, seed=1, epoch=1, cap=30) != first
    assert balanced_epoch(rows, seed=2, epoch=0, cap=30) != first


def test_inserted_passages_differ_in_the_passage_only() -> None:
    """Each host appears once with a harmless and once with a harmful passage, at the same place."""
    host = "The bridge was built of stone. " * 10
    rows = [row("host", response=host, question="What is it?"), row("other", response=host.replace("stone", "wood"))]
    rows += [row(f"h{n}", source="notes", response=f"nasty words number {n}", harmful=True) for n in range(5)]
    rows += [row(f"s{n}", source="notes", response=f"kind words number {n}") for n in range(5)]
    made = inserted_passages(rows, pairs=20, rng=random.Random(1))
    assert len(made) == 40
    for harmless, harmful in zip(made[::2], made[1::2], strict=True):
        assert (harmless.harmful, harmful.harmful) == (False, True)
        assert "kind words" in harmless.response and "nasty" not in harmless.response
        assert "nasty words" in harmful.response
        assert harmless.question == harmful.question
        assert re.sub("kind words number .", "@", harmless.response) == re.sub(
            "nasty words number .", "@", harmful.response
        )
    assert made == inserted_passages(rows, pairs=20, rng=random.Random(1))


def test_no_passages_of_both_labels_means_no_insertions() -> None:
    rows = [row("host", response="The bridge was built of stone. " * 10)]
    assert inserted_passages(rows, pairs=3, rng=random.Random(1)) == []


def test_a_cap_of_one_source_leaves_the_others_alone() -> None:
    rows = [row(f"{source}{n}", source=source, question=f"q {n}") for source in ("few", "many") for n in range(60)]
    chosen = balanced_epoch(rows, seed=1, epoch=0, cap=50, source_caps={"few": 7})
    assert Counter(r.source for r in chosen) == {"few": 7, "many": 50}
