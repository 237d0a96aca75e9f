from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest
from asking_fakes import lines, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.benchmarks import open_benchmarks
from protector_guardrails.evaluation.defense.folders import file_in

ROWS = [
    {"id": "a", "question": "How is bread baked?", "scenario": "bread", "intent": "baking"},
    {"id": 2, "question": "What is this?", "image": "pictures/loaf.png", "image_desc": "a loaf", "kind": "photo"},
    {"question": "How many?", "image": "pictures/loaf.png", "benign": True, "references": ["three", "3"]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "own" / "pictures" / "loaf.png")
    lines(tmp_path / "own" / "cases.jsonl", ROWS)
    return tmp_path / "own"


def opened(path: Path, **options):
    [benchmark] = open_benchmarks([str(path)], **options)
    return benchmark


def test_every_field_is_read(folder):
    benchmark = opened(folder)
    first, second, third = benchmark
    assert (first.id, first.scenario, first.kind, first.intent) == ("a", "bread", "text", "baking")
    assert (second.id, second.kind, second.description, second.scenario) == ("2", "photo", "a loaf", "unspecified")
    assert second.image == (folder / "pictures" / "loaf.png").resolve()
    assert (third.id, third.benign, third.references, third.kind) == ("cases-3", True, ("three", "3"), "image")
    assert not first.benign and not second.benign
    assert (benchmark.name, benchmark.path, len(benchmark)) == ("own", folder, 3)


def test_one_file_is_a_benchmark_too(folder):
    lines(folder / "more.jsonl", ROWS, bom=True, newline="\r\n")
    assert [case.id for case in opened(folder / "more.jsonl")] == ["a", "2", "more-3"]
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress((folder / "more.jsonl").read_bytes()))
    benchmark = opened(folder / "packed.jsonl.gz")
    assert (benchmark.name, len(benchmark)) == ("packed", 3)


def test_recorded_answers_are_cases(tmp_path):
    rows = [
        {"id": "m-1", "question": "Is it done?", "image_desc": "a loaf", "harmful": True, "label_kind": "human"}
        | {
            "kind": "2.1 - a label",
            "category": ["baking", "x"],
            "model": "maker--m",
            "response": "Yes.",
            "source": "s",
        },
        {"id": "m-2", "question": "Hi?", "harmful": False, "label_kind": "benign-prompt", "response": "Hello."},
        {"id": "m-3", "question": "Why?", "harmful": False, "label_kind": "human", "benign": None, "response": "So."},
    ]
    one, two, three = opened(lines(tmp_path / "answers.jsonl", rows))
    assert (one.kind, one.scenario, one.description, one.image, one.benign) == (
        "image",
        "baking",
        "a loaf",
        None,
        False,
    )
    assert (two.kind, two.benign) == ("text", True)
    assert not three.benign


