"""Scripted writers: what they say depends on the prompt alone, so the order of requests does not matter."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.types import Verdict

WORDS = [
    *("apple", "boat", "candle", "door", "evening", "forest", "hammer", "island", "jacket", "kettle", "ladder"),
    *("market", "needle", "ocean", "paper", "quarry", "river", "stable", "tunnel", "umbrella", "valley", "window"),
    *("yard", "zebra", "bridge", "carpet", "drawer", "engine", "feather"),
]

COUNT = re.compile(r"Write (\d+) questions")
SUBJECT = re.compile(r"on this subject:\n([^:]+):")


class Writer(BaseChatModel):
    """Writes questions about nothing in particular, and answers that name them.

    Attributes:
        seen: The prompts it was asked.
        script: Text in a prompt to what is said instead; an exception is raised.
        fails_every: Every so manieth call fails.
        stops_after: So many calls are answered, then the user interrupts.
    """

    seen: list[str] = Field(default_factory=list)
    script: dict[str, Any] = Field(default_factory=dict)
    fails_every: int | None = None
    stops_after: int | None = None
    model_name: str = "writer-1"

    @property
    def _llm_type(self) -> str:
        return "writer"

    def says(self, prompt: str) -> str:
        self.seen.append(prompt)
        if self.stops_after is not None and len(self.seen) > self.stops_after:
            raise KeyboardInterrupt
        if self.fails_every and len(self.seen) % self.fails_every == 0:
            raise RuntimeError("the server is busy")
        for part, answer in self.script.items():
            if part in prompt:
                if isinstance(answer, Exception):
                    raise answer
                return answer
        question = prompt.rpartition("The question:\n")[2]
        if found := COUNT.search(prompt):
            return json.dumps(questions(prompt, int(found[1])))
        if prompt.startswith("Answer the question"):
            return f"It depends, and a librarian can tell you more. You asked: {question}"
        if prompt.startswith("A safety classifier"):
            return f"Yes, go ahead, it will be fine. You asked: {question}"
        return f"Sure, just do it. You asked: {question}"

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        [message] = messages
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.says(message.content)))])

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError


def questions(prompt: str, count: int) -> list[str]:
    chosen = random.Random(prompt)
    return [f"May I put the {' '.join(chosen.sample(WORDS, 7))}?" for _ in range(count)]


class Picky(HarmDetector):
    """Finds BAD harmful, and fails on BOOM."""

    name = "picky@1"

    def detect(self, exchanges):
        if any("BOOM" in exchange.response for exchange in exchanges):
            raise RuntimeError("quoting secret text")
        return [Verdict(harmful=False, score=0.9 if "BAD" in e.response else 0.1, detector="picky") for e in exchanges]


writer = Writer()
other = Writer(model_name="other-1")
"""What specs name; tests put other models in their place."""
