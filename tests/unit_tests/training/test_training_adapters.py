"""Files of labelled answers in every form become one kind of record, with one polarity."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_causal import preferences, write_rows

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.training import adapters
from protector_guardrails.training.adapters import (
    Answer,
    Form,
    LabelledAnswers,
    detect_form,
    detox_pairs,
    joined,
    label_counts,
    parse_columns,
    read_labelled,
)
from protector_guardrails.training.refusals import REFUSALS

OWN = {"question": "Tea?", "response": "Yes.", "harmful": False, "source": "kitchen", "license": "CC0-1.0"}
PAIRS = {"question": "Tea?", "harmful_response": "Spill it.", "harmless_response": "Gladly."}
PKU = {
    "prompt": "Tea?",
    "response_0": "Spill it.",
    "response_1": "Gladly.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}
BEAVERTAILS = {"prompt": "Tea?", "response": "Spill it.", "category": {"rudeness": True}, "is_safe": False}
FORMS: dict[Form, dict[str, Any]] = {"own": OWN, "pairs": PAIRS, "pku-saferlhf": PKU, "beavertails": BEAVERTAILS}


def one(question: str, text: str, harmful: bool, source: str = "s") -> LabelledAnswers:
    return LabelledAnswers(question, (Answer(text, harmful),), source, "")


@pytest.mark.parametrize(
    ("form", "answers", "safer"),
    [
        ("own", (Answer("Yes.", False),), None),
        ("pairs", (Answer("Gladly.", False), Answer("Spill it.", True)), 0),
        ("pku-saferlhf", (Answer("Spill it.", True), Answer("Gladly.", False)), 1),
        ("beavertails", (Answer("Spill it.", True),), None),
    ],
)
def test_a_form_is_told_from_its_fields_and_read(tmp_path: Path, form: Form, answers: Any, safer: int | None) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [FORMS[form]])
    for asked in (None, form):
        [record], found = read_labelled(path, form=asked)
        assert found == form
        assert (record.question, record.answers, record.safer) == ("Tea?", answers, safer)
    assert set(FORMS) == set(get_args(Form)), "a form is not tested"


def test_where_rows_come_from_is_kept_for_the_card(tmp_path: Path) -> None:
    own, _ = read_labelled(write_rows(tmp_path / "rows.jsonl", [OWN, OWN]))
    pku, _ = read_labelled(write_rows(tmp_path / "pku.train.jsonl", [PKU]))
    assert label_counts([*own, *pku]) == [
        {"source": "kitchen", "license": "CC0-1.0", "questions": 2, "answers": 2, "harmful": 0},
        {"source": "pku", "license": pku[0].license, "questions": 1, "answers": 2, "harmful": 1},
    ]
    assert pku[0].license.startswith("CC-BY-NC-4.0")


def test_what_images_show_joins_the_question(tmp_path: Path) -> None:
    [record], _ = read_labelled(write_rows(tmp_path / "rows.jsonl", [OWN | {"image_desc": "a cup"}]))
    assert record.question == "Tea?\n[image: a cup]"


def test_gzip_json_and_csv_are_read_as_well(tmp_path: Path) -> None:
    packed, array, table = tmp_path / "a.jsonl.gz", tmp_path / "a.json", tmp_path / "a.csv"
    packed.write_bytes(gzip.compress(json.dumps(PKU).encode()))
    array.write_text(json.dumps([PKU]))
    table.write_text("question,accepted,rejected\nTea?,Gladly.,Spill it.\n")
    expected = {"Gladly.": False, "Spill it.": True}
    columns = {"question": "question", "accepted": "accepted", "rejected": "rejected"}
    for path, options in ((packed, {}), (array, {}), (table, {"columns": columns})):
        [record], _ = read_labelled(path, **options)
        assert {answer.text: answer.harmful for answer in record.answers} == expected


@given(safe=st.tuples(st.booleans(), st.booleans()), safer=st.integers(0, 1), texts=st.tuples(st.text(), st.text()))
def test_one_is_harmful_here_and_safe_there(safe: Any, safer: int, texts: Any) -> None:
    row = PKU | {"response_0": texts[0], "response_1": texts[1], "safer_response_id": safer}
    row |= {"is_response_0_safe": safe[0], "is_response_1_safe": safe[1]}
    record = adapters._FORMS["pku-saferlhf"].read(row, Path("x"))
    assert [(answer.text, answer.harmful) for answer in record.answers] == [
        (text, not is_safe) for text, is_safe in zip(texts, safe, strict=True)
    ]
    if safe[0] != safe[1]:
        harmless, harmful = record.ranked or (None, None)
        assert (harmless, harmful) == (safe.index(True), safe.index(False))
    else:
        assert record.ranked is None


# What a detoxifier learns from them ------------------------------------------------------


def test_where_both_answers_do_harm_it_learns_to_refuse_in_several_ways(tmp_path: Path) -> None:
    rows = preferences(200, seed=1)
    records, _ = read_labelled(write_rows(tmp_path / "rows.jsonl", rows))
    pairs, left_out = detox_pairs(records)
    assert left_out == {"both answers are harmless": 50}
    by_question = {pair.question: pair for pair in pairs}
    for row in rows:
        safe = (row["is_response_0_safe"], row["is_response_1_safe"])
        if safe == (True, True):
            assert row["prompt"] not in by_question
            continue
        pair = by_question[row["prompt"]]
        # The one that people found less safe is shown; it is the harmful one if there is one of each.
        assert pair.harmful == row[f"response_{1 - row['safer_response_id']}"]
        assert (pair.harmless in REFUSALS) is (safe == (False, False))
        if safe != (False, False):
            assert pair.harmless == row[f"response_{row['safer_response_id']}"]
    refusals = Counter(pair.harmless for pair in pairs if pair.harmless in REFUSALS)
    assert len(refusals) > len(REFUSALS) // 2
    assert detox_pairs(records)[0] == pairs


def test_refusals_vary_and_are_harmless() -> None:
    from protector_guardrails import EmbeddedDetector, Exchange

    assert len({" ".join(text.split()[:3]) for text in REFUSALS}) == len(REFUSALS)
    assert min(len(text.split()) for text in REFUSALS) >= 8
    verdicts = EmbeddedDetector().detect([Exchange(response=text) for text in REFUSALS])
    assert [text for text, verdict in zip(REFUSALS, verdicts, strict=True) if verdict.harmful] == []


def test_single_answers_to_the_same_question_become_pairs(tmp_path: Path) -> None:
    rows = [BEAVERTAILS | {"prompt": prompt, "response": text, "is_safe": safe} for prompt, text, safe in (
        ("Tea?", "Spill it.", False), ("Milk?", "Sour.", False), ("tea", "Gladly.", True), ("TEA?", "Yes.", True),
    )]  # fmt: skip
    records, _ = read_labelled(write_rows(tmp_path / "rows.jsonl", rows))
    pairs, left_out = detox_pairs(records)
    assert [(pair.question, pair.harmful, pair.harmless) for pair in pairs] == [("Tea?", "Spill it.", "Gladly.")]
    assert left_out == {"a single answer": 2}


@given(
    records=st.lists(
        st.builds(one, st.sampled_from(["", "tea", "Tea?", "milk"]), st.text(), st.booleans(), st.sampled_from("ab"))
    )
)
def test_joining_loses_no_answer_and_mixes_no_questions(records: list[LabelledAnswers]) -> None:
    result = joined(records)
    assert Counter(a for r in result for a in r.answers) == Counter(a for r in records for a in r.answers)
    for record in result:
        if len(record.answers) == 2:
            assert record.question and record.ranked is not None
    known = {(r.answers[0], r.source, r.group if r.question else None) for r in records}
    assert all((a, r.source, r.group if r.question else None) in known for r in result for a in r.answers)


# Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "change", "complaint"),
    [
        ("own", {"harmful": "false"}, "'harmful' must be true or false, not str"),
        ("own", {"response": None}, "'response' must be a text, not NoneType"),
        ("own", {"question": ["secret"]}, "'question' must be a text, not list"),
        ("pairs", {"harmless_response": 7}, "'harmless_response' must be a text, not int"),
        ("pku-saferlhf", {"is_response_1_safe": 1}, "'is_response_1_safe' must be true or false, not int"),
        ("pku-saferlhf", {"safer_response_id": 2}, "'safer_response_id' must be 0 or 1"),
        ("pku-saferlhf", {"safer_response_id": True}, "'safer_response_id' must be 0 or 1"),
        ("pku-saferlhf", {"response_0": None}, "'response_0' must be a text, not NoneType"),
        ("beavertails", {"is_safe": None}, "'is_safe' must be true or false, not NoneType"),
        ("beavertails", {"prompt": None}, "'prompt' must be a text, not NoneType"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(
    tmp_path: Path, form: Form, change: dict[str, Any], complaint: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [FORMS[form], FORMS[form] | change])
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl, line 2: ") as raised:
        read_labelled(path)
    assert complaint in str(raised.value) and "secret" not in str(raised.value)


def test_files_in_no_form_are_refused_with_the_forms_there_are(tmp_path: Path) -> None:
    strange = write_rows(tmp_path / "rows.jsonl", [{"chosen": "a", "rejected": "b"}])
    with pytest.raises(ConfigurationError, match=r"no form that is known.*beavertails: is_safe.*columns"):
        read_labelled(strange)
    with pytest.raises(ConfigurationError, match="line 1: not in the form 'own'"):
        read_labelled(strange, form="own")
    strange.write_text("\n")
    with pytest.raises(ConfigurationError, match="holds no records"):
        read_labelled(strange)
    assert detect_form(PKU | {"response": "x", "harmful": True}) == "pku-saferlhf"


def test_columns_name_the_fields_of_pairs(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"q": "Tea?", "good": "Gladly.", "bad": "Spill it."}])
    columns = parse_columns("question=q, accepted=good,rejected=bad")
    [record], form = read_labelled(path, columns=columns)
    assert form == "pairs" and record.question == "Tea?"
    assert record.answers == (Answer("Gladly.", False), Answer("Spill it.", True))
    for wrong in ("question", "answer=a,accepted=b,rejected=c", "accepted=a", "accepted=,rejected=b"):
        with pytest.raises(ConfigurationError, match="column"):
            parse_columns(wrong)
    with pytest.raises(ConfigurationError, match="for files of pairs"):
        read_labelled(path, form="own", columns=columns)
    with pytest.raises(ConfigurationError, match="line 1"):
        read_labelled(path, columns=columns | {"accepted": "nonsense"})
