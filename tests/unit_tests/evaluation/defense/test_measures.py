"""Figures from counted answers, computed by hand."""

from __future__ import annotations

import tracemalloc

import pytest
from defense_fakes import Thermometer, case

pytest.importorskip("sklearn")

from protector_guardrails.evaluation.defense.arms import Guard, Guarded, Left, load_detoxifier
from protector_guardrails.evaluation.defense.cases import Answer
from protector_guardrails.evaluation.defense.joining import join
from protector_guardrails.evaluation.defense.judges import Panel
from protector_guardrails.evaluation.defense.keyword_judge import KeywordJudge
from protector_guardrails.evaluation.defense.measures import NOT_JUDGED, NOTHING_TO_PREVENT, Measured, Measures
from protector_guardrails.evaluation.defense.run import _measured
from protector_guardrails.evaluation.defense.shown import KEPT, FewExamples
from protector_guardrails.evaluation.estimates import NO_ANSWERS, wilson
from protector_guardrails.evaluation.specs import named
from protector_guardrails.policy import Policy

GUARDS = ("detector", "detoxifier")


def attack(number, verdicts, *, scenario="bread", kind="text", benchmark="b", model="m") -> Measured:
    """An attack with the verdicts of judge "j" on what left in the three arms."""
    guarded = Guarded(0.5, True, {arm: Left(f"text in {arm}", "pass", 1.0) for arm in ("none", *GUARDS)})
    opinions = {arm: {"j": said} for arm, said in zip(("none", *GUARDS), verdicts, strict=True)}
    return Measured(
        benchmark=benchmark, case=case(number, scenario, kind), model=model, guarded=guarded, opinions=opinions
    )


def harmless(number, response, detector, detoxifier, *, harmful=False, **more) -> Measured:
    arms = {"none": Left(response, "pass"), "detector": detector, "detoxifier": detoxifier}
    return Measured(
        benchmark="b",
        case=case(number, benign=True, **more),
        model="m",
        guarded=Guarded(0.2, harmful, arms),
        opinions={},
    )


def measures_of(*all_measured, unanswered=()) -> Measures:
    measures = Measures(["j"])
    for benchmark, one in [*((m.benchmark, m.case) for m in all_measured), *unanswered]:
        measures.saw(benchmark, one)
    for measured in all_measured:
        measures.add(measured)
    return measures


def rows(measures):
    return {(row.benchmark, row.scenario, row.kind, row.arm): row for row in measures.attacks()}


def test_attack_success_and_what_was_prevented():
    measures = measures_of(
        attack(1, (True, False, False)),
        attack(2, (True, True, False), kind="SD"),
        attack(3, (True, False, True)),
        attack(4, (False, True, False), scenario="soup"),
        attack(5, (None, False, None), scenario="soup"),
    )
    found = rows(measures)
    none, detector, detoxifier = (found["all", "all", "all", arm] for arm in ("none", *GUARDS))
    assert [(row.cases, row.judged) for row in (none, detector, detoxifier)] == [(5, 4), (5, 5), (5, 4)]
    assert [row.success for row in (none, detector, detoxifier)] == [wilson(3, 4), wilson(2, 5), wilson(1, 4)]
    assert none.prevented is None
    assert (detector.prevented, detoxifier.prevented) == (wilson(2, 3), wilson(2, 3))
    assert found["b", "bread", "SD", "none"].success == wilson(1, 1)
    assert found["b", "bread", "all", "detector"].success == wilson(1, 3)
    assert found["b", "all", "text", "none"].success == wilson(2, 3)
    assert found["b", "soup", "all", "detector"].prevented.reason == NOTHING_TO_PREVENT
    assert [key for key in found if key[3] == "none"][:2] == [("all",) * 3 + ("none",), ("b", "all", "all", "none")]


def test_an_arm_without_verdicts_on_many_of_the_successes_has_no_figure():
    few = [attack(n, (True, False, False)) for n in range(19)]
    [*_, detector, detoxifier] = measures_of(*few, attack(20, (True, True, None))).attacks()[:3]
    assert detector.success == wilson(1, 20) and detoxifier.success == wilson(0, 19)
    many = [attack(n, (True, False, None if n == 0 else False)) for n in range(19)]
    [_, detector, detoxifier] = measures_of(*many).attacks()[:3]
    assert detector.success == wilson(0, 19)
    assert detoxifier.success.value is detoxifier.prevented.value is None
    assert detoxifier.success.reason == "no verdict on 1 of the 19 attacks that succeed on the bare model"


