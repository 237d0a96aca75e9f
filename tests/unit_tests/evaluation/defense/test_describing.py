"""Words for images that a benchmark does not describe."""

from __future__ import annotations

from pathlib import Path

import defense_fakes
import pytest
from asking_fakes import picture
from defense_fakes import Oven, Thermometer, case, write_lines

pytest.importorskip("sklearn")

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense import describing
from protector_guardrails.evaluation.defense.describing import Describer
from protector_guardrails.evaluation.defense.run import evaluate_defense

HERE = "test_describing"
told: list[bytes] = []


def caption(data: bytes) -> str:
    told.append(data)
    return "  a loaf\n"


def nothing(data: bytes) -> str:
    return " "


def number(data: bytes) -> int:
    return 4


def fails(data: bytes) -> str:
    raise OSError("quoting secret text")


@pytest.fixture(autouse=True)
def fresh():
    told.clear()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return picture(tmp_path / "images" / "a.png")


def described(spec: str, folder: Path, *cases):
    with Describer(f"{HERE}:{spec}", folder=folder) as describer:
        return [describer.described(one).description for one in cases], describer.problems()


def test_each_image_is_put_into_words_once_and_kept(tmp_path, image):
    copy = image.with_name("b.png")
    copy.write_bytes(image.read_bytes())
    cases = [case(1, image=image), case(2, image=image), case(3, image=copy)]
    for _ in range(2):
        assert described("caption", tmp_path, *cases) == (["a loaf"] * 3, [])
    assert told == [image.read_bytes()]


def test_what_is_described_or_has_no_image_stays_as_it_is(tmp_path, image):
    cases = [case(1), case(2, description="a cake"), case(3, image=image, description="a bun")]
    assert described("caption", tmp_path, *cases) == ([None, "a cake", "a bun"], [])
    assert described("nothing", tmp_path, case(1, image=image)) == ([None], [])
    assert not told


def test_failures_are_counted_and_quote_nothing(tmp_path, image):
    broken = image.with_name("broken.png")
    broken.write_bytes(b"no image")
    _, [unreadable] = described("caption", tmp_path, case(1, image=broken))
    assert "broken.png is no image" in unreadable
    assert described("fails", tmp_path, case(1, image=image)) == (
        [None],
        [f"{HERE}:fails described 1 image not: OSError."],
    )
    assert described("number", tmp_path, case(1, image=image))[0] == [None]


def test_another_function_is_asked_again(tmp_path, image, monkeypatch):
    described("caption", tmp_path, case(1, image=image))
    monkeypatch.setattr(describing, "_source", lambda _: "changed")
    described("caption", tmp_path, case(1, image=image))
    assert len(told) == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [("caption", "use package.module:function"), (f"{HERE}:gone", "cannot be imported"), (f"{HERE}:HERE", "is str")],
)
def test_what_is_no_function_is_said(spec, words, tmp_path):
    with pytest.raises(ConfigurationError, match=words):
        Describer(spec, folder=tmp_path)


def test_the_guard_is_told_and_the_model_is_not(tmp_path, image, monkeypatch):
    monkeypatch.setattr(defense_fakes, "OVEN", Oven())
    detector = Thermometer()
    rows = [{"id": "a", "question": "Say: loaf", "image": "images/a.png"}, {"id": "b", "question": "Say: bun"}]
    write_lines(tmp_path / "cases.jsonl", rows)

    def run(report: str, **options):
        return evaluate_defense(
            [str(tmp_path)], "defense_fakes:OVEN", report=tmp_path / report, detector=detector, **options
        )

    found = run("told", describe=f"{HERE}:caption")
    assert {exchange.judged_question for exchange in detector.seen} == {"Say: loaf\n[image: a loaf]", "Say: bun"}
    assert sorted(defense_fakes.OVEN.asked) == ["Say: bun", "Say: loaf"]
    assert found.run.describer == f"{HERE}:caption"
    assert not any("not described" in note for note in found.notes)
    assert any("images behind 1 answers are not described" in note for note in run("blind").notes)
