"""A whole evaluation from Python: figures by hand, notes, resuming, and what cannot be evaluated."""

from __future__ import annotations

import json
import re
import stat

import defense_fakes
import pytest
from defense_fakes import ATTACKS, HARMLESS, Juror, Oven, Thermometer, write_lines

pytest.importorskip("sklearn")

from protector_guardrails.detectors.embedded import EmbeddedDetector
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.accuracy import RULE
from protector_guardrails.evaluation.defense.results import DefenseEvaluation
from protector_guardrails.evaluation.defense.run import evaluate_defense
from protector_guardrails.evaluation.estimates import NO_ANSWERS, wilson
from protector_guardrails.policy import Policy

CALM = Policy(timeout_s=None)
JUROR = "chat:defense_fakes:JUROR"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name, made in (("OVEN", Oven()), ("JUROR", Juror()), ("THERMOMETER", Thermometer())):
        monkeypatch.setattr(defense_fakes, name, made)
    return defense_fakes


@pytest.fixture
def attacks(tmp_path):
    return str(write_lines(tmp_path / "attacks" / "cases.jsonl", ATTACKS).parent)


@pytest.fixture
def harmless(tmp_path):
    return str(write_lines(tmp_path / "harmless" / "cases.jsonl", HARMLESS).parent)


def evaluate(benchmarks, report, **options) -> DefenseEvaluation:
    settings = {
        "detector": defense_fakes.THERMOMETER,
        "detoxifier": "defense_fakes:Cooler",
        "judges": [JUROR],
        "policy": CALM,
    }
    return evaluate_defense(benchmarks, "defense_fakes:OVEN", report=report, **(settings | options))


def rates(found, judge, **where):
    wanted = {"benchmark": "all", "scenario": "all", "kind": "all"} | where
    return {
        row.arm: row
        for row in found.attacks
        if row.judge == judge and all(getattr(row, name) == value for name, value in wanted.items())
    }


def test_figures_by_hand(attacks, harmless, tmp_path):
    found = evaluate([attacks], tmp_path / "report", benign=[harmless])
    juror, keyword = rates(found, JUROR), rates(found, "keyword")
    assert [juror[arm].success for arm in juror] == [wilson(3, 5), wilson(1, 5), wilson(1, 5)]
    assert [juror[arm].prevented for arm in juror] == [None, wilson(2, 3), wilson(2, 3)]
    assert [keyword[arm].success for arm in keyword] == [wilson(4, 5), wilson(1, 5), wilson(3, 5)]
    assert [keyword[arm].prevented for arm in keyword] == [None, wilson(3, 4), wilson(1, 4)]
    cake = rates(found, JUROR, benchmark="attacks", scenario="cake")["none"]
    assert (cake.cases, cake.success.value, cake.success.reason) == (0, None, NO_ANSWERS)
    assert rates(found, JUROR, benchmark="attacks", scenario="bread", kind="SD")["detoxifier"].success == wilson(1, 1)
    [pair] = found.agreement
    counts = (pair.texts, pair.both_harmful, pair.only_first, pair.only_second, pair.both_harmless)
    assert (pair.first, pair.second, counts) == (JUROR, "keyword", (7, 3, 0, 3, 1))
    assert pair.kappa.value == pytest.approx(6 / 27)
    over = {row.arm: row for row in found.refusals if row.benchmark == "all" and row.benign}
    assert [over[arm].refused for arm in over] == [wilson(0, 3), wilson(1, 3), wilson(0, 3)]
    bad = {row.arm: row for row in found.refusals if row.benchmark == "attacks" and not row.benign}
    assert [bad[arm].refused for arm in bad] == [wilson(1, 5), wilson(4, 5), wilson(2, 5)]
    assert [bad[arm].by_guard for arm in bad] == [wilson(0, 5), wilson(3, 5), wilson(1, 5)]
    costs = {row.arm: row for row in found.benign if row.benchmark == "harmless"}
    assert [costs[arm].changed for arm in costs] == [wilson(1, 3), wilson(1, 3)]
    assert [costs[arm].changed_though_safe for arm in costs] == [0, 0]
    assert costs["detector"].accuracy_before == wilson(2, 2)
    assert (costs["detector"].accuracy_after, costs["detoxifier"].accuracy_after) == (wilson(1, 2), wilson(2, 2))
    times = {(row.arm, row.action): row.answers for row in found.added_time}
    assert times == {
        ("detector", "pass"): 4,
        ("detector", "refuse"): 4,
        ("detoxifier", "pass"): 4,
        ("detoxifier", "refuse"): 1,
        ("detoxifier", "detoxify"): 3,
    }


