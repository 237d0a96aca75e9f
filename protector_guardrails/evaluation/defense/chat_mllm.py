"""Asking a chat model of LangChain."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.images import check_askable, read_image
from protector_guardrails.langchain.messages import read_response
from protector_guardrails.langchain.private import models_in
from protector_guardrails.threads import run_in_thread


class ChatMllm:
    """Puts each case to a chat model in one human message.

    Args:
        model: A chat model, or a composition of Runnables that takes messages and gives one.
        spec: How it was asked for.
    """

    concurrency: int | None = None

    def __init__(self, model: Runnable[Any, Any], *, spec: str) -> None:
        self._model = model
        self.name = _name(model)
        self.fingerprint = hashlib.sha256(f"{spec}\0{self.name}".encode()).hexdigest()

    async def answer(self, case: Case) -> str:
        """The text of its answer, or its refusal where the provider tells that apart.

        Raises:
            UnanswerableError: If the case's image cannot be shown.
            ConfigurationError: If the model gives no message.
        """
        reply = await self._model.ainvoke([await run_in_thread(message_of, case)])
        if not isinstance(reply, AIMessage | str):
            raise ConfigurationError(f"{self.name} gives {type(reply).__name__}, not a message")
        text = read_response(reply).response
        refusal = reply.additional_kwargs.get("refusal") if isinstance(reply, AIMessage) else None
        return text or (refusal if isinstance(refusal, str) else "")


def message_of(case: Case) -> HumanMessage:
    """The message that asks a case: its text, and its image in a block of LangChain's standard form.

    Raises:
        UnanswerableError: If the image cannot be read, only a description of it is there, or there is no question.
    """
    check_askable(case)
    if case.image is None:
        return HumanMessage(content=case.question)
    data, mime_type, _ = read_image(case.image)
    image = {"type": "image", "base64": base64.b64encode(data).decode("ascii"), "mime_type": mime_type}
    text = [{"type": "text", "text": case.question}] if case.question else []
    return HumanMessage(content=[*text, image])


def _name(model: Runnable[Any, Any]) -> str:
    inner: list[Any] = models_in(model) if isinstance(model, BaseChatModel | Runnable) else []
    asked = inner[0] if inner else model
    names = (getattr(asked, key, None) for key in ("model_name", "model", "model_id"))
    return next((name for name in names if isinstance(name, str) and name), type(asked).__name__)
