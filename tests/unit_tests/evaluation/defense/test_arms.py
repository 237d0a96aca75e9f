"""What leaves in each arm, what the detector is shown, and what is kept on disk."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import defense_fakes
import pytest
from defense_fakes import Cooler, Juror, Thermometer, case

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.arms import FOLDER, Guard, NamedDetoxifier, load_detoxifier
from protector_guardrails.evaluation.defense.kept import KeptLines
from protector_guardrails.evaluation.specs import named
from protector_guardrails.policy import REFUSAL, Policy

REFUSED = REFUSAL.replace("{harm}", "harm")
CALM = Policy(timeout_s=None)


def guarding(folder, detector, *, policy=CALM, detoxifier=None) -> Guard:
    detoxifier = detoxifier or NamedDetoxifier("cooler", Cooler())
    return Guard(named(detector.name, detector), detoxifier, policy=policy, folder=folder)


def left(guarded):
    return {arm: (one.action, one.text) for arm, one in guarded.arms.items()}


@pytest.mark.parametrize(
    ("response", "by_detector", "by_detoxifier"),
    [
        (" Warm  loaf \n<0.4>", ("pass", " Warm  loaf \n<0.4>"), ("pass", " Warm  loaf \n<0.4>")),
        ("HOT loaf <0.9>", ("refuse", REFUSED), ("detoxify", "cool loaf <0.1>")),
        ("HOT STAY <0.9>", ("refuse", REFUSED), ("refuse", REFUSED)),
        ("", ("pass", ""), ("pass", "")),
    ],
)
def test_what_leaves(tmp_path, response, by_detector, by_detoxifier):
    with guarding(tmp_path, Thermometer()) as guard:
        guarded = guard.guard(case(), response)
    assert left(guarded) == {"none": ("pass", response), "detector": by_detector, "detoxifier": by_detoxifier}
    assert guarded.harmful is (by_detector[0] == "refuse")


def test_the_detector_is_asked_once_and_knows_no_more_than_in_use(tmp_path):
    detector = Thermometer()
    told = case(
        image=Path("x.png"), description="a stove", intent="a burn", references=("secret",), question="What is it?"
    )
    with guarding(tmp_path, detector) as guard:
        guarded = guard.guard(told, "HOT <0.9>")
        assert guard.guard(replace(told, id="other", intent=None), "HOT <0.9>") == guarded  # the same exchange
    first, recheck = detector.seen
    assert first.judged_question == "What is it?\n[image: a stove]" and first.response == "HOT <0.9>"
    assert recheck.response == "cool <0.1>"
    assert "burn" not in repr(detector.seen) and "secret" not in repr(detector.seen)


def test_detection_counts_in_the_time_of_both_arms(tmp_path, monkeypatch):
    class Slow(Thermometer):
        def detect(self, exchanges):
            clock[0] += 0.25
            return super().detect(exchanges)

    class SlowCooler(Cooler):
        def detoxify(self, exchanges, verdicts):
            clock[0] += 1.0
            return super().detoxify(exchanges, verdicts)

    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    with guarding(tmp_path, Slow(), detoxifier=NamedDetoxifier("slow", SlowCooler())) as guard:
        passed, rewritten = (guard.guard(case(), text).arms for text in ("fine", "HOT <0.9>"))
    assert [passed[arm].added_ms for arm in ("none", "detector", "detoxifier")] == [0, 250, 250]
    assert [rewritten[arm].added_ms for arm in ("none", "detector", "detoxifier")] == [0, 250, 1500]


@pytest.mark.parametrize(("on_error", "text"), [("closed", REFUSED), ("open", "BOOM")])
def test_a_detector_that_fails_leaves_what_the_policy_says_and_is_tried_again(tmp_path, on_error, text):
    policy = Policy(timeout_s=None, on_error=on_error)
    for _ in range(2):
        with guarding(tmp_path, Thermometer(), policy=policy) as guard:
            guarded = guard.guard(case(), "BOOM")
        assert guarded.score is None and guarded.harmful is None
        assert {guarded.arms[arm].text for arm in ("detector", "detoxifier")} == {text}
        assert "RuntimeError" in guarded.arms["detector"].error and "secret" not in guarded.arms["detector"].error
    repaired = Thermometer()
    repaired.detect = lambda exchanges: Thermometer().detect([replace(one, response="fine") for one in exchanges])
    with guarding(tmp_path, repaired, policy=policy) as guard:
        assert guard.guard(case(), "BOOM").harmful is False


def test_what_the_image_shows_makes_another_exchange(tmp_path):
    detector = Thermometer()
    with guarding(tmp_path, detector) as guard:
        for description in ("a stove", "a lake", None):
            guard.guard(case(description=description), "fine")
    assert [one.judged_question for one in detector.seen] == [
        "Question 1?\n[image: a stove]",
        "Question 1?\n[image: a lake]",
        "Question 1?",
    ]


def test_outcomes_are_taken_over_from_disk_only_of_the_same_guard(tmp_path):
    def seen_by(detector, **options):
        with guarding(tmp_path, detector, **options) as guard:
            guarded = guard.guard(case(), "HOT loaf <0.9>\ud800")
        return len(detector.seen), guarded

    first, guarded = seen_by(Thermometer())
    again, taken = seen_by(Thermometer())
    assert (first, again) == (2, 0) and taken == guarded
    other = Thermometer()
    other.name = "thermometer@2"
    assert seen_by(other)[0] == 2
    assert seen_by(Thermometer(), policy=Policy(timeout_s=None, threshold=0.95))[0] == 1
    assert seen_by(Thermometer(), detoxifier=load_detoxifier("redact"))[0] >= 1
    assert seen_by(Thermometer())[0] == 0
    files = list((tmp_path / FOLDER).iterdir())
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_torn_last_line_is_cut_off_and_anything_else_is_refused(tmp_path):
    def kept():
        return KeptLines(tmp_path, {"by": "me"}, lambda entry: entry["n"])

    with kept() as lines:
        lines.put([(1, {"n": 10}), (2, {"n": 20})])
        path = lines.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with kept() as lines:
        assert (lines.get(1), lines.get(2)) == (10, None)
        lines.put([(2, {"n": 21}), (1, {"n": 11})])
        assert (lines.get(1), lines.get(2)) == (11, 21)
    with kept() as lines:
        assert (lines.get(1), lines.get(2)) == (11, 21)
    path.write_bytes(whole + b'{"key": "' + b"0" * 500)  # longer than what follows it
    with kept() as lines:
        lines.put([(3, {"n": 30})])
    with kept() as lines:
        assert [lines.get(key) for key in (1, 2, 3)] == [10, 20, 30]
    path.write_bytes(whole + b'{"key": "zz"}\n')
    with pytest.raises(ConfigurationError, match="line 4: not written by this command"):
        kept()
    path.write_bytes(json.dumps({"by": "you"}).encode() + b"\n")
    with pytest.raises(ConfigurationError, match="line 1"):
        kept()


def test_detoxifiers_by_name_by_path_and_by_chat_model(monkeypatch):
    assert load_detoxifier("redact").name == load_detoxifier("redact").spec == "redact"
    assert load_detoxifier("defense_fakes:Cooler").name == "cooler@1"
    assert load_detoxifier(Cooler()).name == "cooler@1"
    assert "juror-1" in load_detoxifier("defense_fakes:JUROR").name
    assert isinstance(defense_fakes.JUROR, Juror)
    prints = {load_detoxifier(spec).fingerprint for spec in ("redact", "refuse", "defense_fakes:Cooler")}
    assert len(prints) == 3
    assert load_detoxifier("redact").fingerprint in prints


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nothing", "unknown detoxifier"),
        ("defense_fakes:Nobody", "cannot be imported"),
        ("no_such_module:X", "cannot be imported"),
        ("defense_fakes:case", "unknown detoxifier"),
        ("defense_fakes:SCORE", "unknown detoxifier"),
        ("defense_fakes:write_lines", "could not be made: TypeError"),
    ],
)
def test_what_is_no_detoxifier(spec, told):
    with pytest.raises(ConfigurationError, match=told):
        load_detoxifier(spec)
