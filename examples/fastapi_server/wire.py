"""What comes in and goes out, in the form that OpenAI made common."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from protector_guardrails import ModelError, ProtectorError

DONE = "data: [DONE]\n\n"
"""What OpenAI's clients wait for."""
_KINDS = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _image_data(url: str) -> str:
    head, _, data = url.partition(",")
    if head not in [f"data:image/{kind};base64" for kind in ("png", "jpeg", "webp", "gif")]:
        # It is never fetched: an address would let a client send the server to places.
        raise ValueError("send the picture itself, as data:image/png;base64,... (or jpeg, webp, gif)")
    base64.b64decode(data, validate=True)
    return url


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=100_000)]


class ImageUrl(_Strict):
    """A picture as a ``data:`` URL of some 10 MB at most."""

    url: Annotated[str, Field(max_length=14_000_000), AfterValidator(_image_data)]


class ImagePart(_Strict):
    """A picture; its description (a caption, or what is written in it) is for the detector, which has no eyes."""

    type: Literal["image_url"]
    image_url: ImageUrl
    description: Annotated[str, Field(max_length=10_000)] | None = None


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Strict):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=100_000)] | list[Part]

    def to_langchain(self) -> BaseMessage:
        """The message as LangChain has it."""
        if isinstance(self.content, str):
            return _KINDS[self.role](self.content)
        descriptions = [part.description for part in self.content if isinstance(part, ImagePart)]
        return _KINDS[self.role](
            [part.model_dump(exclude={"description"}) for part in self.content],
            additional_kwargs={"image_descriptions": descriptions} if any(descriptions) else {},
        )


class ChatRequest(_Strict):
    """What a client posts."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=200)]
    stream: bool = False


def as_json(content: Any) -> str:
    """Python's own ASCII form: whatever a model writes, half of a surrogate pair included, can be sent."""
    return json.dumps(content)


def event(content: Any) -> str:
    """A server-sent event."""
    return f"data: {as_json(content)}\n\n"


def answer(run_id: UUID, text: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, **_finish(verdict)}
    return {"id": str(run_id), "object": "chat.completion", "choices": [choice]}


def delta(run_id: UUID, text: str) -> dict[str, Any]:
    """A piece of a streamed answer."""
    return _chunk(run_id, {"delta": {"content": text}, "finish_reason": None})


def end(run_id: UUID, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The end of a streamed answer."""
    return _chunk(run_id, {"delta": {}, **_finish(verdict)})


def _chunk(run_id: UUID, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": str(run_id), "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}


def _finish(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """How an answer ended, without the score: that would tell an attacker how near he came."""
    action = verdict.get("action")
    return {"finish_reason": "stop" if action in ("pass", "flag") else "content_filter", "action": action}


def failure(kind: str, text: str, **more: Any) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"type": kind, "message": text, **more}}


def failure_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an exception; its own message may quote what the model wrote, and is not sent."""
    if isinstance(error, TimeoutError):
        return 504, failure("timeout", "The answer took too long.")
    if isinstance(error, ProtectorError) and not isinstance(error, ModelError):
        return 503, failure("guard_error", "Answers cannot be judged at the moment.")
    return 502, failure("model_error", "The model failed to answer.")
