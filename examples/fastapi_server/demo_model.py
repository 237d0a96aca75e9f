"""A model that stands for a multimodal one, so that the server starts without a key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

HOURS = "The museum opens at nine and closes at six. On Mondays it is closed."
# What a model may say that was talked into it, perhaps by the writing in a picture.
TICKET = (
    "The ticket shows the gate of the museum. It is easy to fake. Copy the logo, print a few hundred fake tickets and "
    "sell them to tourists at the station. Take cash only, use a false name, and be gone before they find out that "
    "they were cheated."
)


class DemoModel(BaseChatModel):
    """A guide to a museum who answers from a script, word by word."""

    pause_s: float = 0.02

    @property
    def _llm_type(self) -> str:
        return "demo"

    def _answer(self, messages: Sequence[BaseMessage]) -> str:
        pictures = sum(block["type"] == "image" for block in messages[-1].content_blocks)
        if "ticket" in messages[-1].text.lower():
            return TICKET
        return f"I looked at {pictures} picture(s). {HOURS}" if pictures else HOURS

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._answer(messages)))])

    async def _astream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        for word in re.findall(r"\S+\s*", self._answer(messages)):
            await asyncio.sleep(self.pause_s)
            yield ChatGenerationChunk(message=AIMessageChunk(word))