def test_each_model_has_its_own_figures_where_several_answered():
    measures = measures_of(
        attack(1, (True, False, False), model="b/two"),
        attack(2, (False, False, False), model="a/one"),
        attack(3, (True, True, False), model="a/one"),
    )
    found = {(row.model, row.arm): row for row in measures.by_model()}
    assert list(found) == [(model, arm) for model in ("a/one", "b/two") for arm in ("none", *GUARDS)]
    assert found["a/one", "none"].success == wilson(1, 2) and found["a/one", "none"].prevented is None
    assert found["a/one", "detector"].prevented == wilson(0, 1)
    assert found["b/two", "detector"].success == wilson(0, 1)
    assert measures_of(attack(1, (True, True, True))).by_model() == []


def test_benchmarks_with_scenarios_of_one_name_stay_apart_and_one_called_all_is_no_total():
    measures = measures_of(
        attack(1, (True, True, True)),
        attack(2, (False, False, False), benchmark="c"),
        attack(3, (False, False, False), benchmark="c", scenario="all"),
    )
    found = [(r.benchmark, r.scenario, r.kind, r.cases) for r in measures.attacks() if r.arm == "none"]
    assert found[0] == ("all", "all", "all", 3)
    assert ("b", "bread", "all", 1) in found and ("c", "bread", "all", 1) in found
    assert [row for row in found if row[:3] == ("c", "all", "all")] == [("c", "all", "all", 2), ("c", "all", "all", 1)]


def test_a_scenario_without_answers_has_a_reason_and_no_number():
    measures = measures_of(attack(1, (True, True, True)), unanswered=[("b", case(2, "cake"))])
    row = rows(measures)["b", "cake", "all", "detector"]
    assert (row.cases, row.judged, row.success.value, row.success.low) == (0, 0, None, None)
    assert row.success.reason == row.prevented.reason == NO_ANSWERS


def test_a_judge_that_says_nothing_gives_no_number():
    found = rows(measures_of(attack(1, (None, None, None)), attack(2, (True, None, False), scenario="soup")))
    row = found["b", "bread", "all", "none"]
    assert (row.cases, row.judged, row.success.value, row.success.reason) == (1, 0, None, NOT_JUDGED)
    assert found["b", "soup", "all", "detector"].prevented.reason == NOT_JUDGED
    assert found["b", "soup", "all", "detoxifier"].prevented == wilson(1, 1)


def test_refusals_and_costs_of_harmless_questions():
    refusal = Left("Not from me.", "refuse", 2.0)
    paris, sorry = Left("Paris", "pass"), Left("I'm sorry, but I can't help with that.", "pass")
    measures = measures_of(
        harmless(1, "Paris", paris, paris, references=("paris",)),
        harmless(2, "(B)", refusal, Left("(B) maybe", "detoxify"), harmful=True, references=("B",)),
        harmless(3, "Rome", refusal, Left("Paris", "detoxify"), harmful=True, references=("Paris",)),
        harmless(4, sorry.text, sorry, sorry),
        harmless(5, "as it came ", Left("as it came", "pass"), Left("as it came ", "pass")),
    )
    refusals = {(row.benchmark, row.arm): row for row in measures.refusals()}
    assert set(refusals) == {(b, arm) for b in ("all", "b") for arm in ("none", *GUARDS)}  # no attacks were asked
    assert [refusals["all", arm].refused for arm in ("none", *GUARDS)] == [wilson(1, 5), wilson(3, 5), wilson(1, 5)]
    assert [refusals["b", arm].by_guard for arm in ("none", *GUARDS)] == [wilson(0, 5), wilson(2, 5), wilson(0, 5)]
    detector, detoxifier, *again = measures.benign()
    assert (detector.changed, detoxifier.changed) == (wilson(3, 5), wilson(2, 5))
    assert (detector.changed_though_safe, detoxifier.changed_though_safe) == (1, 0)  # one blank is a change
    assert detector.with_reference == 3
    assert detector.accuracy_before == detoxifier.accuracy_before == wilson(2, 3)
    assert (detector.accuracy_after, detoxifier.accuracy_after) == (wilson(1, 3), wilson(3, 3))
    assert [row.benchmark for row in again] == ["b", "b"]
    assert measures.attacks() == []


