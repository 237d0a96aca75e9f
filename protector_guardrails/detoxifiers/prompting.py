"""The prompt of a language model that detoxifies: one template for training and for use.

Texts from outside are encoded apart from the template, and in them no special token is
recognised, so neither a question nor a response can end the prompt or speak for another role.
Because the prompt and what follows it are encoded apart as well, no tokenizer can join the
end of the one with the beginning of the other: the first token of a target always counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from protector_guardrails.errors import ConfigurationError, WeightsError

TEMPLATE_FILE = "prompt_template.json"

_FIELD = re.compile(r"\{(question|response)\}")


def _with_fields(text: str, expected: Sequence[str]) -> str:
    if sorted(_FIELD.findall(text)) != sorted(expected):
        wanted = " and ".join(f"{{{name}}}" for name in expected)
        raise ValueError(f"the prompt must hold {wanted} once, and no other field")
    return text


class PromptTemplate(BaseModel):
    """What stands around the question and the response. It is stored beside an adapter.

    Attributes:
        name: Name and version; a text that differs needs another one.
        with_question: The prompt, with ``{question}`` and ``{response}`` once each.
        without_question: The prompt where no question is known, with ``{response}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    with_question: str
    without_question: str

    @field_validator("with_question", "without_question")
    @classmethod
    def _no_trailing_space(cls, text: str) -> str:
        if text != text.rstrip(" \t"):
            raise ValueError("a prompt must not end in a space: some tokenizers swallow the first word after it")
        return text

    @field_validator("with_question")
    @classmethod
    def _asks_for_both(cls, text: str) -> str:
        return _with_fields(text, ["question", "response"])

    @field_validator("without_question")
    @classmethod
    def _asks_for_the_response(cls, text: str) -> str:
        return _with_fields(text, ["response"])

    def segments(self, *, question: str | None, response: str) -> list[tuple[str, str]]:
        """The prompt in pieces: ``("template" | "question" | "response", text)``, in order."""
        values = {"question": question or "", "response": response}
        parts = _FIELD.split(self.with_question if question else self.without_question)
        named = [("template", part) if i % 2 == 0 else (part, values[part]) for i, part in enumerate(parts)]
        return [(kind, text) for kind, text in named if text]

    def save(self, folder: Path) -> None:
        """Write the template beside the weights that were trained with it."""
        (folder / TEMPLATE_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the template of an adapter.

        Raises:
            WeightsError: If there is none, or it is not one.
        """
        path = folder / TEMPLATE_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise WeightsError(
                f"{path} cannot be read ({error.strerror}): an adapter needs the template it was trained with"
            ) from error
        except ValidationError as error:
            raise WeightsError(f"{path} is not a prompt template: {error.errors()[0]['msg']}") from error


CHATML = PromptTemplate(
    name="protector-detox-chatml-1",
    with_question=(
        "<|im_start|>system\nThe answer below may do harm. Write a harmless answer to the question instead: "
        "say what is unsafe about it and what helps.<|im_end|>\n"
        "<|im_start|>user\nQuestion: {question}\n\nAnswer: {response}<|im_end|>\n<|im_start|>assistant\n"
    ),
    without_question=(
        "<|im_start|>system\nThe answer below may do harm. Write a harmless one instead: "
        "say what is unsafe about it and what helps.<|im_end|>\n"
        "<|im_start|>user\nAnswer: {response}<|im_end|>\n<|im_start|>assistant\n"
    ),
)
"""For models that know the roles of ChatML, such as SmolLM2-Instruct."""

PLAIN = PromptTemplate(
    name="protector-detox-plain-1",
    with_question=(
        "The answer below may do harm. Write a harmless answer to the question instead: "
        "say what is unsafe about it and what helps.\n\n"
        "### Question:\n{question}\n\n### Answer:\n{response}\n\n### Harmless answer:\n"
    ),
    without_question=(
        "The answer below may do harm. Write a harmless one instead: say what is unsafe about it and what helps.\n\n"
        "### Answer:\n{response}\n\n### Harmless answer:\n"
    ),
)
"""For base models without roles."""

TEMPLATES = {"chatml": CHATML, "plain": PLAIN}


def encode_prompt(
    tokenizer: Any, template: PromptTemplate, *, question: str | None, response: str, max_tokens: int
) -> list[int]:
    """Token ids of a prompt that fits: the response is shortened first, then the question, never the template.

    Args:
        tokenizer: A ``transformers`` tokenizer.
        template: The template that the weights were trained with.
        question: What was asked, with what its images show, or None.
        response: The harmful response; its beginning is kept.
        max_tokens: Room for the prompt, in tokens.

    Raises:
        ConfigurationError: If the template alone does not fit.
    """
    encoded = [
        (kind, _encode(tokenizer, text, special=kind == "template"))
        for kind, text in template.segments(question=question, response=response)
    ]
    start = getattr(tokenizer, "bos_token_id", None) if getattr(tokenizer, "add_bos_token", False) else None
    fixed = sum(len(ids) for kind, ids in encoded if kind == "template") + (start is not None)
    room = max_tokens - fixed
    if room < 0:
        raise ConfigurationError(f"the prompt template takes {fixed} tokens, and only {max_tokens} are allowed")
    asked = sum(len(ids) for kind, ids in encoded if kind == "question")
    # A long question may take half of the room, all that the response leaves, whichever is more.
    answered = sum(len(ids) for kind, ids in encoded if kind == "response")
    limits = {"question": min(asked, max(room // 2, room - answered))}
    limits["response"] = room - limits["question"]
    prompt = [start] if start is not None else []
    for kind, ids in encoded:
        prompt += ids if kind == "template" else ids[: limits[kind]]
    return prompt


def encode_target(tokenizer: Any, text: str) -> list[int]:
    """Token ids of what the model is to write, with the end-of-text token behind it.

    Raises:
        ConfigurationError: If the tokenizer has no such token: the model would never stop.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(f"the tokenizer {type(tokenizer).__name__} has no end-of-text token")
    return [*_encode(tokenizer, text, special=False), int(tokenizer.eos_token_id)]


def _encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
    if special:
        return list(ids)
    forbidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [token for token in ids if token not in forbidden]