def test_what_is_recorded_beside_the_figures(attacks, harmless, tmp_path):
    found = evaluate([attacks], tmp_path / "report", benign=[harmless], judges=[JUROR], seed=5)
    assert DefenseEvaluation.model_validate_json((tmp_path / "report" / "results.json").read_bytes()) == found
    own, other = found.benchmarks
    assert (own.name, own.cases, own.attacks, own.images) == ("attacks", 7, 7, 0)
    assert (other.name, other.cases, other.attacks) == ("harmless", 3, 0)
    assert (found.answered.model, found.answered.answers, found.answered.recorded_before) == ("oven-1", 8, 0)
    assert sum(failure.answers for failure in found.answered.failures) == 2
    assert [(judge.name, judge.answered) for judge in found.judges] == [(JUROR, 7), ("keyword", 7)]
    run = found.run
    assert (run.detector, run.detoxifier, run.threshold, run.seed) == ("thermometer@1", "cooler@1", 0.5, 5)
    assert run.policy["timeout_s"] is None and "on_harm" not in run.policy
    assert {one.kind for one in found.examples} == {"leaked", "prevented", "needlessly_changed"}
    [leaked] = [one for one in found.examples if one.kind == "leaked"]
    assert (leaked.case, leaked.arm, leaked.score) == ("a2", "detoxifier", 0.2)
    told = " ".join(found.notes)
    assert "2 scenarios" not in told and "3 scenarios have fewer than 20" in told
    assert "keyword takes every answer" in told and RULE in told
    assert "circular" not in told and "on 0 texts" not in told


def test_judges_see_the_intent_and_a_guard_does_not(attacks, tmp_path, fresh):
    evaluate([attacks], tmp_path / "report")
    assert any("a burn" in prompt for prompt in fresh.JUROR.asked)
    assert not any("a burn" in str(exchange.judged_question) for exchange in fresh.THERMOMETER.seen)
    assert len(fresh.OVEN.asked) == 5


@pytest.mark.parametrize("judges", [[], ["keyword"]])
def test_the_guards_own_detector_as_a_judge_is_called_circular(attacks, tmp_path, judges, monkeypatch):
    scored = []
    monkeypatch.setattr(
        EmbeddedDetector, "detect", lambda self, some: scored.extend(some) or Thermometer().detect(some)
    )
    found = evaluate([attacks], tmp_path / "report", judges=judges, detector="embedded")
    assert [judge.name for judge in found.judges] == ["detector:embedded", "keyword"]
    told = " ".join(found.notes)
    assert "detector:embedded is the guard's own detector" in told and "circular" in told
    assert "No other judge was named" in told and "name a set with --benign" in told
    assert scored


def test_all_of_a_benign_set_is_benign(tmp_path, attacks):
    said = write_lines(tmp_path / "plain.jsonl", [{"id": "p1", "question": "Hot? Say: cool"}])
    found = evaluate([attacks], tmp_path / "report", benign=[str(said)])
    assert [(one.name, one.attacks) for one in found.benchmarks] == [("attacks", 7), ("plain", 0)]


def test_only_harmless_questions_and_only_attacks(attacks, harmless, tmp_path):
    only = evaluate([harmless], tmp_path / "one", benign=[])
    assert only.benign == [] and len(only.attacks) > 0  # not marked as harmless, they count as attacks
    marked = evaluate(
        [str(write_lines(tmp_path / "b.jsonl", [one | {"benign": True} for one in HARMLESS]))], tmp_path / "2"
    )
    assert marked.attacks == [] and {row.benign for row in marked.refusals} == {True}
    assert any("No attack was asked" in note for note in marked.notes)
    assert all(row.changed_though_safe == 0 for row in marked.benign)
    attacks_only = evaluate([attacks], tmp_path / "three")
    assert attacks_only.benign == [] and {row.benign for row in attacks_only.refusals} == {False}


def test_benign_answers_that_were_judged_safe_leave_byte_for_byte(tmp_path):
    answers = ["  two  blanks \t", "\u212b \u00e5 a\u030a", "line\r\nline\n", "\u200bzero", "```\ncode\n```", "<0.49>"]
    rows = [{"id": f"n{n}", "question": f"{n}? Say: {said}", "benign": True} for n, said in enumerate(answers)]
    found = evaluate([str(write_lines(tmp_path / "cases.jsonl", rows))], tmp_path / "report", detoxifier="redact")
    for cost in found.benign:
        assert (cost.answers, cost.changed, cost.changed_though_safe) == (6, wilson(0, 6), 0)


def test_a_guard_or_judge_that_fails_is_told(tmp_path):
    rows = [
        {"id": "x1", "question": "A? Say: BOOM"},
        {"id": "x2", "question": "B? Say: ODD pan"},
        {"id": "x3", "question": "C? Say: DOWN"},
    ]
    found = evaluate([str(write_lines(tmp_path / "cases.jsonl", rows))], tmp_path / "report")
    [failure] = found.run.failures
    assert failure.answers == 1 and "RuntimeError" in failure.error and "secret" not in failure.error
    juror = rates(found, JUROR)
    assert [(juror[arm].cases, juror[arm].judged) for arm in juror] == [(3, 1)] * 3  # the refusal of x1 needs no judge
    assert sorted(one.error for one in found.judges[0].unusable) == ["ConnectionError was raised", "unusable answer"]
    told = " ".join(found.notes)
    assert "no usable verdict on 2 texts" in told and "the policy refuses" in told
    assert "secret" not in found.model_dump_json()


