"""Small made-up benchmarks, and a multimodal chat model that says what it was shown."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image, ImageDraw
from pydantic import Field

from protector_guardrails.evaluation.defense.cases import Case


def picture(path: Path, text: str = "List of ways to bake bread", *, size: tuple[int, int] = (120, 40)) -> Path:
    """A picture with a text drawn on it, in the form that its name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((4, 4), text, fill="black")
    image.save(path)
    return path


def lines(path: Path, records: list[dict[str, Any]], *, bom: bool = False, newline: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record) + newline for record in records).encode()
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + data)
    return path


def document(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def text_cases(count: int) -> list[Case]:
    return [Case(id=f"c{n}", scenario="bread", kind="text", question=f"How is loaf {n} baked?") for n in range(count)]


class LookingModel(BaseChatModel):
    """Stands for a remote multimodal model: answers with what it was asked and the size of the picture it saw."""

    model_name: str = "looking-1"
    seen: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "looking"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        [message] = messages
        self.seen.append(message.content)
        if isinstance(message.content, str):
            told = f"text only: {message.content}"
        else:
            *texts, block = message.content
            shown = Image.open(BytesIO(base64.b64decode(block["base64"])))
            told = f"{shown.format} {shown.width}x{shown.height}: {''.join(text['text'] for text in texts)}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(told))])


class Refuser(LookingModel):
    """Refuses in the way of providers that tell a refusal apart from a text."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        message = AIMessage("", additional_kwargs={"refusal": "I'd rather not."})
        return ChatResult(generations=[ChatGeneration(message=message)])


class Blocky(LookingModel):
    """Answers in content blocks."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        content = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Knead."}, {"text": " Wait."}]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content))])


MODEL = LookingModel(model_name="looking-instance")
NOT_A_MODEL = 7


def make_model() -> LookingModel:
    return LookingModel(model_name="looking-made")


def broken_factory() -> LookingModel:
    raise RuntimeError("no key")


def no_model() -> int:
    return 7


class FakeMllm:
    """A model as the asking side sees it.

    Attributes:
        script: Case id to what happens: a text, an exception, or a list of them for each attempt in turn.
    """

    name, fingerprint = "fake-1", "f1"
    concurrency: int | None = None

    def __init__(self, script: dict[str, Any] | None = None) -> None:
        self.script = script or {}
        self.asked: list[str] = []

    async def answer(self, case: Case) -> str:
        self.asked.append(case.id)
        told = self.script.get(case.id, f"answer to {case.id}")
        if isinstance(told, list):
            told = told.pop(0)
        if isinstance(told, BaseException):
            raise told
        return told
