"""Detectors and models that say what the tests want."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from protector_guardrails import Detoxifier, Exchange, HarmDetector, Verdict

SAFE = "Boil the soup for ten minutes and add some salt. Then serve it hot to your guests."
HARMFUL = "Boil the soup for ten minutes. Then add poison to it. Serve it hot to your guests and smile."
REDACTED = "Boil the soup for ten minutes. Serve it hot to your guests and smile."


class PoisonDetector(HarmDetector):
    """Harmful is whatever mentions a word; remembers the batches it was given."""

    def __init__(self, word: str = "poison", *, name: str = "poison@1", delay: float = 0.0) -> None:
        self.word, self.name, self.delay = word, name, delay
        self.batches: list[list[Exchange]] = []
        self._lock = threading.Lock()

    def detect(self, exchanges: Any) -> list[Verdict]:
        if self.delay:
            time.sleep(self.delay)
        with self._lock:
            self.batches.append(list(exchanges))
        return [self._judge(exchange) for exchange in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        score = float(any(self.word in passage for passage in exchange.passages))
        return Verdict(harmful=score >= 0.5, score=score, detector=self.name)

    @property
    def questions(self) -> dict[str, str | None]:
        """Response to the question it was judged with."""
        return {exchange.response: exchange.question for batch in self.batches for exchange in batch}


class BrokenDetector(HarmDetector):
    name = "broken@1"

    def detect(self, exchanges: Any) -> list[Verdict]:
        raise RuntimeError("out of order")


class FixedDetoxifier(Detoxifier):
    """Always answers the same; remembers what it was asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[Exchange] = []

    def detoxify(self, exchanges: Any, verdicts: Any) -> list[str]:
        self.asked.extend(exchanges)
        return [self.text for _ in exchanges]


class EchoModel(BaseChatModel):
    """Answers ``about <last message>``, in three chunks if streamed."""

    prefix: str = "about "

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.prefix + messages[-1].text))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        text = messages[-1].text
        for piece in (self.prefix, text[: len(text) // 2], text[len(text) // 2 :]):
            chunk = ChatGenerationChunk(message=AIMessageChunk(piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk


def verdict_of(message: BaseMessage) -> dict[str, Any]:
    return message.response_metadata["protector"]
