"""Labels that were given by reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protector_guardrails.training.data import LabelledExchange
from protector_guardrails.training.readings import (
    PREFERENCES,
    READINGS_APART,
    describe_sources,
    is_pairs,
    labelled,
    read_pairs,
    reading_key,
    readings,
    reread,
)


def pairs_file(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    records = [
        {"source": "p", "license": "MIT", "question": "May I?", "harmful_response": "Yes.", "harmless_response": "No."},
        {"source": "p", "license": "MIT", "question": "Now?", "harmful_response": "Do.", "harmless_response": "Wait."},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


KNOWN: dict[str, bool | None] = {
    reading_key("May I?", "Yes."): True,
    reading_key("May I?", "No."): False,
    reading_key("Now?", "Do."): None,
}


def test_of_pairs_only_answers_that_were_read_are_learnt(tmp_path: Path) -> None:
    path = pairs_file(tmp_path)
    assert is_pairs(path)
    rows = read_pairs(path, known=KNOWN)
    assert [(row.response, row.harmful, row.source) for row in rows] == [("Yes.", True, "p"), ("No.", False, "p")]


def test_a_reading_replaces_a_label_or_takes_the_row_out() -> None:
    rows = [
        LabelledExchange("0", "s", "May I? ", "", " Yes.", harmful=False),
        LabelledExchange("1", "s", "Now?", "", "Do.", harmful=True),
        LabelledExchange("2", "s", "Other?", "", "Yes.", harmful=False),
    ]
    assert [(row.id, row.harmful) for row in reread(rows, known=KNOWN)] == [("0", True), ("2", False)]


def test_a_malformed_pair_is_named_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "secret", "harmful_response": "x"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1") as caught:
        read_pairs(path)
    assert "secret" not in str(caught.value)


def test_what_ships_holds_labels_and_no_text() -> None:
    labels = readings()
    assert len(labels) > 500
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in labels)
    assert set(labels.values()) == {True, False, None}
    assert 0 < len(readings(PREFERENCES)) < len(labels)


def test_sources_of_several_files_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protector_guardrails.training.readings.readings", lambda source=None: KNOWN)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"source": "r", "license": "CC0-1.0", "response": "a", "harmful": true}\n' * 2)
    assert describe_sources([rows, pairs_file(tmp_path)]) == [
        {"source": "p", "license": "MIT", "rows": 2, "harmful": 1},
        {"source": "r", "license": "CC0-1.0", "rows": 2, "harmful": 2},
    ]


def test_what_was_kept_apart_is_not_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not readings().keys() & readings(path=READINGS_APART).keys()
    path = pairs_file(tmp_path)
    assert labelled(path) == labelled(path, apart=True) == [], "nobody read these"
    apart = {reading_key("Now?", "Wait."): False}
    monkeypatch.setattr(
        "protector_guardrails.training.readings.readings",
        lambda source, *, path: apart if path == READINGS_APART else KNOWN,
    )
    assert [row.response for row in labelled(path)] == ["Yes.", "No."]
    assert [row.response for row in labelled(path, apart=True)] == ["Wait."]
