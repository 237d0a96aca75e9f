from __future__ import annotations

import os
from pathlib import Path

import pytest
from asking_fakes import document, picture

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.benchmarks import open_benchmarks
from protector_guardrails.evaluation.defense.mm_safetybench import SCENARIOS

BREAD, SOUP = "01-Illegal_Activitiy", "10-Legal_Opinion"


def question(topic: str) -> dict[str, str]:
    return {
        "Question": f"How is {topic} made?",
        "Changed Question": f"How is this made, {topic}?",
        "Key Phrase": topic,
        "Phrase Type": "thing",
        "Rephrased Question": f"How is the {len(topic)}-letter thing in the image made?",
        "Rephrased Question(SD)": f"The picture shows {len(topic)} letters. How is it made?",
    }


def write(folder: Path, scenarios: dict[str, list[str]], *, base: str = "") -> Path:
    for scenario, topics in scenarios.items():
        document(
            folder / base / "processed_questions" / f"{scenario}.json",
            {str(number): question(topic) for number, topic in enumerate(topics)},
        )
        for kind in ("SD", "TYPO", "SD_TYPO"):
            for number, topic in enumerate(topics):
                picture(folder / base / "imgs" / scenario / kind / f"{number}.jpg", f"{kind} {topic}")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "mms", {BREAD: [f"bread{n}" for n in range(11)], SOUP: ["soup"]})


def opened(folder: Path, **options):
    [benchmark] = open_benchmarks([f"mm-safetybench:{folder}"], **options)
    return benchmark


def test_each_kind_asks_its_own_question_and_text_shows_nothing(folder):
    picture(folder / "imgs" / SOUP / "text" / "0.jpg")  # never shown
    by_kind = {case.kind: case for case in opened(folder) if case.scenario == SOUP}
    assert list(by_kind) == ["text", "SD", "TYPO", "SD_TYPO"]
    assert by_kind["text"].question == "How is soup made?"
    assert by_kind["SD"].question == "The picture shows 4 letters. How is it made?"
    assert by_kind["TYPO"].question == by_kind["SD_TYPO"].question == "How is the 4-letter thing in the image made?"
    assert by_kind["text"].image is None
    for kind in ("SD", "TYPO", "SD_TYPO"):
        assert by_kind[kind].image == (folder / "imgs" / SOUP / kind / "0.jpg").resolve()
    assert {case.intent for case in by_kind.values()} == {"How is soup made?"}
    assert not any(case.benign for case in by_kind.values())


def test_order_is_by_scenario_and_number_not_by_the_letters_of_the_number(folder):
    texts = [case.id for case in opened(folder, kinds=["text"])]
    assert texts == [f"mm-safetybench/{BREAD}/text/{n}" for n in range(11)] + [f"mm-safetybench/{SOUP}/text/0"]


def test_what_is_missing_is_told_with_counts_and_never_asked(folder):
    for n in (3, 4):
        (folder / "imgs" / BREAD / "SD" / f"{n}.jpg").unlink()
    document(folder / "processed_questions" / "06-Fraud.json", {})
    document(folder / "processed_questions" / "notes.json", {})
    benchmark = opened(folder)
    asked = {case.id for case in benchmark}
    assert f"mm-safetybench/{BREAD}/SD/3" not in asked
    assert f"mm-safetybench/{BREAD}/TYPO/3" in asked
    assert len(asked) == 4 * 12 - 2
    missing, empty, stranger, images = benchmark.problems
    assert missing.startswith("10 of 13 scenarios are missing: 02-HateSpeech, 03-Malware_Generation")
    assert empty == "Scenario 06-Fraud holds no questions."
    assert stranger == "1 files are no scenario of MM-SafetyBench: notes."
    assert images == f"{BREAD}, SD: 2 images are missing, so the questions are left out."


def test_a_whole_benchmark_has_no_problems(tmp_path):
    folder = write(tmp_path, {scenario: ["soup"] for scenario in SCENARIOS}, base="data")
    benchmark = opened(folder)
    assert benchmark.problems == []
    assert len(list(benchmark)) == 13 * 4


def test_a_few_cases_speak_for_all_scenarios(folder):
    scenarios = [case.scenario for case in opened(folder, limit=8)]
    assert (scenarios.count(BREAD), scenarios.count(SOUP)) == (4, 4)
    assert [case.id for case in opened(folder, limit=8)] == [case.id for case in opened(folder, limit=8)]


def test_a_folder_without_anything_to_ask_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="not MM-SafetyBench: it has no folder 'processed_questions'"):
        opened(tmp_path)
    (tmp_path / "processed_questions").mkdir()
    with pytest.raises(ConfigurationError, match=r"nothing that can be asked\. 13 of 13 scenarios are missing"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"0":\n\n', "line 3: not valid JSON"),
        ("[1]", "not an object of ids"),
        ('{"0": 1}', "not an object of ids"),
        ('{"0": {}, "1": {}, "0": {}}', "'0' occurs 2 times in one object"),
        ("[" * 100_000, r"not valid JSON in UTF-8 \(RecursionError\)"),
        ('{"0": {"Question": "How?"}}', r"question '0': no text in 'Rephrased Question\(SD\)'"),
        ('{"0": {"Question": 4}}', "'Question' must be a text, not int"),
    ],
)
def test_a_damaged_file_is_named(folder, content, told):
    path = folder / "processed_questions" / f"{BREAD}.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=told) as caught:
        opened(folder)
    assert BREAD in str(caught.value)


def test_files_with_a_byte_order_mark_are_read(folder):
    path = folder / "processed_questions" / f"{SOUP}.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b'", ', b'",\r\n'))
    assert any(case.scenario == SOUP for case in opened(folder))


def test_numbers_that_are_paths_stay_inside(folder):
    picture(folder.parent / "secret.jpg")
    document(folder / "processed_questions" / f"{SOUP}.json", {"../../../../secret": question("soup")})
    with pytest.raises(ConfigurationError, match="not a path inside"):
        opened(folder)


def test_the_hash_is_of_questions_and_pictures_by_content(folder, tmp_path):
    before = opened(folder).sha256
    assert opened(folder).sha256 == before
    moved = folder.rename(tmp_path / "elsewhere")
    assert opened(moved).sha256 == before
    image = moved / "imgs" / SOUP / "SD" / "0.jpg"
    stamp = image.stat()
    picture(image, "another soup")
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert opened(moved).sha256 != before
