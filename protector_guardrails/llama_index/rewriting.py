"""Asking an LLM of LlamaIndex for a rewrite, where nobody listens."""

from __future__ import annotations

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms import LLM

from protector_guardrails.detoxifiers.rewrite_prompt import RewritePrompt
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.llama_index.messages import text_of
from protector_guardrails.llama_index.private import PrivateCall


class LlamaIndexRewriter:
    """Asks an LLM in private: its callback manager and instrumentation are mute meanwhile.

    Args:
        llm: The LLM.

    Raises:
        ConfigurationError: If it is no LLM.
    """

    def __init__(self, llm: LLM) -> None:
        if not isinstance(llm, LLM):
            raise ConfigurationError(f"a {type(llm).__name__} cannot rewrite: pass an LLM of LlamaIndex")
        self._llm = llm

    @property
    def name(self) -> str:
        """Name of the model."""
        name = self._llm.metadata.model_name
        return self._llm.class_name() if name == "unknown" else name

    def ask(self, prompt: RewritePrompt) -> str:
        """The text of the LLM's answer; reasoning and tool calls are left out."""
        return text_of(PrivateCall(self._llm).run(self._llm.chat, _messages(prompt)))

    async def aask(self, prompt: RewritePrompt) -> str:
        """Like :meth:`ask`, without blocking the event loop."""
        return text_of(await PrivateCall(self._llm).arun(self._llm.achat, _messages(prompt)))


def _messages(prompt: RewritePrompt) -> list[ChatMessage]:
    return [
        ChatMessage(role=MessageRole.SYSTEM, content=prompt.system),
        ChatMessage(role=MessageRole.USER, content=prompt.user),
    ]
