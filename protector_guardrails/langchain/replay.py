"""A chat model that answers from a record of what real multimodal models answered.

It stands for the guarded model in the demo, the tutorials and tests: the chain around
it is the real one, and nothing is sent anywhere.
"""

# ruff: noqa: ARG002 - the signatures are LangChain's

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr

from protector_guardrails.errors import ProtectorError

_TOKEN = re.compile(r"\S+\s*|\s+")


class UnknownQuestionError(ProtectorError, LookupError):
    """A replay model was asked something to which it has no recorded answer."""


def question_message(record: Mapping[str, Any]) -> HumanMessage:
    """The message that asks a record's question, with its image in words if it has one.

    The image itself is not in the record: its block carries a ``description``, which is
    what a guard can judge, and a ``file_id`` in place of data.

    Args:
        record: ``question``, and perhaps ``image_desc`` and ``id``.
    """
    question = str(record.get("question") or "")
    description = record.get("image_desc")
    if not description:
        return HumanMessage(content=question)
    image = {"type": "image", "file_id": f"recorded-{record.get('id', 'image')}", "description": str(description)}
    return HumanMessage(content=[{"type": "text", "text": question}, image])


class ReplayChatModel(BaseChatModel):
    """Answers each known question with its recorded answer; invoke, batch, stream and their async forms work.

    The question is the text of the last human message. Descriptions of its images
    choose between records that differ in the image only.

    Attributes:
        records: Mappings with ``question`` and ``response``, and perhaps ``model`` and ``image_desc``.
        model: Answer only with what this model said; None: with the first record that fits.

    Example:
        >>> replay = ReplayChatModel(records=[{"question": "Is it raining?", "response": "Yes, take a coat."}])
        >>> replay.invoke("Is it raining?").content
        'Yes, take a coat.'
    """

    records: Sequence[Mapping[str, Any]] = Field(repr=False)
    model: str | None = None
    _by_question: dict[str, list[Mapping[str, Any]]] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        """Index the records by question."""
        super().model_post_init(context)
        for record in self.records:
            if self.model is None or record.get("model") == self.model:
                self._by_question.setdefault(str(record.get("question") or "").strip(), []).append(record)

    @property
    def _llm_type(self) -> str:
        return "replay"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "records": len(self.records)}  # not the answers: these parameters are traced

    def _answer(self, messages: Sequence[BaseMessage]) -> tuple[str, dict[str, Any]]:
        human = next((message for message in reversed(messages) if isinstance(message, HumanMessage)), None)
        if human is None:
            raise UnknownQuestionError("a replay model answers human messages, and there is none")
        question, descriptions = _question_of(human)
        for record in self._by_question.get(question, ()):
            known = record.get("image_desc")
            if not descriptions or (known and str(known).strip() in descriptions):
                return str(record["response"]), {"model_name": record.get("model") or "replay"}
        # The question itself is not quoted: it may be what nobody should read in a log.
        raise UnknownQuestionError(
            f"no recorded answer{f' of {self.model}' if self.model else ''} to this question "
            f"({len(question)} characters, {len(descriptions)} image descriptions) among {len(self.records)} records"
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        text, metadata = self._answer(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text, response_metadata=metadata))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages, stop, **kwargs)  # a dictionary look-up blocks nobody

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        text, metadata = self._answer(messages)
        tokens = _TOKEN.findall(text) or [""]
        for index, token in enumerate(tokens):
            last = index == len(tokens) - 1
            message = AIMessageChunk(
                content=token,
                response_metadata=metadata if last else {},
                chunk_position="last" if last else None,
            )
            chunk = ChatGenerationChunk(message=message)
            if run_manager:
                run_manager.on_llm_new_token(token, chunk=chunk)
            yield chunk


def _question_of(message: HumanMessage) -> tuple[str, list[str]]:
    """The text of a message and the descriptions of its images."""
    if isinstance(message.content, str):
        return message.content.strip(), []
    texts: list[str] = []
    descriptions: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif isinstance(block.get("description"), str):
            descriptions.append(block["description"].strip())
    return "\n".join(texts).strip(), descriptions
