from __future__ import annotations

import pytest
from asking_fakes import document, lines, picture

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.benchmarks import open_benchmarks


def opened(spec: str):
    [benchmark] = open_benchmarks([spec])
    return benchmark


# MM-Vet ------------------------------------------------------------------------------


def mm_vet(folder):
    for number in range(3):
        picture(folder / "images" / f"v1_{number}.png")
    return document(
        folder / "mm-vet.json",
        {
            "v1_0": {
                "imagename": "v1_0.png",
                "question": "How many loaves?",
                "answer": "three <OR> 3",
                "capability": ["ocr", "math"],
            },
            "v1_1": {"imagename": "v1_1.png", "question": "Which two?", "answer": "rye <AND> wheat <OR> both"},
            "v1_2": {"imagename": "v1_2.png", "question": "What is it?", "answer": "bread"},
            "v1_3": {"imagename": "v1_3.png", "question": "And this?", "answer": "bread"},
        },
    )


def test_mm_vet(tmp_path):
    file = mm_vet(tmp_path)
    for path in (tmp_path, file):
        benchmark = opened(f"mm-vet:{path}")
        one, two, three = benchmark
        assert (one.id, one.references, one.scenario, one.kind) == (
            "mm-vet/v1_0",
            ("three <OR> 3",),
            "math, ocr",
            "image",
        )
        assert one.image == (tmp_path / "images" / "v1_0.png").resolve()
        assert two.references == ("rye <AND> wheat <OR> both",) and three.references == ("bread",)
        assert all(case.benign for case in benchmark)
        assert benchmark.problems == [
            "MM-Vet: 1 image is missing, so the questions are left out.",
        ]


def test_mm_vet_errors_name_the_question(tmp_path):
    document(tmp_path / "mm-vet.json", {"v1_0": {"imagename": "v1_0.png", "question": "What?"}})
    with pytest.raises(ConfigurationError, match=r"mm-vet\.json, question 'v1_0': no text in 'answer'"):
        opened(f"mm-vet:{tmp_path}")
    document(tmp_path / "mm-vet.json", {"v1_0": {"imagename": "../x.png", "question": "What?", "answer": "x"}})
    with pytest.raises(ConfigurationError, match=r"question 'v1_0': .* is not a path inside"):
        opened(f"mm-vet:{tmp_path}")
    document(tmp_path / "mm-vet.json", [])
    with pytest.raises(ConfigurationError, match="not an object of ids"):
        opened(f"mm-vet:{tmp_path}")
    (tmp_path / "mm-vet.json").unlink()
    with pytest.raises(ConfigurationError, match=r"has no file mm-vet\.json"):
        opened(f"mm-vet:{tmp_path}")


# MMMU --------------------------------------------------------------------------------


def test_mmmu(tmp_path):
    picture(tmp_path / "loaf.png")
    more = {"image_1": "loaf.png"}
    lines(
        tmp_path / "questions.jsonl",
        [
            {
                "id": "validation_Art_Theory_1",
                "question": "Look at <image 1>.",
                "options": ["rye", "wheat"],
                "answer": "B",
            }
            | more,
            {"id": "validation_Art_2", "question": "Which?", "options": "['rye', \"baker's\"]", "answer": "A"} | more,
            {"id": "validation_Art_3", "question": "How many?", "options": "[]"} | more,
            {"id": "validation_Art_4", "question": "Two?", "options": [], "answer": "x", "image_2": "loaf.png"} | more,
            {"id": "validation_Art_5", "question": "Half?", "options": "[]", "answer": "['1/2', '0.5']"} | more,
            {"id": "validation_Art_6", "question": "Gone?", "options": "[]", "answer": "x", "image_1": "gone.png"},
        ],
    )
    ground_truth = {"validation_Art_3": {"question_type": "short-answer", "ground_truth": ["3", 3.0]}}
    document(tmp_path / "answer_dict_val.json", ground_truth)
    benchmark = opened(f"mmmu:{tmp_path}")
    assert [(case.id, case.scenario, case.references) for case in benchmark] == [
        ("mmmu/validation_Art_Theory_1", "Art Theory", ("B", "wheat")),
        ("mmmu/validation_Art_2", "Art", ("A", "rye")),
        ("mmmu/validation_Art_3", "Art", ("3", "3.0")),
        ("mmmu/validation_Art_5", "Art", ("1/2", "0.5")),
    ]
    first = next(iter(benchmark))
    assert first.question == "Look at <image 1>.\nA. rye\nB. wheat\nAnswer with the letter of the right choice."
    assert benchmark.problems == [
        "1 questions show more than one image and are left out.",
        "Art: 1 image is missing, so the questions are left out.",
    ]
    before = benchmark.sha256
    document(tmp_path / "answer_dict_val.json", {})
    assert opened(f"mmmu:{tmp_path}").sha256 != before


def test_mmmu_errors_name_the_line(tmp_path):
    for row, told in (
        ({"id": "x", "question": "?", "options": ["a"], "answer": "C"}, "line 1: 'answer' is not one of the 1 choices"),
        ({"id": "x", "question": "?", "image_1": {"bytes": "00"}}, "line 1: 'image_1' must be a text, not dict"),
        ({"question": "?"}, "line 1: no text in 'id'"),
    ):
        lines(tmp_path / "questions.jsonl", [row])
        with pytest.raises(ConfigurationError, match=told):
            opened(f"mmmu:{tmp_path / 'questions.jsonl'}")


# ScienceQA ---------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["", "images/"])
def test_scienceqa(tmp_path, base):
    picture(tmp_path / f"{base}test/7/image.png")
    question = {"question": "Which rises?", "choices": ["yeast", "salt"], "answer": 0, "hint": "", "image": None}
    document(
        tmp_path / "problems.json",
        {
            "7": question | {"image": "image.png", "subject": "natural science", "hint": "Look closely."},
            "8": question | {"answer": 1},
            "9": question | {"image": "image.png"},
            "10": question,
        },
    )
    document(tmp_path / "pid_splits.json", {"train": ["10"], "test": ["7", "8", "9", "11"]})
    benchmark = opened(f"scienceqa:{tmp_path}")
    seven, eight = benchmark
    asked = "Which rises?\nA. yeast\nB. salt\nAnswer with the letter of the right choice."
    assert (seven.id, seven.kind, seven.references) == ("scienceqa/7", "image", ("A", "yeast"))
    assert seven.question == f"Look closely.\n{asked}" and seven.scenario == "natural science"
    assert seven.image is not None
    assert (eight.question, eight.image, eight.references) == (asked, None, ("B", "salt"))
    assert benchmark.problems == [
        "1 ids of the split 'test' have no question.",
        "ScienceQA: 1 image is missing, so the questions are left out.",
    ]


def test_scienceqa_errors(tmp_path):
    document(tmp_path / "problems.json", {"7": {"question": "?", "choices": ["a"], "answer": 1}})
    with pytest.raises(ConfigurationError, match=r"has no file pid_splits\.json"):
        opened(f"scienceqa:{tmp_path}")
    document(tmp_path / "pid_splits.json", {"val": ["7"]})
    with pytest.raises(ConfigurationError, match="no list of ids for the split 'test'"):
        opened(f"scienceqa:{tmp_path}")
    document(tmp_path / "pid_splits.json", {"test": ["7"]})
    with pytest.raises(ConfigurationError, match="question '7': 'answer' is not one of the 1 choices"):
        opened(f"scienceqa:{tmp_path}")
