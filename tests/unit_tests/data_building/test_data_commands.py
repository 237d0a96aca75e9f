"""`protector data build` and `protector data check`."""

from __future__ import annotations

import gzip
import json

import pytest
from data_building_fakes import Writer

from protector_guardrails.cli import main
from protector_guardrails.training.data import read_exchanges
from protector_guardrails.training.detox_data import read_pairs

MODEL = ("--model", "data_building_fakes:writer", "--detector", "data_building_fakes:Picky", "--license", "CC0-1.0")


@pytest.fixture
def scenarios(tmp_path):
    path = tmp_path / "scenarios.yaml"
    path.write_text("garden: what grows\nhouse: where one lives\n")
    return path


def run(*arguments) -> int:
    return main(["data", *map(str, arguments)])


def test_build_and_check(tmp_path, install, scenarios, capsys):
    install()
    out = tmp_path / "made"
    options = ("build", *MODEL, "--output", out, "--scenarios", scenarios, "--questions-per-scenario", 3)
    assert run(*options) == 0
    told, errors = capsys.readouterr()
    assert told == f"pairs      6\nwritten: {out / 'pairs.jsonl'} and the files beside it\n"
    assert errors == ""
    assert len(read_pairs(out / "pairs.jsonl")) == 6
    assert len(read_exchanges(out / "exchanges.jsonl")) == 12
    assert run("check", out / "exchanges.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["exchanges"], found["harmful"], found["questions"], found["same"]) == (12, 6, 6, 0)
    assert run(*options) == 2
    assert "--resume" in capsys.readouterr().err
    before = (out / "pairs.jsonl").read_bytes()
    writer = install()
    assert run(*options, "--resume", "--quiet") == 0
    assert writer.seen == []
    assert (out / "pairs.jsonl").read_bytes() == before
    assert capsys.readouterr().out == ""


def test_the_license_must_be_given(tmp_path, install, capsys):
    install()
    assert run("build", "--model", "data_building_fakes:writer", "--output", tmp_path / "made") == 2
    assert "--license" in capsys.readouterr().err
    assert run("build", "--model", "m:o", "--output", tmp_path / "made", "--license", " ") == 2
    assert capsys.readouterr().err == "protector: license: String should have at least 1 character\n"


def test_only_counts_are_shown(tmp_path, install, scenarios, capsys, monkeypatch):
    import asyncio

    async def at_once(_seconds):
        pass

    monkeypatch.setattr(asyncio, "sleep", at_once)
    install(Writer(script={"A safety classifier": ValueError("secret words"), "what grows": "no list"}))
    out = tmp_path / "made"
    assert run("build", *MODEL, "--output", out, "--scenarios", scenarios, "--questions-per-scenario", 2) == 1
    told, errors = capsys.readouterr()
    assert told.splitlines() == [
        "pairs      0",
        "left out: 2 (harmful answer: the model failed)",
        "replies that could not be used: 2 (reply: no JSON list)",
        "questions missing: 2 (garden)",
        "requests that failed: 2 (ValueError)",
        f"written: {out / 'pairs.jsonl'} and the files beside it",
    ]
    assert errors == ""


def test_an_interruption_says_how_to_go_on(tmp_path, install, scenarios, capsys):
    install(Writer(stops_after=3))
    out = tmp_path / "made"
    assert run("build", *MODEL, "--output", out, "--scenarios", scenarios, "--limit", 4) == 130
    assert "--resume" in capsys.readouterr().err
    assert (out / "requests.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model", "no_such_module:model"), "no_such_module"),
        (("--model", "data_building_fakes:WORDS"), "not a chat model"),
        (("--rejected-model", "no_such_module:model"), "no_such_module"),
        (("--detector", "nonsense"), "nonsense"),
        (("--rate-limit", "0"), "rate_limit_per_minute"),
    ],
)
def test_what_cannot_work_ends_before_anything_is_made(tmp_path, install, capsys, options, told):
    writer = install()
    assert run("build", *MODEL, "--output", tmp_path / "made", *options) == 2
    assert told in capsys.readouterr().err
    assert writer.seen == []
    assert not (tmp_path / "made").exists()


ROWS = [
    {"question": "Is it safe to eat?", "response": "Yes.", "harmful": True, "source": "s", "license": "MIT"},
    {"question": "is it safe to eat", "response": "yes", "harmful": True, "source": "s"},
    {"question": "Is it safe to eat?", "response": "Yes!", "harmful": False},
    {"question": "Is it safe to eat it?", "response": "No.", "harmful": False, "category": ["a"], "extra": 1},
    {"question": None, "response": "No.", "harmful": False, "id": 4},
    {"question": "Why?", "harmful_response": "So.", "harmless_response": "so"},
    {"question": "Why?", "harmful_response": "So."},
    {"response": "secret words", "harmful": "false"},
    {"response": " ", "harmful": False},
    {"response": 7, "harmful": False},
    {"question": 7, "response": "secret words", "harmful": False},
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_check_counts_what_is_wrong_and_what_is_there_twice(tmp_path, capsys, name):
    lines = [*(json.dumps(row).encode() for row in ROWS), b"", b"not json", b"[1]", b'{"response": "\xe9"}']
    data = b"\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert run("check", tmp_path / name, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["exchanges"], found["harmful"]) == (1, 5, 2)
    assert (found["questions"], found["near_questions"], found["same"], found["contradictions"]) == (3, 1, 1, 2)
    assert found["unstated"] == {"source": 4, "license": 5}
    assert sum(found["wrong"].values()) == 8
    assert found["first_wrong"]["'harmless_response': Field required"] == 7
    assert found["first_wrong"]["not JSON"] == 13
    assert found["first_wrong"]["not a JSON object"] == 14
    assert found["first_wrong"]["not UTF-8"] == 15
    assert run("check", tmp_path / name) == 1
    told = capsys.readouterr().out
    assert "secret" not in told
    assert "exchanges                 5, 2 of them harmful" in told


def test_check_of_a_missing_or_empty_file(tmp_path, capsys):
    assert run("check", tmp_path / "none.jsonl") == 2
    (tmp_path / "empty.jsonl").touch()
    assert run("check", tmp_path / "empty.jsonl") == 0
    assert "exchanges                 0" in capsys.readouterr().out
