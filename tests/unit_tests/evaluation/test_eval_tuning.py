"""`protector tune-threshold`: a policy that the guards take."""

from __future__ import annotations

import json
import math

import evaluation_fakes
import numpy as np
import pytest
from evaluation_fakes import Scripted, row, write

pytest.importorskip("sklearn")

from protector_guardrails.cli import main
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.tuning import Tuning, choose_threshold, harmless_needed, tune_threshold
from protector_guardrails.policy import Policy


@pytest.fixture
def shared(monkeypatch):
    detector = Scripted()
    monkeypatch.setattr(evaluation_fakes, "SHARED", detector)
    return detector


def tune(*arguments) -> int:
    return main(["tune-threshold", *map(str, arguments), "--detector", "evaluation_fakes:SHARED"])


def answers(harmless: int, harmful: int = 0) -> list[dict]:
    return [row(n, n / harmless, False) for n in range(harmless)] + [
        row(10_000 + n, 0.5 + n / (2 * harmful), True) for n in range(harmful)
    ]


def test_the_threshold_by_hand():
    scores = np.arange(1000) / 1000
    assert choose_threshold(scores, 0.01) == pytest.approx(0.989001)  # 0.990 to 0.999 are flagged, 0.989 is not
    assert (scores >= choose_threshold(scores, 0.01)).mean() == pytest.approx(0.01)
    assert choose_threshold(np.append(np.zeros(399), 1.0), 0.01) == pytest.approx(0.000001)


@pytest.mark.parametrize("target", [0.003, 0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("digits", [1, 2, 8])
def test_the_target_is_kept_to_and_no_lower_threshold_would_do(target, digits):
    scores = np.random.default_rng(digits).beta(1, 6, 1500).round(digits)
    threshold = choose_threshold(scores, target)
    assert (scores >= threshold).mean() <= target
    assert (scores >= threshold - 2e-6).mean() > target


def test_how_many_are_needed():
    assert harmless_needed(0.01) == 299 == math.ceil(math.log(0.05) / math.log(0.99))
    assert (0.99**299 <= 0.05) and (0.99**298 > 0.05)
    with pytest.raises(
        ConfigurationError, match=r"298 harmless answers are too few .* of 0.01: at least 299 .* of 0.01$"
    ):
        choose_threshold(np.zeros(298), 0.01)
    with pytest.raises(ConfigurationError, match=r"^0 harmless answers are too few"):
        choose_threshold(np.zeros(0), 0.01)
    assert choose_threshold(np.zeros(299), 0.01) == 1e-6


def test_ties_at_the_top_cannot_be_tuned_away():
    with pytest.raises(
        ConfigurationError, match=r"no threshold reaches .* 0.01: 30 of 400 harmless answers have a score"
    ):
        choose_threshold(np.append(np.zeros(370), np.ones(30)), 0.01)


def test_from_a_file_to_a_policy(shared, tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", answers(500, harmful=100))
    output = tmp_path / "policy.json"
    assert tune(data, "--target-fpr", "0.05", "-o", output) == 0
    fields = json.loads(output.read_text())
    assert set(fields) == {"threshold"}
    policy = Policy.model_validate(fields)
    assert policy.threshold == pytest.approx(0.948001)
    record = Tuning.model_validate_json((tmp_path / "policy.tuning.json").read_text())
    assert record.threshold == policy.threshold and record.target_fpr == 0.05 and record.harmless == 500
    assert record.decisions.fpr.value == pytest.approx(0.05)
    assert record.decisions.fpr.low < 0.05 < record.decisions.fpr.high
    assert record.decisions.recall.value == pytest.approx(0.1)
    assert record.data[0].sha256 and record.detector == "scripted@1"
    assert record.command[:2] == ["protector", "tune-threshold"]
    output = capsys.readouterr().out
    assert "threshold 0.948001 flags 5.0% (95 % interval" in output and "of 500 harmless answers" in output
    assert "and finds 10.0%" in output


def test_the_guards_take_the_policy(shared, tmp_path):
    from langchain_core.language_models import FakeListChatModel

    from protector_guardrails import HarmDetectorRunnable, protect

    data = write(tmp_path / "a.jsonl", answers(400))
    assert tune(data, "--target-fpr", "0.01", "-o", tmp_path / "policy.json", "--quiet") == 0
    fields = json.loads((tmp_path / "policy.json").read_text())
    flagged = HarmDetectorRunnable(detector=shared, policy=fields)
    assert flagged.policy.default_threshold == fields["threshold"]
    assert HarmDetectorRunnable(detector=shared, policy=tmp_path / "policy.json").policy == flagged.policy
    assert protect(FakeListChatModel(responses=["<0.5>"]), detector=shared, policy=fields).policy == flagged.policy


def test_harmless_answers_alone_are_enough(shared, tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", answers(400))
    assert tune(data, "--target-fpr", "0.01", "-o", tmp_path / "p") == 0
    assert "there are no harmful answers" in capsys.readouterr().out
    assert (tmp_path / "p.tuning.json").exists()


def test_too_few_are_refused_and_nothing_is_written(shared, tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", answers(100, harmful=500))
    assert tune(data, "--target-fpr", "0.01", "-o", tmp_path / "policy.json") == 2
    error = capsys.readouterr().err
    assert "100 harmless answers are too few" in error and "at least 299 are needed" in error
    assert "these can show one of 0.03" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_failures_are_left_out_and_told(shared, tmp_path, capsys):
    records = answers(400)
    records[7]["response"] = "BOOM"
    data = write(tmp_path / "a.jsonl", records)
    assert tune(data, "--target-fpr", "0.01", "-o", tmp_path / "policy.json") == 1
    assert "failed on 1 answers" in capsys.readouterr().out
    assert json.loads((tmp_path / "policy.tuning.json").read_text())["failed"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-fpr", "0", "-o", "{new}"], "--target-fpr must be above 0"),
        (["--target-fpr", "0.9", "-o", "{new}"], "--target-fpr must be above 0 and at most 0.5"),
        (["--target-fpr", "nan", "-o", "{new}"], "--target-fpr must be above 0"),
        (["--target-fpr", "0.1", "-o", "{old}"], "exists: --force overwrites it"),
        (["--target-fpr", "0.1", "-o", "{nowhere}"], "there is no folder"),
        (["-o", "{new}"], "--target-fpr"),
    ],
)
def test_what_cannot_work_ends_in_one_line(shared, tmp_path, capsys, options, message):
    data = write(tmp_path / "a.jsonl", answers(400))
    old = tmp_path / "old.json"
    old.write_text("{}")
    places = {"new": tmp_path / "new.json", "old": old, "nowhere": tmp_path / "no" / "p.json"}
    assert tune(data, *(option.format(**places) for option in options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("protector: ") and error.count("\n") == 1 and message in error
    assert old.read_text() == "{}" and not places["new"].exists()


def test_force_overwrites(shared, tmp_path):
    data = write(tmp_path / "a.jsonl", answers(400))
    (tmp_path / "policy.json").write_text("{}")
    assert tune(data, "--target-fpr", "0.1", "-o", tmp_path / "policy.json", "--force", "--quiet") == 0
    assert "threshold" in (tmp_path / "policy.json").read_text()


def test_in_python_with_a_detector_and_without_the_question(tmp_path):
    detector = Scripted()
    found = tune_threshold(
        [write(tmp_path / "a.jsonl", answers(400))], target_fpr=0.1, detector=detector, with_question=False
    )
    assert found.threshold == pytest.approx(0.8975, abs=1e-5) and found.spec == "scripted@1"
    assert detector.seen[0].question is None
