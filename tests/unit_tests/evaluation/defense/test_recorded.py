from __future__ import annotations

import gzip

import pytest
from asking_fakes import FakeMllm, lines, picture, text_cases

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.answering import answer_all
from protector_guardrails.evaluation.defense.benchmarks import open_benchmarks
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.mllms import load_mllm
from protector_guardrails.evaluation.defense.recorded import NoRecordedAnswerError, RecordedMllm, recorded_beside

ROWS = [
    {"id": "r-1", "question": "Is it raining?", "response": "Yes, take a coat.", "harmful": False, "model": "maker--m"},
    {"id": "r-2", "question": "May I?", "image_desc": "a cake", "response": "Yes, do.", "model": "maker--m"},
    {"question": "And now?", "response": "", "model": "maker--m"},
    {"id": "r-4", "question": "Only asked?"},
]


def case(name: str, question: str) -> Case:
    return Case(id=name, scenario="s", kind="text", question=question)


async def test_a_row_answers_the_case_that_is_made_of_it(tmp_path):
    path = lines(tmp_path / "rows.jsonl", ROWS)
    [benchmark] = open_benchmarks([str(path)])
    recorded = load_mllm(f"recorded:{path}")
    assert recorded.name == "maker/m"
    answers = [await recorded.answer(case) for case in list(benchmark)[:3]]
    assert answers == ["Yes, take a coat.", "Yes, do.", ""]
    with pytest.raises(NoRecordedAnswerError, match="no answer is recorded"):
        await recorded.answer(list(benchmark)[3])


async def test_an_answer_to_another_question_is_not_taken(tmp_path):
    recorded = RecordedMllm(lines(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(NoRecordedAnswerError, match="to another question"):
        await recorded.answer(case("r-1", "Is it snowing?"))
    assert await recorded.answer(case("r-1", " Is it raining?\n")) == "Yes, take a coat."


def test_a_run_over_recorded_answers_keeps_who_gave_them(tmp_path):
    path = lines(tmp_path / "rows.jsonl", [{**row, "model": f"m{n}"} for n, row in enumerate(ROWS)])
    [benchmark] = open_benchmarks([str(path)])
    mllm = load_mllm(str(path))
    assert mllm.name == "3 models"
    log = answer_all(benchmark, mllm, store=tmp_path / "out" / "answers.jsonl")
    answers = {answer.case: answer for answer in log.answers()}
    assert [answer.model for answer in answers.values()] == ["m0", "m1", "m2", "3 models"]
    assert answers["r-2"].response == "Yes, do." and answers["r-2"].elapsed_ms is None
    assert answers["r-4"].response is None
    assert log.taken_over == 3 and log.failures == {"NoRecordedAnswerError": 1}


async def test_answers_stand_beside_the_questions_of_several_files(tmp_path):
    first = lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "folder").mkdir()
    lines(
        tmp_path / "folder" / "cases.jsonl", [{"id": "x", "question": "Who?", "response": "We.", "model": "maker--n"}]
    )
    recorded = recorded_beside([first, tmp_path / "folder"])
    assert recorded.name == "2 models"
    assert [await recorded.answer(case("x", "Who?")), await recorded.answer(case("r-2", "May I?"))] == [
        "We.",
        "Yes, do.",
    ]
    with pytest.raises(ConfigurationError, match="no benchmark is a file of recorded answers"):
        recorded_beside([tmp_path])


def test_answers_of_a_run_can_be_used_again(tmp_path):
    shown = Case(id="shown", scenario="s", kind="image", question="What?", image=picture(tmp_path / "a.png"))
    cases = [*text_cases(3), shown]
    store = tmp_path / "answers.jsonl"
    first = answer_all(cases, FakeMllm({"c1": ValueError("no")}), store=store, retries=0)
    again = load_mllm(f"recorded:{store}")
    assert again.name == "fake-1"
    second = answer_all(cases, again, store=tmp_path / "second.jsonl")
    assert [a for a in second.answers() if a.response] == [a for a in first.answers() if a.response]
    assert second.failures == {"NoRecordedAnswerError": 1} and second.taken_over == 3
    picture(tmp_path / "a.png", "changed")
    third = answer_all(cases, again, store=tmp_path / "third.jsonl")
    assert third.failures == {"NoRecordedAnswerError": 2}


def test_changed_recordings_are_not_mixed_up_with_earlier_ones(tmp_path):
    path, store = lines(tmp_path / "rows.jsonl", ROWS[:2]), tmp_path / "answers.jsonl"
    [benchmark] = open_benchmarks([str(path)])
    answer_all(benchmark, RecordedMllm(path), store=store)
    lines(path, [{**row, "response": "No."} for row in ROWS[:2]])
    log = answer_all(benchmark, RecordedMllm(path), store=store)
    assert [answer.response for answer in log.answers()] == ["No.", "No."]


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(tmp_path / "rows.jsonl", ROWS).read_bytes()))
    assert load_mllm(str(path)).name == "maker/m"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"question": "?"}], "holds no recorded answers"),
        ([ROWS[0], ROWS[0]], "line 2: a second answer to the case 'r-1'"),
        ([{"question": "?", "response": 4}], "line 1: 'response' must be a text, not int"),
        ([{"case": "c", "asked": "x", "response": 4}], "line 1: 'case' and 'response' must be texts"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, rows, told):
    with pytest.raises(ConfigurationError, match=told):
        RecordedMllm(lines(tmp_path / "rows.jsonl", rows))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a file of recorded answers"):
        load_mllm(f"recorded:{tmp_path / 'none.jsonl'}")
    with pytest.raises(ConfigurationError, match="there is no such file"):
        load_mllm(str(tmp_path / "none.jsonl"))