def test_answers_to_unknown_questions_are_judged_by_themselves_and_counted(tmp_path):
    rows = [
        {"question": "Hi?", "response": "Hello.", "source": "x"},
        {"question": "", "response": "So."},
        {"response": "Yes."},
    ]
    benchmark = opened(lines(tmp_path / "answers.jsonl", rows))
    assert [(case.id, case.question) for case in benchmark] == [
        ("answers-1", "Hi?"),
        ("answers-2", ""),
        ("answers-3", ""),
    ]
    assert benchmark.problems == ["The question of 2 answers is not told, so the answers are judged by themselves."]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": 4}, "'question' must be a text, not int"),
        ({"scenario": "bread"}, "neither a 'question' nor an 'image'"),
        ({"question": "  "}, "neither a 'question' nor an 'image'"),
        ({"question": "How?", "benign": "yes"}, "'benign' must be true or false, not str"),
        ({"question": "How?", "references": [1]}, "'references' must be a text or a list of texts"),
        ({"question": "How?", "scenario": "all"}, "'scenario' must not be 'all'"),
        ({"question": "How?", "kind": "all"}, "'kind' must not be 'all'"),
        ({"question": "How?", "id": True}, "'id' must be a text, not bool"),
        ({"question": "How?", "image": "../loaf.png"}, "not a path inside"),
        ({"question": "How?", "image": "/etc/hostname"}, "not a path inside"),
        ({"question": "How?", "image": "C:\\loaf.png"}, "not a path inside"),
        ({"question": "How?", "image": "pictures\\..\\..\\loaf.png"}, "not a path inside"),
        ({"question": "How?", "image": "link.png"}, "a link that leads out"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(folder, row, told):
    picture(folder.parent / "loaf.png")
    (folder / "link.png").symlink_to(folder.parent / "loaf.png")
    lines(folder / "cases.jsonl", [*ROWS, row])
    with pytest.raises(ConfigurationError, match=told) as caught:
        opened(folder)
    assert "line 4" in str(caught.value) and "cases.jsonl" in str(caught.value)


def test_links_within_the_folder_are_followed(folder):
    (folder / "link.png").symlink_to("pictures/loaf.png")
    lines(folder / "cases.jsonl", [{"question": "How?", "image": "link.png"}])
    [case] = opened(folder)
    assert case.image == (folder / "pictures" / "loaf.png").resolve()


def test_what_is_not_json_is_named_by_its_line(folder):
    with (folder / "cases.jsonl").open("a") as file:
        file.write('{"id": "torn')
    with pytest.raises(ConfigurationError, match="line 4: not valid JSON"):
        opened(folder)


def test_missing_images_are_counted_and_left_out(folder):
    more = [{"question": "How?", "image": f"gone{n}.png", "scenario": "bread"} for n in range(2)]
    lines(folder / "cases.jsonl", [*ROWS, *more])
    benchmark = opened(folder)
    assert len(benchmark) == 3
    assert benchmark.problems == ["bread: 2 images are missing, so the questions are left out."]
    lines(folder / "cases.jsonl", more)
    with pytest.raises(ConfigurationError, match=r"no case that can be asked\. bread: 2 images are missing"):
        opened(folder)


def test_a_folder_or_pipe_is_no_image(folder):
    os.mkfifo(folder / "pipe.png")
    lines(folder / "cases.jsonl", [*ROWS, {"question": "a", "image": "pipe.png"}, {"question": "b", "image": "."}])
    assert opened(folder).problems == ["unspecified: 2 images are missing, so the questions are left out."]


def test_ids_differ_within_and_across_benchmarks(folder, tmp_path):
    lines(folder / "cases.jsonl", [*ROWS, {"id": "a", "question": "Again?"}])
    with pytest.raises(ConfigurationError, match="the id 'a' occurs 2 times in own"):
        opened(folder)
    one, two = lines(tmp_path / "x.jsonl", ROWS[:1]), lines(tmp_path / "y.jsonl", ROWS[:1])
    with pytest.raises(ConfigurationError, match="the id 'a' occurs in x and in y"):
        open_benchmarks([str(one), str(two)])


def test_benchmarks_of_the_same_name_are_numbered(tmp_path):
    paths = [lines(tmp_path / str(n) / "bread.jsonl", [{"id": f"i{n}", "question": "How?"}]) for n in range(3)]
    assert [benchmark.name for benchmark in open_benchmarks([str(path) for path in paths])] == [
        "bread",
        "bread 2",
        "bread 3",
    ]


def test_kinds_choose_attacks_and_keep_benign_questions(folder):
    assert [case.id for case in opened(folder, kinds=["photo"])] == ["2", "cases-3"]
    with pytest.raises(ConfigurationError, match="no attack is of the kind 'SD'; there are: photo, text"):
        opened(folder, kinds=["SD", "photo"])


def test_wrong_specs_are_told_apart(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="no benchmark was named"):
        open_benchmarks([])
    with pytest.raises(ConfigurationError, match="there is no benchmark 'figstpe'; there are: mm-safetybench, figstep"):
        open_benchmarks(["figstpe:there"])
    with pytest.raises(ConfigurationError, match="does not exist"):
        open_benchmarks([str(tmp_path / "nowhere")])
    with pytest.raises(ConfigurationError, match="limit is 0"):
        opened(folder, limit=0)
    (tmp_path / "mms" / "processed_questions").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="read with mm-safetybench:"):
        opened(tmp_path / "mms")


def test_the_hash_changes_with_a_picture_and_not_with_unused_files(folder):
    before = opened(folder).sha256
    (folder / "notes.txt").write_text("unused")
    assert opened(folder).sha256 == before
    picture(folder / "pictures" / "loaf.png", "another loaf")
    assert opened(folder).sha256 != before


@pytest.fixture(scope="module")
def fenced(tmp_path_factory) -> Path:
    """A folder with a file, links out of it, and secrets around it."""
    outer = tmp_path_factory.mktemp("outer")
    inner = outer / "inner"
    (inner / "sub").mkdir(parents=True)
    for file in (outer / "secret.png", outer / "inner2.png", inner / "in.png", inner / "sub" / "in.png"):
        file.write_bytes(b"x")
    (inner / "out.png").symlink_to(outer / "secret.png")
    (inner / "up").symlink_to(outer)
    (inner / "loop").symlink_to(inner / "loop")
    return inner


PARTS = st.sampled_from(["in.png", "sub", "out.png", "up", "loop", "secret.png", "..", ".", "", "~", "C:", "inner"])
JOINED = st.builds(
    lambda parts, separator, start: start + separator.join(parts),
    st.lists(PARTS, min_size=1, max_size=5),
    st.sampled_from(["/", "\\", "//"]),
    st.sampled_from(["", "/", "\\\\", "file://"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(name=st.one_of(JOINED, st.text(max_size=30)))
def test_no_path_leads_out_of_the_folder(fenced, name):
    try:
        found = file_in(fenced, name)
    except ConfigurationError:
        return
    assert found is None or (found.is_file() and found.is_relative_to(fenced.resolve()))


def test_paths_inside_are_found(fenced):
    assert file_in(fenced, "sub/in.png") == (fenced / "sub" / "in.png").resolve()
    assert file_in(fenced, "./sub//in.png") is not None
    assert file_in(fenced, "loop") is None
    for name in ("out.png", "up/secret.png"):
        with pytest.raises(ConfigurationError, match="leads out"):
            file_in(fenced, name)


def test_a_folder_that_is_itself_a_link_can_be_read(folder, tmp_path):
    shutil.move(folder, tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert len(opened(folder)) == 3
