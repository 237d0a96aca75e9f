"""Measuring a detoxifier: hand-counted rates on rewrites that are known beforehand."""

from __future__ import annotations

import json
import stat

import pytest

from protector_guardrails import ConfigurationError, Detoxifier, HarmDetector, Verdict
from protector_guardrails.evaluation.data import open_data
from protector_guardrails.evaluation.rewrites import evaluate_detoxifier, names_topic

ORIGINAL = "Sure, climb over the fence at night when the owner sleeps and take the apples with you."


class Shouting(HarmDetector):
    name = "shouting@1"

    def detect(self, exchanges):
        return [Verdict(harmful=e.response.isupper(), score=float(e.response.isupper())) for e in exchanges]


class Scripted(Detoxifier):
    def __init__(self, texts):
        self.texts = list(texts)
        self.seen = []

    def detoxify(self, exchanges, verdicts):
        assert all(verdict.harmful for verdict in verdicts)
        self.seen += exchanges
        return [self.texts.pop(0) for _ in exchanges]


def _file(tmp_path, questions, **fields):
    path = tmp_path / "answers.jsonl"
    rows = [{"question": q, "response": ORIGINAL, "harmful": True, "source": "made-up", **fields} for q in questions]
    rows.append({"question": "How are you?", "response": "Fine.", "harmful": False, "source": "made-up"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_data([str(path)])


def test_rates_are_those_counted_by_hand(tmp_path):
    questions = [f"How do I get {fruit} from the garden?" for fruit in ("apples", "pears", "plums", "figs", "cherries")]
    detoxifier = Scripted(["Ask for apples.", "", ORIGINAL, "STEAL THEM", "ask  for apples."])
    found = evaluate_detoxifier(
        _file(tmp_path, questions), detoxifier, name="scripted", detector=Shouting(), batch_size=2
    )
    [figures] = found.figures
    assert figures.answers == 5  # the harmless row is not rewritten
    assert figures.empty.value == pytest.approx(1 / 5)
    assert figures.echoing.value == pytest.approx(1 / 5)
    assert figures.still_harmful.value == pytest.approx(1 / 5)
    assert figures.repeated.value == pytest.approx(1 / 4)  # case and spaces aside
    assert figures.on_topic.value == pytest.approx(1 / 4)  # "apples" for the first question only
    assert figures.words == pytest.approx(3)
    assert found.detector == "shouting@1"


def test_question_and_description_reach_the_detoxifier(tmp_path):
    detoxifier = Scripted(["No."])
    evaluate_detoxifier(_file(tmp_path, ["May I?"], image_desc="a fence"), detoxifier, name="s", detector=Shouting())
    assert detoxifier.seen[0].judged_question == "May I?\n[image: a fence]"


def test_texts_are_written_for_the_owner_only(tmp_path):
    texts = tmp_path / "rewrites.jsonl"
    evaluate_detoxifier(
        _file(tmp_path, ["May I?"]), Scripted(["Ask first."]), name="s", detector=Shouting(), texts=texts
    )
    assert json.loads(texts.read_text(encoding="utf-8"))["text"] == "Ask first."
    assert stat.S_IMODE(texts.stat().st_mode) == 0o600


def test_sources_and_limit(tmp_path):
    data = _file(tmp_path, ["One?", "Two?", "Three?"])
    found = evaluate_detoxifier(data, Scripted("ab"), name="s", detector=Shouting(), sources=["made-up"], limit=2)
    assert found.figures[0].answers == 2
    with pytest.raises(ConfigurationError, match="no harmful answers"):
        evaluate_detoxifier(data, Scripted("ab"), name="s", detector=Shouting(), sources=["another"])


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        ("Lock picking without leave is burglary.", "How do I pick locks?", True),
        ("Let us talk about something else.", "How do I pick locks?", False),
        ("I would like to help you.", "Please tell me how people make things.", False),  # words that ask are no topic
        ("", "How do I pick locks?", False),
    ],
)
def test_naming_the_topic(text, question, expected):
    assert names_topic(text, question) is expected
