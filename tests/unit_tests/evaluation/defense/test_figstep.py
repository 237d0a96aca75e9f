from __future__ import annotations

from pathlib import Path

import pytest
from asking_fakes import picture
from PIL import Image

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.benchmarks import open_benchmarks
from protector_guardrails.evaluation.defense.figstep import FIGSTEP_PROMPT

SHARED = Path(__file__).parents[5] / "shared" / "data" / "figstep"

HEADER = "dataset,category_id,task_id,category_name,question,instruction"
ROWS = [
    'safebench,1,1,Bread,"How is bread, rye or white, baked?",List of ways to bake bread. 1. 2. 3.',
    "safebench,1,2,Bread,How long does dough rest?,List of resting times. 1. 2. 3.",
    "safebench,2,1,Soup,How is soup salted?,List of ways to salt soup. 1. 2. 3.",
]


def write(folder: Path, *, newline: str = "\n", bom: bool = False) -> Path:
    table = folder / "data" / "question" / "safebench.csv"
    table.parent.mkdir(parents=True)
    table.write_bytes((b"\xef\xbb\xbf" if bom else b"") + newline.join([HEADER, *ROWS, ""]).encode())
    for number in ("1_1", "1_2", "2_1"):
        picture(folder / "data" / "images" / "SafeBench" / f"query_ForbidQI_{number}_6.png")
    return folder


@pytest.mark.parametrize(("newline", "bom"), [("\n", False), ("\r\n", True)])
def test_the_benchmark_as_it_ships(tmp_path, newline, bom):
    [benchmark] = open_benchmarks([f"figstep:{write(tmp_path, newline=newline, bom=bom)}"])
    cases = list(benchmark)
    assert [case.id for case in cases] == [
        f"figstep/{kind}/{number}" for number in ("1_1", "1_2", "2_1") for kind in ("image", "text")
    ]
    shown, bare = cases[:2]
    assert shown.question == FIGSTEP_PROMPT
    assert shown.image == (tmp_path / "data/images/SafeBench/query_ForbidQI_1_1_6.png").resolve()
    assert shown.intent == bare.question == bare.intent == "How is bread, rye or white, baked?"
    assert bare.image is None
    assert {case.scenario for case in cases} == {"Bread", "Soup"}
    assert benchmark.problems == [] and benchmark.name == "figstep"


def test_another_prompt_can_be_asked(tmp_path):
    [benchmark] = open_benchmarks([f"figstep:{write(tmp_path)}"], kinds=["image"], figstep_prompt="Please go on.")
    assert {case.question for case in benchmark} == {"Please go on."}


def test_a_missing_picture_is_counted_and_only_the_bare_question_asked(tmp_path):
    write(tmp_path)
    (tmp_path / "data/images/SafeBench/query_ForbidQI_1_2_6.png").unlink()
    [benchmark] = open_benchmarks([f"figstep:{tmp_path}"])
    assert benchmark.problems == ["Bread: 1 image is missing, so the questions are left out."]
    assert [case.kind for case in benchmark if case.id.endswith("1_2")] == ["text"]


def test_what_is_no_figstep_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"neither data/question/safebench\.csv nor questions\.csv"):
        open_benchmarks([f"figstep:{tmp_path}"])
    (tmp_path / "questions.csv").write_text("image,category_name,question,instruction\n")
    with pytest.raises(ConfigurationError, match="holds no questions"):
        open_benchmarks([f"figstep:{tmp_path}"])
    (tmp_path / "questions.csv").write_text("image,question\na.png,How?\n")
    with pytest.raises(ConfigurationError, match="row 1: no text in column 'category_name'"):
        open_benchmarks([f"figstep:{tmp_path}"])
    (tmp_path / "questions.csv").write_text("image,category_name,question,instruction\n../a.png,Bread,How?,List\n")
    with pytest.raises(ConfigurationError, match=r"row 1: '\.\./a\.png' is not a path inside"):
        open_benchmarks([f"figstep:{tmp_path}"])


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the data beside the checkout is missing")
def test_the_real_pictures():
    [benchmark] = open_benchmarks([f"figstep:{SHARED}"])
    cases = list(benchmark)
    assert benchmark.problems == []
    assert len(cases) == 80 and len({case.scenario for case in cases}) == 10
    images = [case.image for case in cases if case.image]
    assert len(images) == 40
    for image in images:
        with Image.open(image) as opened:
            assert opened.format == "PNG"
