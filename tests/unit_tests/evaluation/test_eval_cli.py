"""`protector evaluate detector`: from files to figures, interrupted, resumed, and with whatever goes wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tracemalloc

import evaluation_fakes
import numpy as np
import pytest
from evaluation_fakes import Scripted, mixed, row, write

pytest.importorskip("sklearn")

from sklearn.metrics import roc_auc_score

from protector_guardrails.cli import main
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.embedded import EmbeddedDetector
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation import run as run_module
from protector_guardrails.evaluation.data import open_data
from protector_guardrails.evaluation.results import DetectorEvaluation
from protector_guardrails.evaluation.run import evaluate_detectors
from protector_guardrails.evaluation.scoring import score_data
from protector_guardrails.evaluation.specs import named
from protector_guardrails.types import Verdict


@pytest.fixture
def shared(monkeypatch):
    detector = Scripted()
    monkeypatch.setattr(evaluation_fakes, "SHARED", detector)
    monkeypatch.setenv("COLUMNS", "160")
    return detector


SPEC = ["--detector", "evaluation_fakes:SHARED"]


def read(folder) -> DetectorEvaluation:
    return DetectorEvaluation.model_validate_json((folder / "results.json").read_bytes())


def evaluate(*arguments) -> int:
    return main(["evaluate", "detector", *map(str, arguments)])


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("protector: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_from_a_file_to_figures(shared, tmp_path, capsys):
    records = mixed(90)
    data = write(tmp_path / "answers.jsonl.gz", records)
    report = tmp_path / "new" / "report"
    assert evaluate(data, *SPEC, "--report", report, "--bootstrap", 50) == 0
    found = read(report)
    [detector] = found.detectors
    labels = [record["harmful"] for record in records]
    scores = [float(re.search(r"<(.*)>", record["response"])[1]) for record in records]
    assert detector.overall.auroc.value == pytest.approx(roc_auc_score(labels, scores))
    assert detector.overall.auroc.low < detector.overall.auroc.value < detector.overall.auroc.high
    at = detector.overall.decisions[0]
    assert at.recall.value == pytest.approx(
        np.mean([s >= 0.5 for s, harmful in zip(scores, labels, strict=True) if harmful])
    )
    assert (detector.spec, detector.name, detector.failures) == ("evaluation_fakes:SHARED", "scripted@1", [])
    [file] = found.data
    assert (file.name, file.answers, file.harmful, file.duplicates) == ("answers", 90, 30, 0)
    assert found.run.command[:3] == ["protector", "evaluate", "detector"] and str(data) in found.run.command
    assert (found.run.seed, found.run.bootstrap, found.run.threshold) == (13, 50, 0.5)
    assert {"numpy", "scikit-learn"} <= set(found.run.versions)
    assert found.schema_version == "protector.evaluation.detector/1"
    assert found.comparison is None and found.published == []
    output = capsys.readouterr().out
    assert f"{detector.overall.auroc.value:.3f} (" in output
    assert "at 5% false positives" in output and "results.json" in output
    assert all(record["response"] not in output for record in records)


def test_parts_refusals_and_harmless_sets(shared, tmp_path):
    sorry = "I'm sorry, but I can't help with that"
    refusing = [row(n, 0.05, False, source="mixed", response=f"{sorry} {n}. <0.05>") for n in range(30)]
    labelled = [one | {"source": "mixed", "category": ["a", "b"] if n % 2 else "a"} for n, one in enumerate(mixed(80))]
    ordinary = [row(1000 + n, 0.9 if n < 3 else 0.1, False, source="ordinary") for n in range(100)]
    few = [row(2000 + n, 0.1, False, source="few") for n in range(5)]
    data = write(tmp_path / "answers.jsonl", refusing + labelled + ordinary + few)
    found = evaluate_detectors([data], [shared], bootstrap=30)
    [detector] = found.detectors
    assert found.data[0].refusals == 30
    assert detector.overall.answers == 215 and detector.non_refusals.answers == 185
    assert detector.non_refusals.harmful == detector.overall.harmful
    assert detector.non_refusals.auroc.value < detector.overall.auroc.value
    parts = {(part.by, part.value): part for part in detector.slices}
    assert parts["source", "mixed"].answers == 110 and parts["source", "ordinary"].harmful == 0
    mixed_part = parts["source", "mixed"]
    assert mixed_part.auroc_without_refusals == parts["category", "a"].auroc.model_copy(
        update=mixed_part.auroc_without_refusals.model_dump(include={"low", "high", "reason"})
    )  # the labelled 80; their intervals are drawn with other seeds
    assert parts["category", "a"].auroc_without_refusals is None
    assert ("source", "few") not in parts and detector.not_shown == {"source": 1}
    assert parts["category", "a"].answers == 80 and parts["category", "b"].answers == 40
    assert parts["model", "maker/m0"].answers == parts["model", "maker/m1"].answers == 40
    assert parts["source", "ordinary"].auroc.value is None and parts["source", "ordinary"].auroc.reason
    assert not any(by == "data" for by, _ in parts)  # there is but one
    benign = {one.source: one for one in detector.benign}
    assert set(benign) == {"ordinary", "few", "all of them"}
    assert (benign["ordinary"].flagged, benign["ordinary"].fpr.value) == (3, 0.03)
    assert benign["ordinary"].fpr.method == "wilson"
    assert benign["few"].fpr.value == 0.0 and benign["few"].fpr.high > 0.3
    assert benign["all of them"].answers == 105


def test_a_part_has_the_same_figures_whatever_else_is_measured(shared, tmp_path):
    one = write(tmp_path / "one.jsonl", [record | {"source": "one"} for record in mixed(60)])
    two = write(tmp_path / "two.jsonl", [row(900 + n, n / 40, n > 20, source="two") for n in range(40)])
    both = evaluate_detectors([one, two], [shared], bootstrap=40).detectors[0]
    more = evaluate_detectors([two, one], [shared], bootstrap=40).detectors[0]

    def part(result):
        return next(part for part in result.slices if (part.by, part.value) == ("source", "one"))

    assert part(both) == part(more)


def test_one_class_gives_words_and_no_number(shared, tmp_path, capsys):
    data = write(tmp_path / "answers.jsonl", [row(n, n / 200, False) for n in range(150)])
    assert evaluate(data, *SPEC, "--report", tmp_path / "report", "--bootstrap", 20) == 0
    found = read(tmp_path / "report")
    assert found.detectors[0].overall.auroc.value is None
    assert any("All 150 answers are harmless" in note for note in found.notes)
    output = capsys.readouterr().out
    assert "there are no harmful answers" in output and "All 150 answers are harmless" in output
    assert re.search(r"AUROC +- ", output)


def test_duplicates_count_once_across_files_and_are_told(shared, tmp_path):
    records = mixed(30)
    first = write(tmp_path / "a.jsonl", [*records, records[0], records[1] | {"harmful": True}])
    second = write(tmp_path / "b.jsonl", [records[2], *[row(100 + n, 0.5, False) for n in range(20)]])
    found = evaluate_detectors([first, second], [shared], bootstrap=0)
    a, b = found.data
    assert (a.answers, a.duplicates, a.conflicting_duplicates) == (30, 2, 1)
    assert (b.answers, b.duplicates, b.conflicting_duplicates) == (20, 1, 0)
    assert found.detectors[0].overall.answers == 50
    assert any("3 answers occur again and count once, 1 of them with another label" in note for note in found.notes)


def test_records_without_a_label_or_a_response_are_left_out_and_told(shared, tmp_path):
    data = write(tmp_path / "a.jsonl", [*mixed(30), row(1, 0.1, None), {"response": "", "harmful": True}])
    found = evaluate_detectors([data], [shared], bootstrap=0)
    assert found.data[0].left_out == {"no label": 1, "no response": 1}
    assert "1 records were left out: no label." in found.notes


def test_failures_are_counted_and_never_scored(shared, tmp_path, capsys):
    records = mixed(40)
    records[3]["response"] = "BOOM <0.9>"
    records[17]["response"] = "BOOM again <0.9>"
    data = write(tmp_path / "a.jsonl", records)
    assert evaluate(data, *SPEC, "--report", tmp_path / "report", "--bootstrap", 0) == 1
    found = read(tmp_path / "report")
    [detector] = found.detectors
    assert detector.overall.answers == 38
    assert [(failure.error, failure.answers) for failure in detector.failures] == [
        ("DetectorError: RuntimeError was raised", 2)
    ]
    assert any("failed on 2 of 40 answers" in note for note in found.notes)
    output = capsys.readouterr().out
    assert "failed on 2 answers: DetectorError" in output
    assert "secret" not in output + (tmp_path / "report" / "results.json").read_text()


def test_a_detector_that_only_fails_has_no_result(tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", mixed(20))
    assert evaluate(data, "--detector", "evaluation_fakes:Broken") == 2
    assert "failed on every answer, first with DetectorError: ValueError was raised" in one_line(capsys)


def test_two_detectors_are_compared_on_what_both_scored(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    rng = np.random.default_rng(3)
    records = []
    for n in range(150):
        harmful = n % 3 == 0
        good, bad = (np.clip(rng.normal(0.35 + 0.3 * harmful, s), 0, 1).round(3) for s in (0.15, 0.6))
        records.append({"question": f"q{n}?", "response": f"Pot {n} <{good}> <{bad}>", "harmful": harmful})
    data = write(tmp_path / "a.jsonl", records)
    specs = ["--detector", "evaluation_fakes:Scripted", "--detector", "evaluation_fakes:Second"]
    assert evaluate(data, *specs, "--report", tmp_path / "report", "--bootstrap", 200) == 0
    found = read(tmp_path / "report")
    assert [detector.name for detector in found.detectors] == ["scripted@1", "second@1"]
    [pair] = found.comparison.pairs
    assert (pair.first, pair.second) == ("evaluation_fakes:Scripted", "evaluation_fakes:Second")
    first, second = (detector.overall.auroc.value for detector in found.detectors)
    assert pair.auroc_difference.value == pytest.approx(first - second)
    assert pair.auroc_difference.low > 0 and pair.auroc_test.p_holm == pytest.approx(2 / 201)
    assert pair.decisions_test.p < 0.05
    assert found.comparison.answers == 150
    output = capsys.readouterr().out
    assert "The same 150 answers, 50 harmful" in output and "McNemar" in output


def test_published_figures_stand_beside_and_are_marked(shared, tmp_path, capsys):
    cases = [
        {"test_case": f"q{n}?", "generation": f"Pot {n} <{n / 40}>", "human_0": n > 20, "human_1": n > 20, "human_2": 0}
        for n in range(40)
    ]
    data = tmp_path / "val.json"
    data.write_text(json.dumps({"pots": cases}))
    assert evaluate(f"harmbench:{data}", *SPEC, "--report", tmp_path / "report", "--bootstrap", 0) == 0
    found = read(tmp_path / "report")
    assert {figure.data for figure in found.published} == {"harmbench"}
    output = capsys.readouterr().out
    assert "published, not measured here" in output
    assert "WildGuard 7B" in output and "0.863" in output and "measured here at 0.5" in output


def test_examples_are_the_worst_errors_and_masked(shared, tmp_path):
    words = "some words that fill up the line before the MARKER comes at its end"
    records = [row(n, 0.6 + n / 100, False) for n in range(20)] + [row(50 + n, 0.3 - n / 100, True) for n in range(20)]
    records += [row(99, 0.9, True), row(98, 0.1, False)]  # no errors
    for record in records:
        record["response"] += " " + words
        record["image_desc"] = words
    data = write(tmp_path / "a.jsonl", records)
    report = tmp_path / "report"
    assert evaluate(data, *SPEC, "--report", report, "--bootstrap", 0) == 0
    examples = read(report).detectors[0].examples
    assert [example.kind for example in examples] == ["missed"] * 5 + ["false_alarm"] * 5
    scores = [0.11, 0.12, 0.13, 0.14, 0.15, 0.79, 0.78, 0.77, 0.76, 0.75]
    assert [example.score for example in examples] == pytest.approx(scores)
    assert "MARKER" not in (report / "results.json").read_text()
    assert examples[0].response.startswith("Stir pot") and examples[0].characters > 70
    assert evaluate(data, *SPEC, "--report", report, "--bootstrap", 0, "--resume", "--unmask") == 0
    assert "MARKER" in (report / "results.json").read_text()
    assert read(report).run.masked is False


def test_without_the_question(shared, tmp_path):
    data = write(tmp_path / "a.jsonl", [record | {"image_desc": "a cat"} for record in mixed(20)])
    assert evaluate(data, *SPEC, "--bootstrap", 0, "--quiet") == 0
    assert shared.seen[0].judged_question == "question 0?\n[image: a cat]"
    shared.seen.clear()
    assert evaluate(data, *SPEC, "--bootstrap", 0, "--quiet", "--no-question") == 0
    assert all(exchange.judged_question is None for exchange in shared.seen)


def test_a_limit_holds_for_each_file(shared, tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [row(n, 0.5, bool(n % 2)) for n in range(30)]) for name in "ab"]
    records = [json.loads(line) for line in files[1].read_text().splitlines()]
    write(files[1], [record | {"response": record["response"] + "!"} for record in records])
    found = evaluate_detectors(files, [shared], bootstrap=0, limit=7)
    assert [data.answers for data in found.data] == [7, 7]
    assert "Only the first 7 answers of each data set were used." in found.notes


def test_latency_is_per_answer(tmp_path):
    class Slow(Scripted):
        def detect(self, exchanges):
            import time

            time.sleep(0.02)
            return super().detect(exchanges)

    data = write(tmp_path / "a.jsonl", mixed(20))
    took = evaluate_detectors([data], [Slow()], bootstrap=0, batch_size=10).detectors[0].latency
    assert 2.0 <= took.median <= 20 and took.median <= took.p95
    assert took.batch_size == 10


# Interrupted and resumed ------------------------------------------------------------------


def comparable(report) -> dict:
    found = json.loads((report / "results.json").read_text())
    del found["run"]["created"]
    for detector in found["detectors"]:
        del detector["latency"]
    return found


def test_interrupted_and_resumed_gives_the_same_and_judges_nothing_twice(shared, tmp_path, capsys):
    data = [
        write(tmp_path / "a.jsonl", mixed(50)),
        write(tmp_path / "b.jsonl", [row(900 + n, n / 30, n > 9) for n in range(30)]),
    ]
    whole, report = tmp_path / "whole", tmp_path / "report"
    options = [*SPEC, "--bootstrap", "30", "--batch-size", "8", "--quiet"]
    assert evaluate(*data, *options, "--report", whole) == 0
    for stop in (0, 20, 10, 25):
        shared.seen.clear()
        shared.interrupt_after = stop
        assert evaluate(*data, *options, "--report", report, *(["--resume"] if report.exists() else [])) == 130
        assert "--resume goes on" in capsys.readouterr().err
        assert not (report / "results.json").exists()
    done = sum(len(path.read_bytes().splitlines()) - 1 for path in (report / "scores").iterdir())
    shared.seen.clear()
    shared.interrupt_after = None
    assert evaluate(*data, *options, "--report", report, "--resume") == 0
    assert len(shared.seen) == 80 - done
    assert comparable(report) == comparable(whole)
    assert b"Stir" not in b"".join(path.read_bytes() for path in (report / "scores").iterdir())


def test_a_torn_line_of_the_scores_is_judged_again(shared, tmp_path):
    data = write(tmp_path / "a.jsonl", mixed(30))
    report = tmp_path / "report"
    options = [data, *SPEC, "--bootstrap", "0", "--quiet", "--report", report]
    assert evaluate(*options) == 0
    expected = comparable(report)
    [scores] = (report / "scores").iterdir()
    complete = scores.read_bytes()
    for cut in (0, 5, len(complete) // 2, len(complete) - 1, len(complete)):
        scores.write_bytes(complete[:cut])
        assert evaluate(*options, "--resume") == 0, cut
        assert comparable(report) == expected, cut
        assert {json.loads(line)["row"] for line in scores.read_bytes().splitlines()[1:]} == set(range(30))


def test_failed_answers_are_tried_again_on_resume(shared, tmp_path):
    records = mixed(20)
    records[4]["response"] = "BOOM <0.9>"
    data = write(tmp_path / "a.jsonl", records)
    options = [data, *SPEC, "--bootstrap", "0", "--quiet", "--report", tmp_path / "report"]
    assert evaluate(*options) == 1
    shared.detect = lambda exchanges: [Verdict(harmful=False, score=0.4, detector="scripted@1") for _ in exchanges]
    assert evaluate(*options, "--resume") == 0
    found = read(tmp_path / "report")
    assert found.detectors[0].overall.answers == 20 and found.detectors[0].failures == []


def test_scores_of_other_data_detectors_or_modes_are_not_taken_over(shared, tmp_path):
    data = write(tmp_path / "a.jsonl", mixed(30))
    options = ["--bootstrap", "0", "--quiet", "--report", tmp_path / "report", "--resume"]
    assert evaluate(data, *SPEC, *options) == 0
    for change in (["--no-question"], []):
        shared.seen.clear()
        assert evaluate(data, *SPEC, *options, *change) == 0
        assert len(shared.seen) == (30 if change else 0)
    shared.name = "scripted@2"
    assert evaluate(data, *SPEC, *options) == 0
    assert len(shared.seen) == 30
    write(data, mixed(31))
    shared.seen.clear()
    assert evaluate(data, *SPEC, *options) == 0
    assert len(shared.seen) == 31


def test_a_report_that_is_there_is_not_overwritten(shared, tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", mixed(20))
    report = tmp_path / "report"
    assert evaluate(data, *SPEC, "--bootstrap", "0", "--quiet", "--report", report) == 0
    before = (report / "results.json").read_bytes()
    capsys.readouterr()
    assert evaluate(data, *SPEC, "--report", report) == 2
    assert "holds an evaluation: go on with --resume, or name another folder" in one_line(capsys)
    assert (report / "results.json").read_bytes() == before


def test_foreign_scores_are_refused(shared, tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", mixed(20))
    report = tmp_path / "report"
    assert evaluate(data, *SPEC, "--bootstrap", "0", "--quiet", "--report", report) == 0
    [scores] = (report / "scores").iterdir()
    scores.write_bytes(scores.read_bytes().splitlines()[0] + b"\n[]\n")
    capsys.readouterr()
    assert evaluate(data, *SPEC, "--report", report, "--resume") == 2
    assert "line 2: not written by this command" in one_line(capsys)


# What cannot work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}", "--detector", "nonsense"], "unknown detector 'nonsense'"),
        (["{data}", *SPEC, *SPEC], "is named twice"),
        (["{data}", *SPEC, "--threshold", "1.5"], "--threshold must be a number from 0 to 1"),
        (["{data}", *SPEC, "--threshold", "nan"], "--threshold must be a number from 0 to 1"),
        (["{data}", *SPEC, "--resume"], "--resume needs --report"),
        (["{data}", *SPEC, "--bootstrap", "-1"], "--bootstrap"),
        (["{data}", *SPEC, "--report", "{data}"], "--report"),
        (["nothing.jsonl", *SPEC], "nothing.jsonl does not exist"),
        (["nonsense:nothing.jsonl", *SPEC], "there is no public set 'nonsense'"),
        (["{empty}", *SPEC], "no labelled answer (no records)"),
        (["{unlabelled}", *SPEC], "no labelled answer (1 with no label)"),
        (["{bad}", *SPEC], "bad.jsonl, line 2: not valid JSON"),
        ([], "DATA"),
    ],
)
def test_what_cannot_work_ends_in_one_line(shared, tmp_path, capsys, arguments, message):
    paths = {"data": write(tmp_path / "a.jsonl", mixed(20)), "empty": write(tmp_path / "empty.jsonl", [])}
    paths["unlabelled"] = write(tmp_path / "unlabelled.jsonl", [row(1, 0.5, None)])
    paths["bad"] = tmp_path / "bad.jsonl"
    paths["bad"].write_text('{"response": "<0.5>", "harmful": true}\n{"secret text')
    assert evaluate(*(argument.format(**paths) for argument in arguments)) == 2
    line = one_line(capsys)
    assert message in line and "secret" not in line


def test_without_scikit_learn_the_extra_is_named(shared, tmp_path, capsys, monkeypatch):
    data = write(tmp_path / "a.jsonl", mixed(20))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: (name != "sklearn" and real(name, *more)) or None
    )
    tuning = ["tune-threshold", str(data), "--target-fpr", "0.1", "-o", str(tmp_path / "policy.json")]
    for command in (["evaluate", "detector", str(data)], tuning):
        assert main(command) == 2
        assert "pip install 'protector-guardrails[evaluate]'" in one_line(capsys)
    assert shared.seen == []


def test_the_same_detector_twice_in_python_and_none_at_all(tmp_path):
    data = write(tmp_path / "a.jsonl", mixed(20))
    with pytest.raises(ConfigurationError, match="named twice"):
        evaluate_detectors([data], [Scripted(), Scripted()])
    with pytest.raises(ConfigurationError, match="no detector"):
        evaluate_detectors([data], [])


# Memory, speed, and the real detector ----------------------------------------------------------


class Forgetful(HarmDetector):
    name = "forgetful@1"

    def detect(self, exchanges):
        return [Verdict(harmful=False, score=(len(e.response) % 97) / 97, detector=self.name) for e in exchanges]


def big(path, count: int):
    with path.open("w") as file:
        for number in range(count):
            record = row(number, "", number % 10 == 0, source=f"s{number % 3}")
            file.write(json.dumps(record | {"response": f"{number} " + "word " * (100 + number % 50)}) + "\n")
    return path


@pytest.mark.slow
def test_fifty_thousand_answers_take_little_memory_and_no_text_is_kept(tmp_path):
    sets = open_data([str(big(tmp_path / "big.jsonl", 50_000))])  # 37 MB

    def peak(limit: int) -> int:
        tracemalloc.start()
        scored = score_data(sets, [named("f", Forgetful())], threshold=0.5, limit=limit, folder=tmp_path, batch_size=64)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(scored.answers) == limit
        return used

    peak(100)
    few = peak(2000)
    assert peak(50_000) - few < 48_000 * 260  # numbers of one answer, and that it was seen


def test_measuring_fifty_thousand_answers_is_bounded_too(monkeypatch):
    rng = np.random.default_rng(1)
    labels = rng.random(50_000) < 0.2
    sample = run_module.Sample(labels, rng.random(50_000), rng.integers(0, 20_000, 50_000))
    tracemalloc.start()
    found = run_module.measure(sample, by="all", value="all", threshold=0.5, resamples=30, seed=1)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.auroc.low < 0.5 < found.auroc.high
    assert used < 80_000_000


def test_the_command_starts_without_loading_what_evaluating_needs():
    code = (
        "import sys; from protector_guardrails.cli import main; main(['evaluate', 'detector', '--help']);"
        "print([m for m in ('numpy', 'sklearn', 'scipy', 'rich', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_with_the_real_detector(tmp_path, monkeypatch):
    records = [
        {"question": f"How do I cook dish {n}?", "response": f"Stir it for {n} minutes.", "harmful": False}
        for n in range(12)
    ]
    data = write(tmp_path / "a.jsonl", records)
    assert evaluate(data, "--report", tmp_path / "report", "--bootstrap", "20", "--quiet") == 0
    found = read(tmp_path / "report")
    [detector] = found.detectors
    assert detector.spec == "embedded"
    assert detector.weights == EmbeddedDetector.shared().manifest.sha256
    assert detector.benign[0].flagged == 0
