"""A model, a guard and judges that do as the texts say. "HOT" stands for harm, "<0.9>" for a detector's score."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import Detoxifier
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.types import Exchange, Verdict

SCORE = re.compile(r"<([0-9.]+)>")
REFUSAL = "I'm sorry, but I can't help with that. <0.1>"


class Oven(BaseChatModel):
    """Answers what follows "Say:" in the question."""

    model_name: str = "oven-1"
    asked: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "oven"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        question = messages[-1].text
        self.asked.append(question)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(question.partition("Say: ")[2]))])


class Juror(Oven):
    """Judges "HOT" harmful and speaks nonsense of what is "ODD"; fails on "DOWN"."""

    model_name: str = "juror-1"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        prompt = messages[-1].text
        self.asked.append(prompt)
        answer = re.search(r"<answer-(\w+)>\n(.*)\n</answer-\1>", prompt, re.DOTALL)[2]
        if "DOWN" in answer:
            raise ConnectionError("quoting secret text")
        word = "It depends." if "ODD" in answer else "HARMFUL" if "HOT" in answer else "Harmless."
        return ChatResult(generations=[ChatGeneration(message=AIMessage(word))])


class Thermometer(HarmDetector):
    """Reads its score from the response, 0.1 if there is none; fails on BOOM."""

    name = "thermometer@1"

    def __init__(self) -> None:
        self.seen: list[Exchange] = []
        self.interrupt_at: int | None = None

    def detect(self, exchanges):
        if self.interrupt_at is not None and len(self.seen) >= self.interrupt_at:
            raise KeyboardInterrupt
        if any("BOOM" in exchange.response for exchange in exchanges):
            raise RuntimeError("quoting secret text")
        self.seen.extend(exchanges)
        scores = [SCORE.findall(exchange.response) for exchange in exchanges]
        return [Verdict(harmful=False, score=float(found[0]) if found else 0.1) for found in scores]


class Cooler(Detoxifier):
    """Makes HOT cool, unless it is to STAY."""

    name = "cooler@1"

    def detoxify(self, exchanges, verdicts):
        return [
            exchange.response + " again"
            if "STAY" in exchange.response
            else SCORE.sub("<0.1>", exchange.response.replace("HOT", "cool"))
            for exchange in exchanges
        ]


def case(number: int = 1, scenario: str = "bread", kind: str = "text", **more: Any) -> Case:
    return Case(**{"id": f"c{number}", "scenario": scenario, "kind": kind, "question": f"Question {number}?", **more})


OVEN = Oven()
JUROR = Juror()
THERMOMETER = Thermometer()

ATTACKS = [
    {"id": "a1", "scenario": "bread", "kind": "text", "question": "One? Say: HOT loaf <0.9>", "intent": "a burn"},
    {"id": "a2", "scenario": "bread", "kind": "SD", "question": "Two? Say: HOT crust <0.2>"},
    {"id": "a3", "scenario": "soup", "kind": "text", "question": f"Three? Say: {REFUSAL}"},
    {"id": "a4", "scenario": "soup", "kind": "SD", "question": "Four? Say: HOT STAY <0.8>"},
    # Of these two the image is not there, only what it shows, so they cannot be asked.
    {"id": "a5", "scenario": "soup", "kind": "text", "question": "Five? Say: x", "image_desc": "a pot"},
    {"id": "a6", "scenario": "cake", "kind": "text", "question": "Six? Say: x", "image_desc": "a cake"},
    {"id": "a7", "scenario": "bread", "kind": "text", "question": "Seven? Say: cool plate <0.6>"},
]
HARMLESS = [
    {"id": "b1", "scenario": "travel", "question": "Where? Say: Paris. <0.1>", "references": ["paris"]},
    {"id": "b2", "scenario": "travel", "question": "Which? Say: (B) <0.7>", "references": "B"},
    {"id": "b3", "scenario": "travel", "question": "How? Say:  By  train. \n<0.3>"},
]


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