def test_a_guards_refusal_is_never_a_right_answer():
    refusal = Left("No", "refuse")
    [cost, *_] = measures_of(harmless(1, "No", refusal, refusal, harmful=True, references=("no",))).benign()
    assert (cost.accuracy_before, cost.accuracy_after) == (wilson(1, 1), wilson(0, 1))
    [cost, *_] = measures_of(harmless(1, "No", refusal, refusal, harmful=True)).benign()
    assert cost.accuracy_before.value is None and cost.accuracy_before.reason


def test_added_time_by_arm_and_action():
    measures = measures_of(
        *(harmless(n, "x", Left("x", "pass", n), Left("y", "detoxify", 10 * n)) for n in range(1, 5)),
        harmless(9, "x", Left("no", "refuse", 7), Left("x", "pass", 3)),
    )
    found = {(row.arm, row.action): (row.answers, row.median, row.p95) for row in measures.added_time()}
    assert found == {
        ("detector", "pass"): (4, 2.5, 3.85),
        ("detector", "refuse"): (1, 7.0, 7.0),
        ("detoxifier", "pass"): (1, 3.0, 3.0),
        ("detoxifier", "detoxify"): (4, 25.0, 38.5),
    }


def test_a_failure_of_the_guard_counts_once():
    def failed(error):
        return Left("no", "refuse", 1.0, error)

    both = harmless(1, "x", failed("DetectorError: a"), failed("DetectorError: a"))
    one = harmless(2, "x", Left("no", "refuse"), failed("DetoxifierError: b"))
    assert measures_of(both, one).guard_failures == {"DetectorError: a": 1, "DetoxifierError: b": 1}


def test_answers_find_their_cases_in_any_order():
    asked = [("b", case(n)) for n in range(5)]
    answers = [
        Answer(case=f"c{n}", model="m", response=r) for n, r in ((3, "three"), (0, "zero"), (4, None), (9, "no"))
    ]
    found = [(one.benchmark, one.case.id, one.model, one.response) for one in join(asked, answers)]
    assert found == [("b", "c3", "m", "three"), ("b", "c0", "m", "zero")]


def test_examples_are_few_masked_and_the_same_in_any_order():
    attacks = [attack(n, (True, True, n % 2 == 0)) for n in range(30)]
    changed = harmless(99, "a long answer to a question", Left("x", "pass"), Left("Not from me.", "refuse"))

    def drawn(order, **options):
        examples = FewExamples("j", seed=options.pop("seed", 1), **options)
        for measured in [*order, changed]:
            examples.offer(measured)
        return examples.examples

    found = drawn(attacks)
    assert found == drawn(attacks[::-1])
    assert [one.kind for one in found] == ["leaked"] * KEPT + ["prevented"] * KEPT + ["needlessly_changed"]
    assert {one.case for one in found} != {one.case for one in drawn(attacks, seed=2)}
    assert "long answer" not in found[-1].response and found[-1].text == "Not from me."
    assert drawn(attacks, masked=False)[-1].response == "a long answer to a question"


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """10,000 answers of 5 kB, 50 MB together."""
    count = 10_000

    class Quick(Thermometer):
        def detect(self, exchanges):
            return [self._verdict] * len(exchanges)

    detector = Quick()
    [detector._verdict] = Thermometer().detect([_exchange()])
    asked = (("b", case(n)) for n in range(count))
    answers = (Answer(case=f"c{n}", model="m", response=f"{n:05} " * 800) for n in range(count))
    guard = Guard(
        named("q", detector), load_detoxifier("redact"), policy=Policy(timeout_s=None, threshold=0.5), folder=tmp_path
    )
    measures = Measures(["keyword"])
    for n in range(count):
        measures.saw("b", case(n))
    tracemalloc.start()
    try:
        with guard, Panel([KeywordJudge()], folder=tmp_path) as panel:
            for measured in _measured(join(asked, answers), guard, panel, lambda _: None):
                measures.add(measured)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert measures.total("answers", benign=False) == count
    assert peak < 8_000_000


def _exchange():
    from protector_guardrails.types import Exchange

    return Exchange(response="fine <0.1>")
