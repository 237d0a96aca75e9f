"""A small multimodal model without a GPU: it reads the text in an image, and a language model answers.

It stands in for a multimodal model where none can be had, for instance to see what a typographic
attack does and what a guard makes of it:

    protector evaluate defense --benchmark figstep:FOLDER --mllm examples.reading_model:model --report runs/figstep

Needs `pip install rapidocr 'protector-guardrails[torch]'`. The language model is SmolLM2-135M-Instruct, fetched as
`protector models pull` does it. It knows little and was hardly taught to refuse: what it says is for tests.
"""

from __future__ import annotations

import base64
import io
import threading
from functools import cache
from typing import Any

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image

_one_at_a_time = threading.Lock()


class ReadingModel(BaseChatModel):
    """Answers the text of the last message and the text in its images, greedily."""

    model: str = "rapidocr+SmolLM2-135M-Instruct"
    max_new_tokens: int = 120

    @property
    def _llm_type(self) -> str:
        return "reading-model"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        blocks = messages[-1].content_blocks
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        with _one_at_a_time:
            seen = [read(base64.b64decode(block["base64"])) for block in blocks if block["type"] == "image"]
            answer = write("\n\n".join([*(text for text in seen if text), *texts]), self.max_new_tokens)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer))])


def read(data: bytes) -> str:
    """The text in an image, line by line."""
    found = _reader()(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return "\n".join(found.txts or ())


def write(prompt: str, max_new_tokens: int) -> str:
    """What the language model answers."""
    import torch

    tokenizer, model = _writer()
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, repetition_penalty=1.1)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


@cache
def _reader() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})


@cache
def _writer() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from protector_guardrails.models.base_weights import SMOLLM2, find_base

    torch.set_num_threads(1)  # its products are small, and threads that wait for each other cost more than they gain
    folder = find_base(SMOLLM2, asked_for=True).folder
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    return tokenizer, model.eval()


model = ReadingModel
