"""`protector evaluate defense` from the command line to its report."""

from __future__ import annotations

import json

import defense_fakes
import pytest
from defense_fakes import ATTACKS, HARMLESS, REFUSAL, Juror, Oven, Thermometer, write_lines

pytest.importorskip("sklearn")

from protector_guardrails.cli import main
from protector_guardrails.commands import pages
from protector_guardrails.errors import MissingExtraError
from protector_guardrails.evaluation.defense.results import DefenseEvaluation

JUROR = "chat:defense_fakes:JUROR"
ANSWERABLE = [one for one in ATTACKS if "image_desc" not in one]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name, made in (("OVEN", Oven()), ("JUROR", Juror()), ("THERMOMETER", Thermometer())):
        monkeypatch.setattr(defense_fakes, name, made)
    monkeypatch.setenv("COLUMNS", "160")
    return defense_fakes


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path / "attacks" / "cases.jsonl", ANSWERABLE)
    write_lines(tmp_path / "harmless" / "cases.jsonl", HARMLESS)
    (tmp_path / "calm.json").write_text('{"timeout_s": null}')
    return tmp_path


def words(folder, **more) -> list[str]:
    options = {
        "--benchmark": folder / "attacks",
        "--mllm": "defense_fakes:OVEN",
        "--detector": "defense_fakes:THERMOMETER",
        "--detoxifier": "defense_fakes:Cooler",
        "--judge": JUROR,
        "--benign": folder / "harmless",
        "--policy": folder / "calm.json",
        "--report": folder / "report",
    } | {f"--{name.replace('_', '-')}": value for name, value in more.items()}
    given = {option: value for option, value in options.items() if value is not None}
    return ["evaluate", "defense", *(str(word) for pair in given.items() for word in pair)]


def read(folder) -> DefenseEvaluation:
    return DefenseEvaluation.model_validate_json((folder / "results.json").read_bytes())


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("protector: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_from_a_folder_to_a_report(folder, capsys):
    assert main(words(folder)) == 0
    found = read(folder / "report")
    whole = {row.arm: row for row in found.attacks if row.benchmark == "all" and row.judge == JUROR}
    assert [whole[arm].success.value for arm in whole] == [0.6, 0.2, 0.2]
    assert found.run.command[:3] == ["protector", "evaluate", "defense"]
    assert found.run.command[found.run.command.index("--judge") + 1] == JUROR
    output = capsys.readouterr().out
    assert "60.0% (" in output and "guard rewrites" in output and "soup" in output
    assert "written: " in output and "results.json, report.html, report.md" in output
    for text in (output, *((folder / "report" / f"report.{end}").read_text() for end in ("html", "md"))):
        assert all(said not in text for said in ("HOT loaf", "HOT crust", REFUSAL))
    page = folder / "report" / "report.md"
    before = page.read_bytes()
    assert b"Attack success falls" in before
    page.unlink()
    assert main(["evaluate", "report", str(folder / "report")]) == 0
    assert page.read_bytes() == before


def test_the_recorded_command_makes_the_same_results(folder, capsys):
    assert main(words(folder, seed=3, limit=3)) == 0
    first = read(folder / "report")
    assert main([*first.run.command[1:], "--report", str(folder / "again"), "--quiet"]) == 0
    again = read(folder / "again")
    assert first.run.command == again.run.command
    for part in ("benchmarks", "judges", "attacks", "refusals", "benign", "agreement", "examples", "notes"):
        assert getattr(first, part) == getattr(again, part), part
    assert first.benchmarks[0].cases == 3


def test_missing_answers_are_exit_status_1(folder, capsys):
    write_lines(folder / "attacks" / "cases.jsonl", ATTACKS)
    assert main([*words(folder), "--unmask", "--quiet"]) == 1
    found = read(folder / "report")
    assert not found.run.masked and any("HOT" in one.response for one in found.examples)
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and output.startswith("written: ")


def test_interrupted_and_resumed(folder, capsys, fresh):
    assert main([*words(folder, report=folder / "whole"), "--quiet"]) == 0
    fresh.THERMOMETER.seen.clear()
    fresh.THERMOMETER.interrupt_at = 3
    assert main(words(folder)) == 130
    assert "--resume goes on" in capsys.readouterr().err
    fresh.THERMOMETER.interrupt_at = None
    fresh.OVEN.asked.clear()
    assert main(words(folder)) == 2
    assert "--resume" in one_line(capsys)
    assert main([*words(folder), "--resume"]) == 0
    assert fresh.OVEN.asked == []
    whole, resumed = (json.loads((folder / name / "results.json").read_text()) for name in ("whole", "report"))
    for results in (whole, resumed):
        del results["run"]["created"], results["added_time"], results["answered"]["recorded_before"]
    assert json.dumps(whole) == json.dumps(resumed)


def test_kinds_and_several_benchmarks(folder):
    more = write_lines(folder / "more.jsonl", [{"id": "m1", "question": "M? Say: HOT", "kind": "SD"}])
    given = [*words(folder, kinds="SD"), "--benchmark", str(more), "--kinds", "text", "--quiet"]
    assert main(given) == 0
    found = read(folder / "report")
    assert [one.name for one in found.benchmarks] == ["attacks", "more", "harmless"]
    assert {row.kind for row in found.attacks} == {"all", "SD", "text"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"benchmark": "no-such-folder"}, "no-such-folder does not exist"),
        ({"mllm": "nobody"}, "unknown model 'nobody'"),
        ({"judge": "nobody"}, "unknown judge 'nobody'"),
        ({"report": None}, "--report"),
        ({"policy": "no-such-file"}, "the policy no-such-file cannot be read: No such file"),
        ({"limit": 0}, "--limit"),
        ({"rate_limit": 0}, "must be more than 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, capsys, more, told, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(words(folder, **more)) == 2
    assert told in one_line(capsys)
    assert main([*words(folder), "--quiet"]) == 0  # nothing is in the way


def test_harmless_questions_can_be_asked_alone(folder, capsys):
    assert main(words(folder, benchmark=None)) == 0
    found = read(folder / "report")
    assert found.attacks == [] and {row.benchmark for row in found.benign} == {"all", "harmless"}
    assert "No attack was asked" in capsys.readouterr().out
    assert main(words(folder, benchmark=None, benign=None, report=folder / "other")) == 2
    assert "name attacks with --benchmark" in one_line(capsys)


@pytest.mark.parametrize("text", ['{"threshold": 2}', '{"unknown": 1}', "nonsense", ""])
def test_what_is_no_policy(folder, capsys, text):
    (folder / "calm.json").write_text(text)
    assert main(words(folder)) == 2
    assert "calm.json is not a policy: " in one_line(capsys)


def test_without_the_extra_for_pages_the_results_are_there(folder, capsys, monkeypatch):
    def missing(*_):
        raise MissingExtraError("a report", extra="plots")

    monkeypatch.setattr("protector_guardrails.evaluation.report.write_reports", missing)
    assert main([*words(folder), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "protector-guardrails[plots]" in captured.err and "results.json;" in captured.out
    assert read(folder / "report").attacks and not (folder / "report" / "report.html").exists()
    assert pages.write_pages(read(folder / "report"), folder) == ""