def settled(folder) -> str:
    """``results.json`` without when it was made and how long things took."""
    results = json.loads((folder / "results.json").read_text())
    del results["run"]["created"], results["added_time"], results["answered"]["recorded_before"]
    return json.dumps(results)


@pytest.mark.parametrize("at", [0, 1, 4, 7])
def test_an_interrupted_run_goes_on_and_finds_the_same(attacks, harmless, tmp_path, at, fresh):
    evaluate([attacks], tmp_path / "whole", benign=[harmless])
    asked, judged, seen = (len(x) for x in (fresh.OVEN.asked, fresh.JUROR.asked, fresh.THERMOMETER.seen))
    fresh.OVEN.asked.clear(), fresh.JUROR.asked.clear(), fresh.THERMOMETER.seen.clear()
    fresh.THERMOMETER.interrupt_at = at
    folder = tmp_path / "report"
    with pytest.raises(KeyboardInterrupt):
        evaluate([attacks], folder, benign=[harmless])
    fresh.THERMOMETER.interrupt_at = None
    for file in folder.glob("*/*.jsonl"):
        file.write_bytes(file.read_bytes() + b'{"key": "00ab')  # torn by a crash
    with pytest.raises(ConfigurationError, match="--resume"):
        evaluate([attacks], folder, benign=[harmless])
    found = evaluate([attacks], folder, benign=[harmless], resume=True)
    assert settled(folder) == settled(tmp_path / "whole")
    assert found.answered.recorded_before == 8 and len(fresh.OVEN.asked) == asked
    assert len(fresh.JUROR.asked) == judged
    assert len(fresh.THERMOMETER.seen) <= seen + 1  # at most an answer whose rewrite was not judged any more
    evaluate([attacks], folder, benign=[harmless], resume=True)
    assert len(fresh.JUROR.asked) == judged and settled(folder) == settled(tmp_path / "whole")


def test_what_another_guard_or_policy_did_is_not_taken_over(attacks, tmp_path, fresh):
    evaluate([attacks], tmp_path / "report")
    seen = len(fresh.THERMOMETER.seen)
    found = evaluate([attacks], tmp_path / "report", resume=True, policy=Policy(timeout_s=None, threshold=0.15))
    assert len(fresh.THERMOMETER.seen) > seen
    assert rates(found, JUROR)["detector"].success == wilson(0, 5)


def test_texts_on_disk_are_their_owners_alone(attacks, tmp_path):
    evaluate([attacks], tmp_path / "report")
    holding = list((tmp_path / "report").rglob("*.jsonl"))
    assert {file.name for file in holding} > {"answers.jsonl"} and len(holding) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in holding} == {0o600}
    [guard] = (tmp_path / "report" / "guard").iterdir()
    texts = {
        entry["case"]: entry["arms"]["detoxifier"]["text"] for entry in map(json.loads, guard.open()) if "arms" in entry
    }
    assert texts["a1"] == "cool loaf <0.1>" and texts["a2"] is None  # for people to label
    results = (tmp_path / "report" / "results.json").read_text()
    assert not any(re.search(said, results) for said in ("HOT loaf", "HOT crust"))


def test_labels_of_people(attacks, tmp_path):
    labels = write_lines(
        tmp_path / "labels.jsonl",
        [
            {"case": "a1", "harmful": True},
            {"case": "a1", "arm": "detoxifier", "harmful": True},
            {"case": "a3", "harmful": False},
            {"case": "zz", "harmful": False},
        ],
    )
    found = evaluate([attacks], tmp_path / "report", judges=[f"labels:{labels}"])
    said = rates(found, "labels:labels.jsonl")
    # The guard's own refusals of a1, a4 and a7 are harmless by definition, a4 behind the detoxifier too.
    assert [said[arm].success for arm in said] == [wilson(1, 2), wilson(0, 4), wilson(1, 3)]
    assert [said[arm].prevented for arm in said] == [None, wilson(1, 1), wilson(0, 1)]
    assert any("no answered attack of this run: 1." in note for note in found.notes)
    # Without a label: the bare a2, a4 and a7, and a7 as it was rewritten.
    assert any("says nothing of 4 texts" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"detoxifier": "nothing"}, "unknown detoxifier"),
        ({"detector": "nothing"}, "unknown detector"),
        ({"judges": ["nothing"]}, "unknown judge"),
        ({"benign": ["no-such-folder"]}, "does not exist"),
        ({"kinds": ["AUDIO"]}, "no attack is of the kind"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anyone_is_asked(attacks, tmp_path, options, told, fresh):
    with pytest.raises(ConfigurationError, match=told):
        evaluate([attacks], tmp_path / "report", **options)
    assert fresh.OVEN.asked == [] and not (tmp_path / "report").exists()


def test_no_answers_at_all_are_no_evaluation(tmp_path):
    rows = [{"id": "x1", "question": "A?", "image_desc": "not there"}]
    with pytest.raises(ConfigurationError, match="answered none of the questions"):
        evaluate([str(write_lines(tmp_path / "cases.jsonl", rows))], tmp_path / "report")
    assert not (tmp_path / "report" / "results.json").exists()
